"""Time a source model and a re-engineered one in DeepSparse. The Python of DeepSparse's environment runs this."""

from __future__ import annotations

import argparse
import os

from seam.cost.engines import ENGINES
from seam.cost.latency import time_models
from seam.cost.runners.deep_sparse import open_engine
from seam.files import check_onnx_seal, write_json
from seam.log import job_log
from seam.process import start_job


def main() -> None:
    start_job()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, metavar="A.onnx", help="the source model")
    parser.add_argument("--reengineered", required=True, metavar="B.onnx", help="the re-engineered model")
    parser.add_argument("--output", required=True, metavar="C.json", help="the file for the times")
    parser.add_argument("--log", default=os.devnull, metavar="D.log", help="the log (default: none)")
    parser.add_argument("--cores", type=int, default=1, help="what `all` threads are (default: %(default)s)")
    parser.add_argument("--threads", nargs="+", default=["all"], help="threads of the engine (default: all)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16], help="images in each pass (default: 16)")
    parser.add_argument("--warmup", type=int, default=20, help="passes that are not timed (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=100, help="timed passes (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=2, help="repetitions of everything (default: %(default)s)")
    parser.add_argument("--statistic", choices=["mean", "median"], default="mean", help="(default: %(default)s)")
    options = vars(parser.parse_args())
    output, log = options.pop("output"), options.pop("log")
    models = {name: options.pop(name) for name in ("source", "reengineered")}
    gains = ENGINES["deepsparse"].gains_from_zeros
    with job_log(log):
        for path in models.values():
            check_onnx_seal(path)
        write_json(output, time_models("deepsparse", open_engine, models, gains_from_zeros=gains, **options))


if __name__ == "__main__":
    main()

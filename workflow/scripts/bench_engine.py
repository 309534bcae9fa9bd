"""Time seam.engine beside ONNX Runtime and, where its environment exists, DeepSparse.

    make bench-engine ARGS="--cifar cifar10_resnet20.pth --only resnet20 --deepsparse envs/deepsparse/bin/python"

Engines take turns in rounds, so that a busy machine slows all of them alike; a row's ratio is the median over rounds.
DeepSparse needs a Python of its own and answers through a pipe; its time is measured in its process.

Zeros: a case keeps the largest weights of each layer (a published checkpoint, if given; else the random initial
weights), the same share in each, so that the multiply-adds left are that share, too. Times do not depend on values.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SECONDS = 3.0  # per row
SETTLE = 0.04  # seconds of an engine's turn that are not counted


@dataclass(frozen=True)
class Case:
    """A network, the share of each layer's weights that is kept, and the images' size."""

    network: str
    kept: float
    size: int

    @property
    def name(self) -> str:
        """Return a file name."""
        return f"{self.network}-{100 * self.kept:g}"


CASES = [
    *(Case("resnet20", kept, 32) for kept in (1, 0.28, 0.2, 0.1)),
    *(Case("vgg16_bn", kept, 32) for kept in (1, 0.1, 0.05)),
    *(Case("resnet18", kept, 224) for kept in (1, 0.1)),
    *(Case("efficientnet_b0", kept, 224) for kept in (1, 0.1)),
]

DEEPSPARSE = """
import json, sys, time
import numpy as np, deepsparse
for line in sys.stdin:
    path, images, threads, shape = json.loads(line)
    engine = deepsparse.Engine(model=path, batch_size=images, num_cores=threads)
    batch = [np.random.default_rng(0).standard_normal((images, *shape)).astype(np.float32)]
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        begin = time.perf_counter()
        engine.run(batch)
        print(time.perf_counter() - begin, flush=True)
"""


def build(case: Case, checkpoint: Path | None):
    """Return the case's network with its smallest weights zero, in eval mode."""
    import torch

    from seam.models.architectures import ARCHITECTURES, build_model
    from seam.models.unpickling import read_checkpoint

    torch.manual_seed(0)
    is_cifar = case.network in ARCHITECTURES
    module = build_model(case.network, 10) if is_cifar else build_model(f"torchvision:{case.network}", 1000)
    if checkpoint and case.network == "resnet20":
        module.load_state_dict(read_checkpoint(checkpoint)[0])
    for parameter in module.parameters():
        zeros = parameter.numel() - round(parameter.numel() * case.kept)
        if parameter.ndim > 1 and zeros:
            limit = parameter.data.abs().flatten().kthvalue(zeros).values
            parameter.data[parameter.data.abs() <= limit] = 0
    return module.eval()


class Deepsparse:
    """DeepSparse in its own process."""

    def __init__(self, python: str):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [python, "-c", DEEPSPARSE], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )

    def prepare(self, path: Path, images: int, threads: int, shape: tuple) -> None:
        """Load a model."""
        self._send(json.dumps([str(path), images, threads, shape]))
        while self.process.stdout.readline().strip() != "ready":
            if self.process.poll() is not None:
                raise SystemExit("DeepSparse ended: run its Python by itself to see why.")

    def time(self) -> float:
        """Return the seconds of one pass."""
        self._send("run")
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """Let go of the model."""
        self._send("end")

    def _send(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


def turn(run: Callable[[], float]) -> float:
    """Return the median of the seconds that `run` returns in at least 2 calls, after calls for `SETTLE` seconds.

    An engine's threads keep spinning after its last call, ONNX Runtime's for 32 ms, and hold cores meanwhile.
    """
    begin = time.perf_counter()
    run()
    while time.perf_counter() - begin < SETTLE:
        run()
    values = []
    while len(values) < 2 or time.perf_counter() - begin < 1.5 * SETTLE:
        values.append(run())
    return float(np.median(values))


def measure(model: str, path: Path, images: int, threads: int, deepsparse: Deepsparse | None, seconds: float) -> dict:
    """Return milliseconds and ratios of the engines for one model, batch and number of threads."""
    import onnxruntime

    from seam.engine import load

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    engine = load(path, threads=threads, fallback=False)
    taken = session.get_inputs()[0]
    batch = np.random.default_rng(0).standard_normal((images, *taken.shape[1:])).astype(np.float32)

    def timed(run):
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    runs = {
        "onnxruntime": lambda: timed(lambda: session.run(None, {taken.name: batch})),
        "seam": lambda: timed(lambda: engine(batch)),
    }
    if deepsparse:
        deepsparse.prepare(path, images, threads, batch.shape[1:])
        runs["deepsparse"] = deepsparse.time
    times = {name: [] for name in runs}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times["seam"]) < 5:
        for name, run in runs.items():
            times[name].append(turn(run))
    if deepsparse:
        deepsparse.end()
    row = {"model": model, "images": images, "threads": threads, "rounds": len(times["seam"])}
    for name, values in times.items():
        row[name] = round(1e3 * float(np.median(values)), 3)
        row[f"{name}_least"] = round(1e3 * float(np.min(values)), 3)
    for name in set(times) - {"seam"}:
        row[f"{name}/seam"] = round(float(np.median(np.array(times[name]) / np.array(times["seam"]))), 2)
        row[f"{name}/seam_least"] = round(row[f"{name}_least"] / row["seam_least"], 2)
    return row


def models(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names and files of the models to time; those of CASES are written to `folder`."""
    from seam.cost.export import export

    for path in options.models or ():
        yield str(path), path
    for case in () if options.models else CASES:
        if not options.only or options.only in case.name:
            path = folder / f"{case.name}.onnx"
            export(build(case, options.cifar), path, (3, case.size, case.size))
            yield case.name, path


def main() -> None:
    """Parse the options, measure every row and print it as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="a state dictionary of ResNet20 for CIFAR-10")
    parser.add_argument("--deepsparse", help="a Python with DeepSparse 1.8.0 (envs/deepsparse.txt)")
    parser.add_argument("--only", help="only models whose name contains this")
    parser.add_argument("--models", type=Path, nargs="*", help="time these model.onnx, such as results, instead")
    parser.add_argument("--images", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--threads", type=int, nargs="*", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per row")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()

    from seam.cost.processor import describe_cpu
    from seam.engine.native import instruction_set

    machine = f"{describe_cpu()[0]}, {os.cpu_count()} cores"
    print(f"{machine}, {instruction_set().name}, load {os.getloadavg()[0]:.1f}")
    deepsparse = Deepsparse(options.deepsparse) if options.deepsparse else None
    columns = ["model", "images", "threads", "onnxruntime", "seam", "onnxruntime/seam", "onnxruntime/seam_least"]
    columns += ["deepsparse", "deepsparse/seam", "deepsparse/seam_least"] if deepsparse else []
    print("milliseconds: medians; ratios: medians over rounds, and of the least times")
    print("  ".join(columns))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in models(options, Path(folder)):
            for images in options.images:
                for threads in options.threads:
                    rows.append(measure(name, path, images, threads, deepsparse, options.seconds))
                    print("  ".join(f"{rows[-1][name]!s:>{len(name)}}" for name in columns), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()

"""How close a search comes to what the machine can do: `make bench`. docs/benchmarks.md explains each number.

Functions are timed in turn (A, B, A, B, ...) within one run. The result is the median of the pairs' ratios with its
quartiles, so that the numbers hold on a noisy machine.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seam.bench.epoch import epoch, inputs
from seam.bench.jobs import start, targets
from seam.bench.memory import memory
from seam.bench.rendering import machine, render
from seam.bench.step import stack, step
from seam.bench.timing import Options, Row
from seam.bench.yardstick import yardstick
from seam.device import select_device
from seam.errors import UserError
from seam.files import write_json, write_text
from seam.memory import keep_memory

ITEMS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "step": step,
    "yardstick": yardstick,
    "input": inputs,
    "epoch": epoch,
    "start": start,
    "targets": targets,
    "stack": stack,
    "memory": memory,
}


def run(items: list[str], options: Options) -> dict[str, Any]:
    """Measure the items and return {"machine", "rows", "tables"}; print on the standard error what is measured."""
    result: dict[str, Any] = {"machine": machine(options.device), "rows": [], "tables": []}
    for name in items:
        print(f"{name}: {(ITEMS[name].__doc__ or '').strip()}", file=sys.stderr, flush=True)
        for entry in ITEMS[name](options):
            result["tables" if "table" in entry else "rows"].append(entry)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run the command with these arguments, or those of the command line; a user's mistake ends it in one sentence."""
    parser = argparse.ArgumentParser(description=textwrap.dedent(__doc__ or "").strip())
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps; of cuda a precision, as cuda/float32")
    parser.add_argument("--items", nargs="+", choices=ITEMS, default=list(ITEMS), metavar="ITEM", help=", ".join(ITEMS))
    parser.add_argument("--architectures", nargs="+", default=["resnet20", "vgg16_bn"], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=15, help="pairs of each comparison")
    parser.add_argument("--output", default="results/benchmarks/bench.json", type=Path)
    given = parser.parse_args(arguments)
    keep_memory()  # as the jobs
    try:
        options = Options(select_device(given.device), given.device, given.architectures, given.repeats)
        result = run(given.items, options)
        write_json(given.output, result)
        write_text(given.output.with_suffix(".txt"), render(result))
    except UserError as error:
        sys.exit(f"Error: {error}")
    print(render(result), end="")

"""Measure a model of a result folder, or of a folder that `seam shrink` wrote, on labelled images.

The images are a folder with CLASS folders, or with test/CLASS (or val/CLASS) of which these are taken, or a CSV file.
Classes are matched with the model's by name. For a model that tells a class from the rest, every other class counts as
the rest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

NAME = "evaluate"
HELP = "measure a model on labelled images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of seam shrink, or a result folder")
    parser.add_argument("--data", required=True, metavar="D", help="the images: a folder or a CSV file")
    parser.add_argument("--size", type=int, metavar="PX", help="size of the images (default: what the folder says)")
    parser.add_argument(
        "--architecture", metavar="A", help="file.py:function, if a result folder needs one; its code runs"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON alone")


def run(options: argparse.Namespace) -> int:
    """Print the accuracy, that of each class, and the confusion matrix."""
    from seam.delivery.card import counted, listed, percent
    from seam.delivery.evaluating import evaluate_folder
    from seam.errors import printable
    from seam.memory import use_threads

    def show(text: str) -> None:  # names of classes come from the folder
        print(printable(text))

    use_threads(1)
    results = evaluate_folder(options.folder, options.data, options.size, options.device, options.architecture)
    if options.json:
        print(json.dumps(results, indent=2))
        return 0
    low, high = results["interval"]
    number = f"{percent(results['accuracy'], 2)} of {counted(results['images'], 'image')}"
    show(f"accuracy           {number} (95 % interval {percent(low)} to {percent(high)})")
    show(f"balanced accuracy  {percent(results['balanced_accuracy'], 2)}, the mean of the classes")
    if left := results["left_out"]:
        show(f"left out           {listed(left)}: the model does not know {'it' if len(left) == 1 else 'them'}")
    width = max(map(len, results["classes"]))
    show("\nof the images of     were called")
    for name, row in zip(results["classes"], results["confusion"], strict=True):
        rates = results["per_class"].get(name)
        share = f"{percent(rates['accuracy'], 2):>8} right" if rates else "   no images"
        show(
            f"  {name:<{width}}  {share}  "
            + "  ".join(f"{n} {other}" for n, other in zip(row, results["classes"], strict=True))
        )
    return 0

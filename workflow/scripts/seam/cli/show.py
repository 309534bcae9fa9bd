"""Print what a result folder holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from seam.errors import UserError, one_line, printable
from seam.files import read_json

NAME = "show"
HELP = "print what a result folder holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="such as results/direct/MODEL/binary/TARGET")


def run(options: argparse.Namespace) -> int:
    """Print the lines of `describe`."""
    print("\n".join(describe(options.folder)))
    return 0


def describe(folder: Path) -> list[str]:
    """Return the lines that describe a re-engineered model, a student or a source model in its result folder.

    Raises UserError if the folder holds none of them, or one that is not finished.
    """
    kinds = {
        "masks": ("re-engineered model", _target),
        "student": ("student", _student),
        "source": ("source model", _source),
    }
    name = next((name for name in kinds if (folder / f"{name}.safetensors").is_file()), None)
    if name is None or not (folder / "metrics.json").is_file():
        raise UserError(
            f"{folder} is not the folder of a finished result: give one that holds metrics.json beside "
            "masks.safetensors, student.safetensors or source.safetensors."
        )
    title, describe_rows = kinds[name]
    try:
        rows = describe_rows(folder)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder} holds no result of this version ({one_line(error)}): run the workflow again to make it."
        ) from error
    return [printable(line) for line in (f"{title} in {folder}", *(f"  {key:<18}{rows[key]}" for key in rows))]


def _target(folder: Path) -> dict[str, str]:
    metrics = read_json(folder / "metrics.json")
    accuracy = metrics["accuracy"]
    rows = {
        "source model": f"{metrics['model']} (data set {metrics['dataset']})",
        "target problem": f"{metrics['problem']} {metrics['target']}: {', '.join(metrics['classes'])}",
        "accuracy": f"{accuracy['reengineered']:.4f} (source model: {accuracy['source']:.4f})",
        "weights kept": _weights(metrics),
    }
    if (folder / "macs.json").is_file():
        macs = read_json(folder / "macs.json")
        rows["MACs"] = f"{macs['reengineered']['total']:,} (source model: {macs['source']['total']:,})"
    for path in sorted(folder.glob("latency_*.json")):
        latency = read_json(path)
        times = f"{latency['reengineered_ms_mean']:.2f} ms (source model: {latency['source_ms_mean']:.2f} ms)"
        rows[latency["engine"]] = f"{times}, {latency['batch_size']} images"
    return rows


def _student(folder: Path) -> dict[str, str]:
    metrics, training = read_json(folder / "metrics.json"), read_json(folder / "training.json")
    threshold = "" if training["threshold"] is None else f", {training['threshold']:g} of the weights removed"
    return {
        "source model": training["model"],
        "data set": training["dataset"],
        "student": f"{training['student']}{threshold}",
        "accuracy": f"{metrics['accuracy']:.4f}",
        "weights kept": _weights(training),
        "inherited defects": f"{metrics['inherited']} of {metrics['right']}",
    }


def _source(folder: Path) -> dict[str, str]:
    metrics = read_json(folder / "metrics.json")
    return {
        "data set": metrics["dataset"],
        "accuracy": f"{metrics['accuracy']:.4f} on {metrics['images']} test images",
    }


def _weights(results: dict[str, Any]) -> str:
    if results["retention"] is None:
        return f"all of {results['weights']:,}"
    return f"{results['kept']:,} of {results['weights']:,} ({results['retention']:.2%})"

"""Print what a result folder holds, or delivered folders side by side."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seam.delivery.card import counted, milliseconds, render_card
from seam.errors import UserError, one_line, printable
from seam.files import read_json
from seam.report.measured import is_of_the_model, read_metrics
from seam.reuse.cards import is_delivered, read_card, require_result

NAME = "show"
HELP = "print what a result folder holds, or compare several"
OUTDATED = "measured on an earlier model: run the workflow again"
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)  # files of strangers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER",
        help="such as results/direct/MODEL/binary/TARGET; several that seam shrink wrote become rows of one table",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Print the lines of `describe`, or of `compare` for several folders."""
    folders = options.folders
    print(printable("\n".join(describe(folders[0]) if len(folders) == 1 else describe_all(folders))))
    return 0


def describe(folder: Path) -> list[str]:
    """Return the lines that describe a delivered folder, a re-engineered model, a student or a source model.

    Raises UserError if the folder holds none of them, or one that is not finished.
    """
    with of_this_version(folder):
        return _describe(folder)


@contextlib.contextmanager
def of_this_version(folder: Path) -> Iterator[None]:
    """Raise UserError if what runs in this context stumbles over the content of a result folder."""
    try:
        yield
    except MALFORMED as error:
        raise UserError(
            f"{folder} holds no result of this version ({one_line(error)}): run the workflow again to make it."
        ) from error


def describe_all(folders: Sequence[Path]) -> list[str]:
    """Return the lines of a table of delivered folders. Raises UserError if one of them is another folder."""
    from seam.delivery.comparison import compare

    try:
        return compare(folders)
    except MALFORMED as error:
        raise UserError(
            f"One of the folders was not delivered by this version ({one_line(error)}): show each of them alone."
        ) from error


def _describe(folder: Path) -> list[str]:
    if is_delivered(folder):
        return render_card(read_card(folder)).splitlines()
    kinds = {
        "masks": ("re-engineered model", _target),
        "student": ("student", _student),
        "source": ("source model", _source),
    }
    require_result(folder, *(f"{name}.safetensors" for name in kinds))
    name = next(name for name in kinds if (folder / f"{name}.safetensors").is_file())
    if not (folder / "metrics.json").is_file():
        raise UserError(f"{folder} holds no finished result, since metrics.json is missing: run the workflow again.")
    title, rows = kinds[name]
    return [f"{title} in {folder}", *(f"  {key:<18}{value}" for key, value in rows(folder).items())]


def _target(folder: Path) -> dict[str, str]:
    metrics = read_metrics(folder)
    accuracy = metrics["accuracy"]
    rows = {
        "source model": f"{metrics['model']} (data set {metrics['dataset']})",
        "target problem": f"{metrics['problem']} {metrics['target']}: {', '.join(metrics['classes'])}",
        "accuracy": f"{accuracy['reengineered']:.4f} (source model: {accuracy['source']:.4f})",
        "weights kept": _weights(metrics),
    }
    if metrics.get("decided_by") == "balanced_accuracy":
        balanced = metrics["balanced_accuracy"]
        rows["balanced accuracy"] = f"{balanced['reengineered']:.4f} (source model: {balanced['source']:.4f})"
    if recovery := metrics.get("recovery"):
        rows["recovery"] = f"{recovery['epochs']} epochs, accuracy before it {recovery['accuracy']['before']:.4f}"
    if metrics.get("settings", {}).get("granularity") == "channel":
        gone = metrics.get("branches_removed")
        removed = "whole channels" + (f", and the residual branches {', '.join(gone)}" if gone else "")
        rows["removed"] = f"{removed}: the model is smaller and has no zeros"
    if (folder / "macs.json").is_file():
        macs = read_json(folder / "macs.json")
        counts = f"{macs['reengineered']['total']:,} (source model: {macs['source']['total']:,})"
        rows["MACs"] = counts if is_of_the_model(macs, folder) else OUTDATED
    for path in sorted(folder.glob("latency_*.json")):
        latency = read_json(path)
        if not is_of_the_model(latency, folder):
            rows[latency["engine"]] = OUTDATED
            continue
        first, statistic = latency["measurements"][0], latency["statistic"]
        fast, slow = (first[name][f"{statistic}_ms"] for name in ("reengineered", "source"))
        size, threads = first["batch_size"], first["threads"]
        rows[latency["engine"]] = (
            f"{milliseconds(fast)} (source model: {milliseconds(slow)}, {slow / fast:.2f} times as fast; "
            f"{counted(size, 'image')}, {counted(threads, 'thread')}; "
            f"version {latency['version']}, gains from zeros: {'yes' if latency['gains_from_zeros'] else 'no'})"
        )
    for path in sorted(folder.glob("accuracy_*.json")):
        record = read_json(path)
        accuracy = record["accuracy"]
        text = f"{accuracy['reengineered']:.4f} (source model: {accuracy['source']:.4f})"
        rows[f"accuracy {record['engine']}"] = text if is_of_the_model(record, folder) else OUTDATED
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

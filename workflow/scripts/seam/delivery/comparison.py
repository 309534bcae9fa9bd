"""Delivered folders side by side, read from their cards without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seam.delivery.card import (
    DISTURBED_TIMES,
    Card,
    counted,
    deciding_accuracy,
    is_balanced,
    kilobytes,
    millions,
    milliseconds,
    percent,
)
from seam.errors import UserError
from seam.reuse.cards import CARD, is_delivered, read_card, require_result


def compare(folders: Sequence[Path]) -> list[str]:
    """Return the lines of a table with a row for each folder, after what forbids to compare some of its columns.

    Raises UserError if one of the folders is none that `seam shrink` or `seam export` wrote.
    """
    for folder in folders:
        if not is_delivered(folder):
            require_result(folder, CARD, "metrics.json")
            raise UserError(
                f"{folder} cannot be compared: give folders that seam shrink or seam export wrote, or this one alone."
            )
    cards = [read_card(folder) for folder in folders]
    with_threads = len({entry["threads"] for card in cards for entry in card["latency"]}) > 1
    rows = [_row(folder, card, with_threads) for folder, card in zip(folders, cards, strict=True)]
    heads = list(dict.fromkeys(name for row in rows for name in row))
    table = [heads, *([row.get(name, "") for name in heads] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
    lines = _doubts(cards)
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return lines


def _row(folder: Path, card: Card, with_threads: bool) -> dict[str, str]:
    """Return {head of the column: cell} of a folder. with_threads: whether times differ in their number of threads."""
    accuracy, size, files = card["accuracy"], card["size"], card["size"]["bytes"]
    decided, name = deciding_accuracy(card), "balanced accuracy" if is_balanced(card) else "accuracy"
    row = {
        "folder": str(folder),
        "test images": f"{card['images']['test']:,}",
        name: percent(decided["reengineered"], 2),
        "against the source model": f"{100 * (decided['reengineered'] - decided['source']):+.2f} points",
        "weights": percent(size["kept"] / size["weights"]),
        "model.onnx": kilobytes(files["model.onnx"]),
    }
    if "model-int8.onnx" in files:
        row["model-int8.onnx"] = kilobytes(files["model-int8.onnx"])
        if accuracy.get("int8") is not None:
            row["accuracy in int8"] = percent(accuracy["int8"], 2)
    if card["macs"]:
        row["MACs"] = millions(card["macs"]["reengineered"])
    for entry in card["latency"]:
        head = f"{entry['engine']}, {counted(entry['batch_size'], 'image')}"
        if with_threads:
            head += f", {counted(entry['threads'], 'thread')}"
        faster = entry["source_ms"] / entry["reengineered_ms"]
        row[head] = f"{milliseconds(entry['reengineered_ms'])} ({faster:.2f} times as fast)"
    return row


def _doubts(cards: Sequence[Card]) -> list[str]:
    """Return a sentence for each reason why numbers of the cards do not belong into one column."""
    lines = []
    if len({(card["problem"]["kind"], tuple(card["classes"])) for card in cards}) > 1:
        lines.append("! The models answer different questions: their accuracies do not compare.")
    elif len({(card["data"]["digest"], card["images"]["test"], card["seed"]) for card in cards}) > 1:
        lines.append("! The models were tested on different images: small differences of accuracy mean nothing.")
    if len({is_balanced(card) for card in cards}) > 1:
        lines.append("! Some have the balanced accuracy and others the plain one: these do not compare.")
    if len({card["source"]["sha256"] for card in cards}) > 1:
        lines.append("! The models come from different source models.")
    entries = [entry for card in cards for entry in card["latency"]]
    if len({entry["cpu"] for entry in entries}) > 1:
        lines.append("! Times were measured on different processors: they do not compare.")
    if any(entry.get("disturbed") for entry in entries):
        lines.append(DISTURBED_TIMES)
    return lines

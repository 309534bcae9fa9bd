"""The result of a benchmark as text, and the machine it ran on."""

from __future__ import annotations

import itertools
import os
import platform
from typing import Any

import torch

from seam.bench.network import BATCH, SIZE
from seam.cost.processor import describe_cpu

UNITS = ("megabytes", "searches", "seconds")  # keys of a row that hold the numbers of each side


def machine(device: torch.device) -> dict[str, Any]:
    """Return what a result says of the machine, its load included."""
    facts = {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else describe_cpu()[0],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "batch_size": BATCH,
        "pixels": SIZE,
    }
    if hasattr(os, "getloadavg"):
        facts["load_before"] = round(os.getloadavg()[0], 2)
    return facts


def render(result: dict[str, Any]) -> str:
    """Return a result {"machine", "rows", "tables"} as text."""
    facts = result["machine"]
    load = f", load {facts['load_before']} before it began" if "load_before" in facts else ""
    parts = [
        f"On {facts['name']} ({facts['device']}), {facts['cores']} cores, {facts['instructions']}{load}; "
        f"torch {facts['torch']}, batches of {facts['batch_size']} images of {facts['pixels']} px.\n"
        "Medians of pairs timed in turn, and their quartiles. A median reaches its goal if it is at most as large."
    ]
    for (item, quantity), rows in itertools.groupby(result["rows"], key=lambda row: (row["item"], row["what"])):
        parts.append(f"{item}: {quantity}\n\n{block([_cells(row) for row in rows])}")
    for table in result["tables"]:
        parts.append(f"{table['title']}\n\n{block(table['table'])}")
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any]) -> dict[str, str]:
    goal = row["goal"]
    cells = {
        "of": row["of"],
        "median": f"{row['value']:.3f}",
        "quartiles": f"{row['low']:.3f} to {row['high']:.3f}",
        "goal": "" if goal is None else f"{goal:g}: {'yes' if row['value'] <= goal else 'NO'}",
    }
    for unit in UNITS:
        if unit in row:
            cells[unit] = ", ".join(f"{name} {value:.3g}" for name, value in row[unit].items())
    return cells


def block(lines: list[dict[str, Any]]) -> str:
    """Return lines, each {column: value}, as aligned text under the names of the columns; numbers to the right."""
    columns = list(lines[0])
    cells = [columns] + [[_text(line[column]) for column in columns] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [not isinstance(value, str) for value in lines[0].values()]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in cells
    )


def _text(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)

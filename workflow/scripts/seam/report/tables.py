"""Tables of results: how they are written and read, and the names that people use for what is in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from seam.errors import UserError
from seam.files import read_csv, read_json, write_csv
from seam.log import log

# A pandas frame and a series. Type checkers take them as Any, because pandas' own types say of most expressions on
# frames that they may be something else.
Table = Any
Column = Any

# Columns of names, in any table here: text even if it looks like a number (a class may be called 3 or NA).
TEXT = [
    *["model", "dataset", "architecture", "weights_origin", "target", "search_selection", "transfer_selection"],
    *["device", "torch", "folder", "reuse", "problem", "student", "quantity", "engine", "group", "unit", "source"],
    *["phase", "version", "instruction_set", "cpu", "fallback", "gains_from_zeros", "timing_statistic"],
    *["decided_by", "search_balance", "search_initial_head", "budget", "baseline", "selection", "verdict"],
]
ENGINE_TEXT = ("version_", "gains_from_zeros_")  # columns of names that have an engine behind these words
PROBLEMS = {
    "binary": "binary",
    "group": "group",
    "multiclass": "multi-class",
    "multiclass_rest": "with rest",
}
TABLE_OF = {"binary": "binary", "group": "binary", "multiclass": "multiclass", "multiclass_rest": "multiclass"}
ENGINES = {
    "seam": "seam.engine",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-int8": "ONNX Runtime int8",
    "openvino": "OpenVINO",
    "openvino-int8": "OpenVINO int8",
    "deepsparse": "DeepSparse",
}
STUDENTS = {  # in the order in which they are shown
    "standard": "standard",
    "seam": "SeaM",
    "magnitude": "magnitude",
    "random": "random",
    "remos": "ReMoS",
    "retrain": "retrained",
}


class Record:
    """A JSON file with results. `record["accuracy", "source"]` raises a UserError that names a missing key."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.data = Path(path), read_json(path)

    def __getitem__(self, keys: str | tuple[str | int, ...]) -> Any:
        keys = keys if isinstance(keys, tuple) else (keys,)
        value = self.data
        for key in keys:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                name = ".".join(map(str, keys))
                raise UserError(f"{self.path} lacks {name}: delete it and run the workflow again.") from error
        return value

    def select(self, *names: str) -> dict[str, Any]:
        """Return {name: value} of these keys."""
        return {name: self[name] for name in names}


def records(paths: Iterable[str | Path]) -> dict[Path, Record]:
    """Return the JSON files by the folder that they lie in."""
    return {Path(path).parent: Record(path) for path in paths}


def missing_file(path: str | Path) -> UserError:
    """Return the error for a file of results that does not exist."""
    return UserError(f"{path} is missing: run the workflow again to make it.")


def with_others(known: list[str], names: Iterable[str]) -> list[str]:
    """Return the known names of settings, then any others in alphabetical order."""
    return known + sorted(set(names) - set(known))


def engine_name(engine: str) -> str:
    """Return how people write an engine's name: `onnxruntime` is ONNX Runtime."""
    return ENGINES.get(engine, engine)


def engines(table: Table) -> list[str]:
    """Return the engines that a table of problems has columns for, in the table's order."""
    return [name.removeprefix("speedup_") for name in table.columns if name.startswith("speedup_")]


def time_saved(table: Table, engine: str) -> Column:
    """Return by how many per cent each re-engineered model is faster than its source model."""
    return 100 * (1 - table[f"latency_reengineered_ms_{engine}"] / table[f"latency_source_ms_{engine}"])


def speedup_over_onnxruntime(table: Table, engine: str) -> Column:
    """Return how many times as fast an engine runs each re-engineered model as ONNX Runtime runs its source model.

    NaN if ONNX Runtime has not timed the source model.
    """
    latency = table[f"latency_reengineered_ms_{engine}"]
    baseline = table.get("latency_source_ms_onnxruntime")
    return latency * float("nan") if baseline is None else baseline / latency


def all_problems(binary: Table, multiclass: Table) -> Table:
    """Return both tables of problems as one, with the kind of problem in the column `problem`."""
    tables = [with_problem(table, kind) for kind, table in (("binary", binary), ("multiclass", multiclass))]
    # A table without rows has no types to give to the numbers of the other one.
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def with_problem(table: Table, kind: str) -> Table:
    """Return the table with the column `problem`, which tables of earlier versions lack: all are of one kind there."""
    return table if "problem" in table else table.assign(problem=kind)


def deciding(table: Table, name: str) -> Column:
    """Return the accuracy that decides in each problem, plain or balanced; name: such as `accuracy_source`."""
    if "decided_by" not in table:
        return table[name]
    return table[name].where(table["decided_by"] != "balanced_accuracy", table[f"balanced_{name}"])


def threshold_key(threshold: float | None) -> float | None:
    """Return a threshold as people write it, for use as a key; None for a student without one (None or NaN)."""
    return None if threshold is None or threshold != threshold else round(threshold, 9)


def student_name(student: str, threshold: float | None = None) -> str:
    """Return how people write a student's name: `seam` at 0.6 is SeaM, t = 0.6."""
    name, threshold = STUDENTS.get(student, student), threshold_key(threshold)
    return name if threshold is None else f"{name}, t = {threshold:g}"


def published_students(published: Table) -> dict[tuple[str, str, str, str, float | None], float]:
    """Return {(quantity, architecture, data set, student, threshold or None): published value in per cent}."""
    rows = published[(published["reuse"] == "indirect") & (published["student"] != "")]
    return {
        (row.quantity, row.architecture, row.dataset, row.student, threshold_key(row.threshold)): row.value
        for row in rows.itertuples()
    }


def read_table(path: str | Path) -> Table:
    """Return the table in a CSV file.

    Floats are bit for bit those that were written. An empty cell is NaN, in a column of text "".
    Raises UserError if the file is missing, damaged or not a table.
    """
    names = read_csv(path, nrows=0).columns
    text = [*TEXT, *(name for name in names if name.startswith(ENGINE_TEXT))]
    table = read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
    for name in table.columns:
        if name in text:
            table[name] = table[name].fillna("").astype(object)
        elif table.empty:  # pandas takes a column without values for text
            table[name] = table[name].astype(float)
    return table


def write_table(path: str | Path, table: Table, content: str) -> None:
    """Write a table as a CSV file, and how many rows of `content` it has to the log."""
    write_csv(path, table)
    log.info("%s: %s: %d", path, content, len(table))

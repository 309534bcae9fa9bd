"""Tidy tables: what they are collected from, read back exactly as written, the names in them as a person says them."""

from pathlib import Path

from seam.errors import UserError
from seam.files import read_json

# Columns of names, in any table here: text even where it looks like a number (a class may be called 3 or NA).
TEXT = [
    "model",
    "dataset",
    "architecture",
    "weights_origin",
    "target",
    "search_selection",
    "transfer_selection",
    "device",
    "torch",
    "folder",
    "reuse",
    "problem",
    "student",
    "quantity",
    "engine",
    "group",
    "unit",
    "source",
    "phase",
]
PROBLEMS = {"binary": "binary", "multiclass": "multi-class"}
ENGINES = {"deepsparse": "DeepSparse", "onnxruntime": "ONNX Runtime"}
STUDENTS = {  # in the order in which they are shown
    "standard": "standard",
    "seam": "SeaM",
    "magnitude": "magnitude",
    "random": "random",
    "retrain": "retrained",
}


class Record:
    """A JSON file whose missing keys are named: `record["accuracy", "source"]`."""

    def __init__(self, path):
        self.path, self.data = Path(path), read_json(path)

    def __getitem__(self, keys):
        value = self.data
        for key in keys if isinstance(keys, tuple) else (keys,):
            try:
                value = value[key]
            except (KeyError, TypeError) as error:
                name = ".".join(keys) if isinstance(keys, tuple) else keys
                raise UserError(f"{self.path} lacks {name}: delete it and run the workflow again.") from error
        return value


def records(paths):
    """The JSON files by the folder that they lie in."""
    return {Path(path).parent: Record(path) for path in paths}


def engine_name(engine):
    """How a person writes an engine's name: `onnxruntime` is ONNX Runtime."""
    return ENGINES.get(engine, engine)


def engines(table):
    """The engines that a table of problems has columns for, in the table's order."""
    return [name.removeprefix("speedup_") for name in table.columns if name.startswith("speedup_")]


def same_threshold(threshold):
    """A threshold as a key: a number as people write it, None for a student without one (None or NaN)."""
    return None if threshold is None or threshold != threshold else round(threshold, 9)


def student_name(student, threshold=None):
    """How a person writes a student's name: `seam` at 0.6 is SeaM, t = 0.6."""
    name, threshold = STUDENTS.get(student, student), same_threshold(threshold)
    return name if threshold is None else f"{name}, t = {threshold:g}"


def published_students(published):
    """{(quantity, architecture, data set, student, threshold or None): value in per cent} of indirect reuse."""
    rows = published[(published["reuse"] == "indirect") & (published["student"] != "")]
    return {
        (row.quantity, row.architecture, row.dataset, row.student, same_threshold(row.threshold)): row.value
        for row in rows.itertuples()
    }


def read_table(path):
    """A CSV file as a pandas frame. Floats are bit for bit those written; an empty cell is NaN, in a text column "".

    Raises UserError where the file is missing or is not a table.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run the workflow again to make it.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a table ({error}): delete it and run the workflow again.") from error
    for name in table.columns:
        if name in TEXT:
            table[name] = table[name].fillna("").astype(object)
        elif table.empty:  # pandas takes a column without values for text
            table[name] = table[name].astype(float)
    return table

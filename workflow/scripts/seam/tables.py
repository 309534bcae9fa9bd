"""Tidy tables: read back exactly as they were written, and the names in them as a person says them."""

from seam.files import UserError

# Columns of names, in any table here: text even where it looks like a number (a class may be called 3 or NA).
TEXT = [
    "model",
    "dataset",
    "architecture",
    "weights_origin",
    "target",
    "search_selection",
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


def engine_name(engine):
    """How a person writes an engine's name: `onnxruntime` is ONNX Runtime."""
    return ENGINES.get(engine, engine)


def engines(table):
    """The engines that a table of problems has columns for, in the table's order."""
    return [name.removeprefix("speedup_") for name in table.columns if name.startswith("speedup_")]


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

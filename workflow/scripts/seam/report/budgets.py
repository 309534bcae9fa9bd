"""The table of budgets of time: predicted and measured times, and which budgets are missed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from seam.log import log
from seam.report.tables import Table, records, write_table

COLUMNS = [
    *["model", "dataset", "problem", "target", "engine", "batch", "threads", "budget_ms", "predicted_ms"],
    *["measured_ms", "minimum_ms", "source_predicted_ms", "source_measured_ms", "missed"],
]


def budgets(paths: Iterable[str | Path]) -> Table:
    """Return the table of budgets, from the paths of the budget_latency.json, in their order."""
    rows = [record.select(*COLUMNS) for record in records(paths).values()]
    return pd.DataFrame(rows, columns=COLUMNS)


def write_budgets(path: str | Path, paths: Iterable[str | Path]) -> None:
    """Write the table, and its sentences to the log."""
    table = budgets(paths)
    write_table(path, table, "budgets")
    for sentence in sentences(table):
        log.info(sentence)


def sentences(table: Table) -> Iterator[str]:
    """Yield a sentence for each budget that is missed, and one on the others."""
    for row in table[table["missed"]].itertuples():
        yield (
            f"Budget missed: {row.model}, {row.target} takes {row.measured_ms:.3g} ms of {row.budget_ms:g} in "
            f"{row.engine}, with {row.predicted_ms:.3g} predicted."
        )
    met = int((~table["missed"]).sum())
    if met:
        error = 100 * (table["predicted_ms"] / table["measured_ms"] - 1).abs().mean()
        yield f"Budgets of time: {met} of {len(table)} met; predictions differ by {error:.0f} % in the mean."

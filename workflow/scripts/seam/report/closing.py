"""What the terminal shows at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from seam.report.budgets import sentences
from seam.report.losses import LOST_POINTS, lost
from seam.report.small_models import small_models
from seam.report.summary import render
from seam.report.tables import PROBLEMS, all_problems, read_table

MOST_LINES = 5  # results that lost accuracy


def closing_lines(tables: str | Path, report: str | Path | None, budgets: bool = True) -> Iterator[str]:
    """Yield the summary, models without channels, results that lost accuracy, budgets, and where everything is.

    tables: the folder of the tables. report: the path of the report, which is left out if it is not there or older
    than the summary. budgets: whether the config has budgets of time: a table of them may be an earlier config's.
    """
    tables = Path(tables)
    yield "\n" + render(read_table(tables / "summary.csv"))
    binary, multiclass = (read_table(tables / f"direct_{kind}.csv") for kind in ("binary", "multiclass"))
    problems = all_problems(binary, multiclass)
    small = list(small_models(problems))
    if small:
        yield "\n" + "\n".join(small)
    worse = lost(problems)
    if len(worse):
        yield f"\n{len(worse)} of {len(problems)} results lost more than {LOST_POINTS:g} points of accuracy:"
        for row in worse.head(MOST_LINES).to_dict("records"):
            kind = PROBLEMS.get(row["problem"], row["problem"])
            yield f"  {row['model']}, {kind}: {row['target']}: {row['lost_points']:.1f} points ({row['folder']})"
        if len(worse) > MOST_LINES:
            yield f"  and {len(worse) - MOST_LINES} more"
    if budgets and (tables / "latency_budgets.csv").is_file():
        yield "\n" + "\n".join(sentences(read_table(tables / "latency_budgets.csv")))
    yield f"\nTables are in {tables}, figures in {tables.parent / 'figures'}, models in {tables.parent / 'direct'}."
    if report is not None and _is_newer(Path(report), tables / "summary.csv"):
        yield f"Everything on one page: {report}"


def _is_newer(file: Path, other: Path) -> bool:
    return file.is_file() and file.stat().st_mtime_ns >= other.stat().st_mtime_ns

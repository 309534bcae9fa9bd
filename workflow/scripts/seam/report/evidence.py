"""The evidence of several runs, such as those of several seeds: methods of direct reuse, and students, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from seam.errors import UserError
from seam.report.baselines import NAMES, RECOVERED, baseline_name
from seam.report.indirect_evidence import indirect_evidence, read_students, render_students
from seam.report.intervals import bootstrap
from seam.report.tables import PROBLEMS, Table, all_problems, deciding, read_table, write_table

KEY = ["model", "problem", "target", "seed"]  # a row of the tables of target problems
GROUP = ["architecture", "model", "dataset", "problem", "granularity", "selection"]  # methods are compared within one
COLUMNS = [
    *[*GROUP, "method", "problems", "seeds", "images_test", "right", "retention", "accuracy", "accuracy_source"],
    *["gain_points", "gain_low", "gain_high", "accuracy_source_restricted"],
    *["gain_restricted_points", "gain_restricted_low", "gain_restricted_high"],
    *["search_over_points", "search_over_low", "search_over_high"],
]
NUMBERS = ["retention", "accuracy", "accuracy_source", "accuracy_source_restricted"]
DIFFERENCES = {"gain": "gain", "gain_restricted": "gain_restricted", "over": "search_over"}  # column: start of names
BEFORE = "_before_recovery"  # the end of a column's name
SELECTIONS = {"test": "published selection", "holdout": "held out", "last": "last epoch"}
SEARCHES = {"search": "search", "search" + RECOVERED: "search, recovered"}
PAPER = {"retention": 0.1011, "gain_points": 5.85}  # means over the whole evaluation of the paper, in published.csv too


def read_runs(folders: Iterable[str | Path]) -> tuple[Table, Table]:
    """Return the target problems and the baselines of runs, one row each, from their results/tables.

    Raises UserError if a run has no table, or if two runs have the same seed of a target problem.
    """
    problems, baselines = [], []
    for folder in map(Path, folders):
        tables = folder / "results" / "tables"
        problems.append(all_problems(*(read_table(tables / f"direct_{kind}.csv") for kind in ("binary", "multiclass"))))
        if (tables / "baselines.csv").is_file():
            rows = read_table(tables / "baselines.csv")
            _require_same_searches(tables, problems[-1], rows)
            baselines.append(rows)
    if not problems:
        raise UserError("Name the folders of the runs to collect: each holds a folder results.")
    table = pd.concat(problems, ignore_index=True)
    twice = table[table.duplicated(KEY)]
    if len(twice):
        row = twice.iloc[0]
        raise UserError(
            f"Two of the runs have seed {row['seed']} of {row['model']}, {row['problem']} {row['target']}: leave one "
            "out, or give the second run another seed."
        )
    return table, pd.concat(baselines, ignore_index=True) if baselines else pd.DataFrame()


def _require_same_searches(tables: Path, problems: Table, baselines: Table) -> None:
    """Raise UserError if baselines were compared with other searches than those of the target problems.

    A run without baselines leaves the table of an earlier one.
    """
    columns = [f"{kind}{end}" for kind in ("accuracy", "balanced_accuracy") for end in ("_reengineered", BEFORE)]
    accuracies = problems.reindex(columns=[*KEY, *columns])
    both = baselines[[*KEY, "accuracy_search"]].merge(accuracies, "left", on=KEY)
    differences = both[columns].sub(both["accuracy_search"], axis=0).abs()
    if (differences.min(axis=1).fillna(1.0) > 1e-9).any():
        raise UserError(
            f"{tables / 'baselines.csv'} is of other searches than {tables / 'direct_binary.csv'}: run the workflow "
            "again with baselines, or delete the file."
        )


def evidence(problems: Table, baselines: Table) -> Table:
    """Return one row per model, data set, kind of problem, granularity and selection of the search, and method.

    Methods are the search before and after its recovery, and the baselines. Accuracies, which are balanced ones where
    these decide the search, retentions and gains over the source model are means over target problems, each the mean
    over its seeds; intervals are those of `bootstrap` over the problems. `right` counts images. The restricted gain is
    over the source model with only the target's classes to choose from. `search_over_points` is the search's accuracy
    less the baseline's, paired by problem and seed. As in `seam.report.baselines`, recovered
    baselines and those of channels are compared with the search after its recovery.
    """
    named = problems.assign(
        granularity=problems.get("search_granularity", "weight"),
        selection=problems["search_selection"],
        accuracy_source=deciding(problems, "accuracy_source"),
        accuracy_source_restricted=deciding(problems, "accuracy_source_restricted"),
        over=float("nan"),
    ).fillna({"granularity": "weight"})  # tables leave the default out
    before, has_recovery = named.copy(), pd.Series(False, index=named.index)
    for kind in ("accuracy", "balanced_accuracy"):
        if kind + BEFORE in named:
            earlier = named[kind + BEFORE]
            before[f"{kind}_reengineered"] = earlier.fillna(named[f"{kind}_reengineered"])
            has_recovery |= earlier.notna()
    searches = {"search": before, "search" + RECOVERED: named[has_recovery]}
    parts = [
        table.assign(
            method=method,
            accuracy=deciding(table, "accuracy_reengineered"),
            right=(table["accuracy_reengineered"] * table["images_test"]).round(),
        )
        for method, table in searches.items()
    ]
    if len(baselines):
        source_rows = baselines[[*KEY, "images_test", "accuracy_source"]].assign(
            method=baselines["baseline"],
            retention=baselines["retention_baseline"],
            accuracy=baselines["accuracy_baseline"],
            right=baselines["right_baseline"],
            over=baselines["difference_points"],
        )
        parts.append(source_rows.merge(named[[*GROUP, "target", "seed", "accuracy_source_restricted"]], "left", on=KEY))
    columns = [*GROUP, "method", "target", "seed", "images_test", "right", *NUMBERS, "over"]
    table = pd.concat([part[columns] for part in parts if len(part)], ignore_index=True)
    table["gain"] = 100 * (table["accuracy"] - table["accuracy_source"])
    table["gain_restricted"] = 100 * (table["accuracy"] - table["accuracy_source_restricted"])
    rows = []
    groups: Any = table.groupby([*GROUP, "method"], sort=False, dropna=False)
    for names, group in groups:
        means: Table = group.groupby("target")[[*NUMBERS, *DIFFERENCES]].mean()
        values = {
            **dict(zip([*GROUP, "method"], names, strict=True)),
            "problems": len(means),
            "seeds": group["seed"].nunique(),
            "images_test": int(group["images_test"].sum()),
            "right": int(group["right"].sum()),
            **means[NUMBERS].mean().to_dict(),
        }
        for column, name in DIFFERENCES.items():
            low, high = bootstrap(list(means[column].round(9).dropna()))
            values |= {f"{name}_points": means[column].mean(), f"{name}_low": low, f"{name}_high": high}
        rows.append(values)
    result = pd.DataFrame(rows, columns=COLUMNS)
    for name, order in (("selection", list(SELECTIONS)), ("method", [*SEARCHES, *NAMES])):
        result[f"{name}_order"] = [order.index(each) if each in order else len(order) for each in result[name]]
    by = [*GROUP[:-1], "selection_order", "method_order"]
    return result.sort_values(by, kind="stable", ignore_index=True)[COLUMNS]


def render(table: Table) -> str:
    """Return the table as Markdown, each cell with its counts or interval; the paper's means are the first line.

    Like for like: the gain over the source model with only the target's classes to choose from.
    """
    heads = ["model", "data set", "search", "method", "problems x seeds", "weights kept", "accuracy"]
    heads += ["right of images", "gain over source (95 %)", "like for like (95 %)", "search ahead by (95 %)"]
    lines = [heads, ["---"] * len(heads)]
    gain = f"{PAPER['gain_points']:+.2f}"
    lines.append(
        ["all of the paper", "", "", "paper", "304", f"{100 * PAPER['retention']:.2f} %", "", "", gain, "", ""]
    )
    for each in table.itertuples():
        selection = SELECTIONS.get(each.selection, each.selection)
        lines.append(
            [
                str(each.model),
                f"{each.dataset}, {PROBLEMS.get(str(each.problem), each.problem)}",
                f"{each.granularity}s, {selection}",
                SEARCHES.get(each.method) or baseline_name(each.method),
                f"{each.problems} x {each.seeds}",
                f"{100 * each.retention:.1f} %",
                f"{100 * each.accuracy:.2f} %",
                f"{each.right} of {each.images_test}",
                _with_interval(each.gain_points, each.gain_low, each.gain_high),
                _with_interval(each.gain_restricted_points, each.gain_restricted_low, each.gain_restricted_high),
                _with_interval(each.search_over_points, each.search_over_low, each.search_over_high),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_interval(value: Any, low: Any, high: Any) -> str:
    if value != value:
        return ""
    return f"{value:+.2f}" + ("" if low != low else f" ({low:+.2f} to {high:+.2f})")


def collect(path: str | Path, folders: Iterable[str | Path]) -> str:
    """Write the evidence of runs to `path`, a CSV file; return it as Markdown.

    Students of indirect reuse have a table of their own, whose name ends in `_indirect`. A table without rows is left
    out of the Markdown. Raises UserError if the runs have neither target problems nor students.
    """
    folders, parts = list(folders), []
    problems, baselines = read_runs(folders)
    students = read_students(folders)
    if len(problems):
        table = evidence(problems, baselines)
        write_table(path, table, "methods")
        parts.append(render(table))
    if len(students):
        table = indirect_evidence(students)
        write_table(Path(path).with_stem(f"{Path(path).stem}_indirect"), table, "students")
        parts.append(render_students(table))
    if not parts:
        raise UserError("The runs have no results yet: run the workflow in their folders first.")
    return "\n\n".join(parts)

"""Means over all target problems beside the published values: a table, and a text for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from seam.errors import UserError
from seam.files import write_csv
from seam.log import log
from seam.report.baselines import render_summary, summary_rows
from seam.report.tables import (
    PROBLEMS,
    STUDENTS,
    TABLE_OF,
    Column,
    Table,
    all_problems,
    deciding,
    engine_name,
    engines,
    read_table,
    speedup_over_onnxruntime,
    student_name,
    time_saved,
)

COLUMNS = [
    *["quantity", "engine", "student", "threshold", "group", "problems", "problems_as_published"],
    *["problems_selected_on_test", "ours_mean", "published", "unit", "version", "gains_from_zeros"],
]
WIDTH = 79  # characters of a line of text
THRESHOLD = 0.6  # SeaM's own: students are compared at this threshold, or at the nearest one
NONE = float("nan")
FACTS = ("version", "gains_from_zeros")  # of an engine
ENGINE_QUANTITIES = ("speedup", "speedup_over_onnxruntime", "accuracy_change_int8")  # the text has a block for these
MASKED = ["seam", "magnitude", "random"]  # the students that have a threshold
PUBLISHED_WEIGHTS = ["hub", "IMAGENET1K_V1"]  # of the source models that the paper re-engineered


# The table


def quantities(table: Table) -> Iterator[tuple[str, str, str, Column]]:
    """Yield (quantity, engine, unit, value of each problem) of everything that is summarised."""
    yield "weights_kept", "", "%", 100 * table["retention"]
    for engine in engines(table):
        yield "inference_time_reduction", engine, "%", time_saved(table, engine)
        yield "speedup", engine, "times", table[f"speedup_{engine}"]
        yield "speedup_over_onnxruntime", engine, "times", speedup_over_onnxruntime(table, engine)
        if (after := table.get(f"accuracy_reengineered_{engine}")) is not None:
            yield "accuracy_change_int8", engine, "points", 100 * (after - table["accuracy_reengineered"])
    yield "macs_reduction", "", "%", 100 * table["macs_reduction"]
    yield "accuracy_gain", "", "points", table["accuracy_gain_points"]
    restricted = 100 * (deciding(table, "accuracy_reengineered") - deciding(table, "accuracy_source_restricted"))
    yield "accuracy_gain_restricted", "", "points", restricted
    if "budget_met" in table:
        yield "budget_met", "", "%", 100 * table["budget_met"]


def as_published(table: Table, evaluation: Table, names: list[str]) -> Column:
    """Return for each row whether it is one of the published evaluation.

    It is one if its source model has published weights, and if its values in the columns `names` are those of a row of
    `evaluation`.
    """
    known = set(evaluation[names].itertuples(index=False, name=None))
    same = [values in known for values in table[names].itertuples(index=False, name=None)]
    return pd.Series(same, index=table.index, dtype=bool) & table["weights_origin"].isin(PUBLISHED_WEIGHTS)


def published_value(published: Table, quantity: str, engine: str, group: str) -> float:
    """Return the paper's value of a quantity over its whole evaluation; NaN if it gives none."""
    if group != "all":
        return NONE
    overall = published[(published["reuse"] == "direct") & (published["architecture"] == "")]
    values = overall[(overall["quantity"] == quantity) & (overall["engine"] == engine)]["value"]
    return values.iloc[0] if len(values) else NONE


def engine_fact(table: Table, name: str, engine: str) -> str:
    """Return the values, mostly a single one, of an engine's column of text."""
    return ", ".join(sorted({value for value in table[f"{name}_{engine}"] if isinstance(value, str) and value}))


def direct_rows(binary: Table, multiclass: Table, published: Table) -> list[list[Any]]:
    """Return a row per quantity (and engine) and group of problems: all, binary, multiclass."""
    table = all_problems(binary, multiclass)
    evaluation = published[(published["reuse"] == "direct") & (published["quantity"] == "problems")]
    same = as_published(table, evaluation, ["architecture", "dataset", "problem"])
    on_test = table["search_selection"] == "test"
    kinds = [kind for kind in PROBLEMS if kind in TABLE_OF.values() or kind in set(table["problem"])]
    rows = []
    for quantity, engine, unit, values in quantities(table):
        facts = [engine_fact(table, name, engine) if engine else "" for name in FACTS]
        for group in ("all", *kinds):
            chosen = values[(group == "all") | (table["problem"] == group)].dropna()
            value = published_value(published, quantity, engine, group)
            counts = len(chosen), int(same[chosen.index].sum()), int(on_test[chosen.index].sum())
            mean = chosen.mean() if len(chosen) else NONE
            rows.append([quantity, engine, "", NONE, group, *counts, mean, value, unit, *facts])
    return rows


def compared(table: Table) -> Table:
    """Return the students to compare: those with masks at one threshold of their model and data set, and all others.

    The threshold is that of SeaM's which is nearest to 0.6, the lower of two; without SeaM, that of any student.
    """
    chosen = []
    for _, rows in table.groupby(["model", "dataset"], sort=False):
        seam = rows[rows["student"] == "seam"]
        thresholds = (seam if len(seam) else rows)["threshold"].dropna().unique()
        nearest = min(thresholds, key=lambda threshold: (abs(threshold - THRESHOLD), threshold), default=None)
        chosen.append(rows[rows["threshold"].isna() | (rows["threshold"] == nearest)])
    return pd.concat(chosen) if chosen else table


def indirect_rows(table: Table, published: Table) -> list[list[Any]]:
    """Return a row for SeaM's reduction of inherited defects, then a row per student for its accuracy and its DIR.

    A published value of a student is the mean over the same problems, and empty unless each of them has one.
    """
    evaluation = published[published["reuse"] == "indirect"]
    overall = evaluation[evaluation["quantity"] == "inherited_defects_reduction"]["value"].iloc[0]
    table = compared(table)

    def row(quantity: str, student: str, value: float | None = None) -> list[Any]:
        rows = table[table["student"] == student]
        thresholds = rows["threshold"].unique()
        rows = rows[rows[quantity].notna()]
        same = as_published(rows, evaluation, ["architecture", "dataset"])
        if value is None:
            value = 100 * rows[f"published_{quantity}"].mean(skipna=False)
        threshold = thresholds[0] if len(thresholds) == 1 else NONE
        on_test = int((rows["transfer_selection"] == "test").sum())
        numbers = len(rows), int(same.sum()), on_test, 100 * rows[quantity].mean(), value
        return [quantity, "", student, threshold, "indirect", *numbers, "%", "", ""]

    students = [student for student in STUDENTS if student in set(table["student"])]
    return [
        row("inherited_defects_reduction", "seam", overall),
        *(row(quantity, student) for quantity in ("accuracy", "defect_inheritance_rate") for student in students),
    ]


def summarise(
    binary: Table, multiclass: Table, indirect: Table, published: Table, baselines: Table | None = None
) -> Table:
    """Return one row per quantity and group of problems (in indirect reuse: per student), from the tables.

    baselines: the table of baselines, if there are any; each has its rows, with its name in the column `student`.
    `problems` counts those with a value of the quantity. The mean is over them, and empty if there are none.
    `problems_as_published` counts those among them that belong to the published evaluation.
    """
    rows = direct_rows(binary, multiclass, published) + indirect_rows(indirect, published)
    if baselines is not None:
        rows += summary_rows(baselines)
    return pd.DataFrame(rows, columns=COLUMNS)


# The text


def label(quantity: str, engine: str, unit: str, measured: int, problems: int) -> str:
    """Return the name of a line of numbers: "time saved, DeepSparse (%; 3 of 5)" if two problems have no value."""
    name = {
        "weights_kept": "weights kept",
        "inference_time_reduction": f"time saved, {engine_name(engine)}",
        "macs_reduction": "MACs saved",
        "accuracy_gain": "accuracy gain",
        "accuracy_gain_restricted": "accuracy gain, like for like",
        "budget_met": "budgets met within 5 %",
    }[quantity]
    return f"{name} ({unit})" if measured == problems else f"{name} ({unit}; {measured} of {problems})"


def number(value: float, unit: str) -> str:
    """Return a number with two decimals, with a sign if it is a difference; a dash if there is no value."""
    if pd.isna(value):
        return "-"
    return f"{value:+.2f}" if unit == "points" else f"{value:.2f}"


def selection_notes(problems: int, on_test: int) -> Iterator[str]:
    """Yield a sentence if epochs were selected on the test images."""
    if on_test:
        share = "all" if on_test == problems else f"{on_test} of the {problems}"
        yield (
            f"In {share} problems the test images selected the epoch, as published (selection: test). This flatters "
            "the accuracy on them."
        )


def budget_notes(rows: Table) -> Iterator[str]:
    """Yield a sentence if results miss their budgets. rows: the summary's rows on budgets, by group."""
    if not len(rows) or not rows.loc["all", "problems"]:
        return
    problems = rows.loc["all", "problems"]
    missed = round(problems * (1 - rows.loc["all", "ours_mean"] / 100))
    if missed:
        yield (
            f"{missed} of {problems} results cost more than 1.05 times their budget (budget_met in the table): give "
            "the search more epochs, or a larger budget."
        )


def direct_notes(problems: int, as_published: int) -> Iterator[str]:
    """Yield what a reader of the numbers has to know, one paragraph each."""
    yield (
        "Accuracy gain: the accuracy of the re-engineered model less that of the source model, on the same test "
        "images. Like for like: the source model, too, chooses only among the target's classes."
    )
    published = "Published: the SeaM paper's means over its own problems, timed on its own machine."
    if as_published:
        share = "All" if as_published == problems else f"{as_published} of the {problems}"
        yield f"{published} {share} problems here have a source model and data set of the paper."
    else:
        yield f"{published} The models and data here are not the paper's, so the values are only a rough guide."


def block(lines: Mapping[str, Sequence[str]], heads: Sequence[str]) -> str:
    """Return {name of a line: its numbers as text} under the names of the columns, as text."""
    frame = pd.DataFrame(lines.values(), index=list(lines), columns=list(heads))
    return "\n".join(line.rstrip() for line in frame.to_string(col_space=8).splitlines())


def render_direct(table: Table) -> list[str]:
    """Return the paragraphs on direct reuse, from its rows of the summary."""
    first = table[table["quantity"] == "weights_kept"].set_index("group")  # every problem has this quantity
    problems = first.loc["all", "problems"]
    kinds = [kind for kind in PROBLEMS if kind in first.index and first.loc[kind, "problems"]]
    if not kinds:
        return ["Direct reuse: there is no target problem in this config."]
    heads = {kind: PROBLEMS[kind] for kind in kinds}
    if len(kinds) > 1:
        heads = {"all": "all", **heads}
    lines = {"target problems": [str(first.loc[group, "problems"]) for group in heads] + [""]}
    for (quantity, engine), rows in table.groupby(["quantity", "engine"], sort=False):
        if quantity in ENGINE_QUANTITIES:
            continue
        rows = rows.set_index("group")
        unit, measured = rows["unit"].iloc[0], rows.loc["all", "problems"]
        values = [*(rows.loc[group, "ours_mean"] for group in heads), rows.loc["all", "published"]]
        lines[label(quantity, engine, unit, measured, problems)] = [number(value, unit) for value in values]
    notes = [
        *direct_notes(problems, first.loc["all", "problems_as_published"]),
        *selection_notes(problems, first.loc["all", "problems_selected_on_test"]),
        *budget_notes(table[table["quantity"] == "budget_met"].set_index("group")),
    ]
    return [
        "Direct reuse: means over the target problems",
        block(lines, [*heads.values(), "published"]),
        *(textwrap.fill(note, WIDTH) for note in notes),
        *render_engines(table[table["group"] == "all"]),
    ]


def render_engines(table: Table) -> list[str]:
    """Return the paragraphs on how fast each engine is, from the rows of the summary that are over all problems."""
    values = {(row.quantity, row.engine): row for row in table.itertuples() if row.problems}
    timed = [engine for quantity, engine in values if quantity == "speedup"]
    if not timed:
        return []
    lines, over = {}, {}
    for engine in timed:
        gain, other, change = (values.get((quantity, engine)) for quantity in ENGINE_QUANTITIES)
        assert gain is not None
        if other is not None:
            over[engine] = other.ours_mean
        lines[f"{engine_name(engine)} {gain.version}"] = [
            gain.gains_from_zeros,
            number(gain.ours_mean, gain.unit),
            "-" if other is None else number(other.ours_mean, other.unit),
            *(["" if change is None else number(change.ours_mean, change.unit)] if has_int8(values) else []),
        ]
    heads = ["skips zeros", "same engine", "ONNX Runtime", *(["accuracy"] if has_int8(values) else [])]
    notes = [
        "How many times as fast the re-engineered model runs as its source model in the same engine, and as its source "
        "model in ONNX Runtime with float32 weights."
        + (" Accuracy: of the re-engineered model, points that int8 adds." if has_int8(values) else "")
    ]
    if over:
        best = max(over, key=lambda engine: over[engine])
        notes.append(
            f"Fastest: {engine_name(best)} runs the re-engineered models {over[best]:.2f} times as fast as ONNX "
            "Runtime runs their source models."
        )
    return [
        "Inference engines: speed, means over the target problems (times)",
        block(lines, heads),
        *(textwrap.fill(note, WIDTH) for note in notes),
    ]


def has_int8(values: Mapping[tuple[str, str], Any]) -> bool:
    """Return whether the accuracy of a quantized model is among the values of the summary."""
    return any(quantity == "accuracy_change_int8" for quantity, _ in values)


def indirect_notes(reduction: Any, rates: Sequence[Any], problems: Sequence[int]) -> Iterator[str]:
    """Yield the reduction of inherited defects, then what a reader of the numbers has to know, one paragraph each.

    reduction, rates: rows of the summary, of the reduction and of each student's DIR. problems: how many each student
    has.
    """
    most = max(problems)
    if reduction.problems:
        change = f"{'lower' if reduction.ours_mean >= 0 else 'higher'} by {abs(reduction.ours_mean):.2f} %"
        mean = "" if most == 1 else f", mean over {reduction.problems} of {most} problems"
        yield (
            f"SeaM's DIR is {change} than the standard student's{mean}; "
            f"published: lower by {reduction.published:.2f} %, over the paper's own problems."
        )
    else:
        yield "SeaM's DIR cannot be compared, because no standard student with inherited defects stands beside SeaM."
    yield (
        "DIR, the defect inheritance rate: the share, among the test images that a student gets right, of those that "
        "it gets wrong once they are perturbed against the source model."
    )
    if any(not pd.isna(rate.published) for rate in rates):
        others = any(rate.problems_as_published < rate.problems for rate in rates)
        rough = " Some source models here are not the paper's: for them the values are only a rough guide."
        yield f"Published: the same students, on data sets of the same names.{rough if others else ''}"
    yield from selection_notes(most, max(rate.problems_selected_on_test for rate in rates))
    for rate, count in zip(rates, problems, strict=True):
        if rate.problems < count:
            yield (
                f"{STUDENTS[rate.student]}: no DIR in {count - rate.problems} of {count} problems, because it gets no "
                "test image right there."
            )


def render_indirect(table: Table) -> list[str]:
    """Return the paragraphs on indirect reuse, from its rows of the summary."""
    rows = list(table.itertuples())
    reduction, accuracies, rates = (
        [row for row in rows if row.quantity == quantity]
        for quantity in ("inherited_defects_reduction", "accuracy", "defect_inheritance_rate")
    )
    if not accuracies:
        return ["Indirect reuse: there is no student in this config."]
    lines = {}
    for accuracy, rate in zip(accuracies, rates, strict=True):
        name = student_name(accuracy.student, accuracy.threshold)
        if name == STUDENTS[accuracy.student] and accuracy.student in MASKED:
            name = f"{name}, t near {THRESHOLD:g}"  # the problems differ in their thresholds
        values = accuracy.ours_mean, accuracy.published, rate.ours_mean, rate.published
        lines[name] = [str(accuracy.problems), *(number(value, "%") for value in values)]
    notes = indirect_notes(reduction[0], rates, [accuracy.problems for accuracy in accuracies])
    return [
        "Indirect reuse: means over the target problems (a source model and a data set)",
        block(lines, ["problems", "accuracy (%)", "published", "DIR (%)", "published"]),
        *(textwrap.fill(note, WIDTH) for note in notes),
    ]


def render(table: Table) -> str:
    """Return the summary, a table that `summarise` made, as text of lines of at most 79 characters."""
    indirect, baselines = table["group"] == "indirect", table["group"] == "baselines"
    parts = [*render_direct(table[~indirect & ~baselines]), *render_summary(table[baselines])]
    return "\n\n".join([*parts, *render_indirect(table[indirect])])


def write_summary(
    path: str | Path,
    binary: str | Path,
    multiclass: str | Path,
    indirect: str | Path,
    published: str | Path,
    baselines: str | Path | None = None,
) -> None:
    """Write the summary of the tables at these paths to `path`, and its text to the log."""
    tables = map(read_table, (binary, multiclass, indirect, published))
    table = summarise(*tables, baselines=read_table(baselines) if baselines else None)
    write_csv(path, table)
    log.info("\n%s", render(table))


def print_summary(path: str | Path) -> str | None:
    """Print the summary at `path`. Return None, or the sentence that says why it cannot be read."""
    try:
        print(render(read_table(path)))
    except UserError as error:
        return f"Error: {error}"
    return None

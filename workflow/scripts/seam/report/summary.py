"""Means over all target problems beside the published values, as a table for machines and one for people."""

import textwrap

import pandas as pd

from seam.errors import UserError
from seam.files import write_csv
from seam.log import log
from seam.report.tables import PROBLEMS, STUDENTS, engine_name, engines, read_table, student_name

COLUMNS = [
    *["quantity", "engine", "student", "threshold", "group", "problems", "problems_as_published"],
    *["problems_selected_on_test", "ours_mean", "published", "unit"],
]
WIDTH = 79
THRESHOLD = 0.6  # SeaM's own: students are compared at this one, or at the nearest that there is
NONE = float("nan")
MASKED = ["seam", "magnitude", "random"]  # the students that have a threshold
PUBLISHED_WEIGHTS = ["hub", "IMAGENET1K_V1"]  # of the source models that the paper re-engineered


def quantities(table):
    """(quantity, engine, unit, value of each problem) of all that is summarised."""
    yield "weights_kept", "", "%", 100 * table["retention"]
    for engine in engines(table):
        ratio = table[f"latency_reengineered_ms_{engine}"] / table[f"latency_source_ms_{engine}"]
        yield "inference_time_reduction", engine, "%", 100 * (1 - ratio)
    yield "macs_reduction", "", "%", 100 * table["macs_reduction"]
    yield "accuracy_gain", "", "points", table["accuracy_gain_points"]
    restricted = 100 * (table["accuracy_reengineered"] - table["accuracy_source_restricted"])
    yield "accuracy_gain_restricted", "", "points", restricted


def as_published(table, published):
    """Which problems have a source model, data set and kind of the published evaluation: a boolean Series."""
    evaluation = published[(published["reuse"] == "direct") & (published["quantity"] == "problems")]
    names = ["architecture", "dataset", "problem"]
    known = set(evaluation[names].itertuples(index=False, name=None))
    same = [problem in known for problem in table[names].itertuples(index=False, name=None)]
    return pd.Series(same, index=table.index, dtype=bool) & table["weights_origin"].isin(PUBLISHED_WEIGHTS)


def published_value(published, quantity, engine, group):
    """The paper's value of a quantity over its whole evaluation; NaN where it gives none."""
    if group != "all":
        return NONE
    overall = published[(published["reuse"] == "direct") & (published["architecture"] == "")]
    found = overall[(overall["quantity"] == quantity) & (overall["engine"] == engine)]
    return found["value"].iloc[0] if len(found) else NONE


def direct_rows(binary, multiclass, published):
    """A row per quantity (and engine) and group of problems: all, binary, multiclass."""
    parts = [frame.assign(problem=kind) for kind, frame in (("binary", binary), ("multiclass", multiclass))]
    # A frame without rows has no types to give to the numbers of the other one.
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    same, flattered = as_published(table, published), table["search_selection"] == "test"
    rows = []
    for quantity, engine, unit, values in quantities(table):
        for group in ("all", *PROBLEMS):
            chosen = values[(group == "all") | (table["problem"] == group)].dropna()
            value = published_value(published, quantity, engine, group)
            counts = len(chosen), int(same[chosen.index].sum()), int(flattered[chosen.index].sum())
            mean = chosen.mean() if len(chosen) else NONE
            rows.append([quantity, engine, "", NONE, group, *counts, mean, value, unit])
    return rows


def compared(table):
    """The students that are compared: those with masks at the threshold nearest to 0.6 of their model and data set.

    The threshold is one that SeaM has, or, without SeaM, any student; of two as near, the lower.
    """
    chosen = []
    for _, rows in table.groupby(["model", "dataset"], sort=False):
        seam = rows[rows["student"] == "seam"]
        found = (seam if len(seam) else rows)["threshold"].dropna().unique()
        nearest = min(found, key=lambda threshold: (abs(threshold - THRESHOLD), threshold), default=None)
        chosen.append(rows[rows["threshold"].isna() | (rows["threshold"] == nearest)])
    return pd.concat(chosen) if chosen else table


def indirect_rows(table, published):
    """How far SeaM reduces inherited defects, then a row per student for its accuracy and its DIR.

    A published value of a student is the mean over the same problems, and empty unless each has one.
    """
    indirect = published[published["reuse"] == "indirect"]
    known = set(indirect[["architecture", "dataset"]].itertuples(index=False, name=None))
    overall = indirect[indirect["quantity"] == "inherited_defects_reduction"]["value"].iloc[0]
    table = compared(table)

    def line(quantity, student, value):
        rows = table[table["student"] == student]
        thresholds = rows["threshold"].unique()
        rows = rows[rows[quantity].notna()]
        same = [pair in known for pair in rows[["architecture", "dataset"]].itertuples(index=False, name=None)]
        same = pd.Series(same, index=rows.index, dtype=bool) & rows["weights_origin"].isin(PUBLISHED_WEIGHTS)
        if value is None:
            value = 100 * rows[f"published_{quantity}"].mean(skipna=False)
        threshold = thresholds[0] if len(thresholds) == 1 else NONE
        flattered = int((rows["transfer_selection"] == "test").sum())
        numbers = len(rows), int(same.sum()), flattered, 100 * rows[quantity].mean(), value
        return [quantity, "", student, threshold, "indirect", *numbers, "%"]

    return [
        line("inherited_defects_reduction", "seam", overall),
        *(
            line(quantity, student, None)
            for quantity in ("accuracy", "defect_inheritance_rate")
            for student in STUDENTS
            if student in set(table["student"])
        ),
    ]


def summarise(binary, multiclass, indirect, published):
    """One row per quantity and group of problems (or student, in indirect reuse), from the three tables.

    `problems` are those with a value of the quantity, and the mean is over them (empty where there is
    none); `problems_as_published` are those among them that belong to the published evaluation.
    """
    rows = direct_rows(binary, multiclass, published) + indirect_rows(indirect, published)
    return pd.DataFrame(rows, columns=COLUMNS)


def label(quantity, engine, unit, measured, problems):
    """What stands before a line of numbers: "time saved, DeepSparse (%; 3 of 5)" where two have no value."""
    name = {
        "weights_kept": "weights kept",
        "inference_time_reduction": f"time saved, {engine_name(engine)}",
        "macs_reduction": "MACs saved",
        "accuracy_gain": "accuracy gain",
        "accuracy_gain_restricted": "accuracy gain, like for like",
    }[quantity]
    return f"{name} ({unit})" if measured == problems else f"{name} ({unit}; {measured} of {problems})"


def number(value, unit):
    """Two decimals, with a sign where it is a difference; a dash where there is no value."""
    if pd.isna(value):
        return "-"
    return f"{value:+.2f}" if unit == "points" else f"{value:.2f}"


def flattering(problems, on_test):
    """A sentence where epochs were chosen on the test images."""
    if on_test:
        share = "all" if on_test == problems else f"{on_test} of the {problems}"
        yield (
            f"In {share} problems the epoch was chosen on the test images, as published (selection: test), which "
            "flatters the accuracy on them."
        )


def notes(problems, as_published):
    """What a reader of the numbers has to know, one paragraph each."""
    yield (
        "Accuracy gain: the re-engineered model against the source model, on the same test images. "
        "Like for like: the source model, too, has only the target's classes to choose from."
    )
    published = "Published: the SeaM paper's means over its own problems, timed on its own machine."
    if as_published:
        share = "All" if as_published == problems else f"{as_published} of the {problems}"
        yield f"{published} {share} problems here have a source model and data set of the paper."
    else:
        yield f"{published} The models and data here are other ones, so take them as a rough guide."


def block(lines, heads):
    """{name of a line: its numbers as text} under the names of the columns, as text."""
    frame = pd.DataFrame(lines.values(), index=list(lines), columns=heads)
    return "\n".join(line.rstrip() for line in frame.to_string(col_space=8).splitlines())


def render_direct(table):
    """The paragraphs on direct reuse, from its rows of the summary."""
    first = table[table["quantity"] == "weights_kept"].set_index("group")  # every problem has this one
    problems = first.loc["all", "problems"]
    kinds = [kind for kind in PROBLEMS if first.loc[kind, "problems"]]
    if not kinds:
        return ["Direct reuse: there is no target problem in this config."]
    heads = {"all": "all", **PROBLEMS} if len(kinds) > 1 else {kinds[0]: PROBLEMS[kinds[0]]}
    lines = {"target problems": [str(first.loc[group, "problems"]) for group in heads] + [""]}
    for (quantity, engine), part in table.groupby(["quantity", "engine"], sort=False):
        part = part.set_index("group")
        unit, measured = part["unit"].iloc[0], part.loc["all", "problems"]
        values = [*(part.loc[group, "ours_mean"] for group in heads), part.loc["all", "published"]]
        lines[label(quantity, engine, unit, measured, problems)] = [number(value, unit) for value in values]
    said = notes(problems, first.loc["all", "problems_as_published"])
    said = [*said, *flattering(problems, first.loc["all", "problems_selected_on_test"])]
    paragraphs = [textwrap.fill(note, WIDTH) for note in said]
    return ["Direct reuse: means over the target problems", block(lines, [*heads.values(), "published"]), *paragraphs]


def indirect_notes(reduction, rates, asked):
    """The reduction of inherited defects, then what a reader has to know, one paragraph each.

    `reduction` and `rates` are rows of the summary, of the reduction and of each student's DIR; `asked`
    are the numbers of problems of each student.
    """
    most = max(asked)
    if reduction.problems:
        change = f"{'lower' if reduction.ours_mean >= 0 else 'higher'} by {abs(reduction.ours_mean):.2f} %"
        mean = "" if most == 1 else f", mean over {reduction.problems} of {most} problems"
        yield (
            f"SeaM's DIR is {change} than the standard student's{mean}; "
            f"published: lower by {reduction.published:.2f} %, over the paper's own problems."
        )
    else:
        yield "SeaM's DIR cannot be compared: that takes SeaM and a standard student with inherited defects."
    yield (
        "DIR, the defect inheritance rate: of the test images that a student gets right, the share that it gets "
        "wrong once they are perturbed against the source model."
    )
    if any(not pd.isna(rate.published) for rate in rates):
        others = any(rate.problems_as_published < rate.problems for rate in rates)
        rough = " Not all source models here are the paper's: of the others take it as a rough guide." if others else ""
        yield f"Published: the same students, on data sets of the same names.{rough}"
    yield from flattering(most, max(rate.problems_selected_on_test for rate in rates))
    for rate, problems in zip(rates, asked, strict=True):
        if rate.problems < problems:
            lacking = problems - rate.problems
            yield (
                f"{STUDENTS[rate.student]}: no DIR in {lacking} of {problems} problems, since there it gets no test "
                "image right."
            )


def render_indirect(table):
    """The paragraphs on indirect reuse, from its rows of the summary."""
    rows = list(table.itertuples())
    reduction, accuracy, rates = (
        [row for row in rows if row.quantity == quantity]
        for quantity in ("inherited_defects_reduction", "accuracy", "defect_inheritance_rate")
    )
    if not accuracy:
        return ["Indirect reuse: there is no student in this config."]
    lines = {}
    for right, wrong in zip(accuracy, rates, strict=True):
        name = student_name(right.student, right.threshold)
        if name == STUDENTS[right.student] and right.student in MASKED:
            name = f"{name}, t near {THRESHOLD:g}"  # not the same one in all problems
        values = right.ours_mean, right.published, wrong.ours_mean, wrong.published
        lines[name] = [str(right.problems), *(number(value, "%") for value in values)]
    found = indirect_notes(reduction[0], rates, [row.problems for row in accuracy])
    return [
        "Indirect reuse: means over the target problems (a source model and a data set)",
        block(lines, ["problems", "accuracy (%)", "published", "DIR (%)", "published"]),
        *(textwrap.fill(note, WIDTH) for note in found),
    ]


def render(table):
    """The summary as text for a person, at most 79 characters wide. `table` is what `summarise` gives."""
    indirect = table["group"] == "indirect"
    return "\n\n".join([*render_direct(table[~indirect]), *render_indirect(table[indirect])])


def write_summary(path, binary, multiclass, indirect, published):
    """Write the summary of the tables at these paths to `path`, and its text to the log."""
    found = summarise(*map(read_table, (binary, multiclass, indirect, published)))
    write_csv(path, found)
    log.info("\n%s", render(found))


def print_summary(path):
    """Print the summary at `path`; return None, or the sentence that says why it cannot be read."""
    try:
        print(render(read_table(path)))
    except UserError as error:
        return f"Error: {error}"
    return None

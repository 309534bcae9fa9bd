"""Means over all target problems beside the published values, as a table for machines and one for people.

In the terminal: python workflow/scripts/summarise.py results/tables/summary.csv
"""

import sys
import textwrap

import pandas as pd

from seam.files import UserError, write_csv
from seam.progress import job, log
from seam.tables import PROBLEMS, engine_name, engines, read_table

COLUMNS = ["quantity", "engine", "group", "problems", "problems_as_published", "ours_mean", "published", "unit"]
WIDTH = 79
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
        return float("nan")
    overall = published[(published["reuse"] == "direct") & (published["architecture"] == "")]
    found = overall[(overall["quantity"] == quantity) & (overall["engine"] == engine)]
    return found["value"].iloc[0] if len(found) else float("nan")


def summary(binary, multiclass, published):
    """One row per quantity (and engine) and group of problems: all, binary, multiclass.

    `problems` are those with a value of the quantity, and the mean is over them (empty where there is
    none); `problems_as_published` are those among them that belong to the published evaluation.
    """
    parts = [frame.assign(problem=kind) for kind, frame in (("binary", binary), ("multiclass", multiclass))]
    # A frame without rows has no types to give to the numbers of the other one.
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    same = as_published(table, published)
    rows = []
    for quantity, engine, unit, values in quantities(table):
        for group in ("all", *PROBLEMS):
            chosen = values[(group == "all") | (table["problem"] == group)].dropna()
            value = published_value(published, quantity, engine, group)
            counts = len(chosen), int(same[chosen.index].sum())
            rows.append([quantity, engine, group, *counts, chosen.mean() if len(chosen) else float("nan"), value, unit])
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


def render(table):
    """The summary as text for a person, at most 79 characters wide. `table` is what `summary` gives."""
    first = table[table["quantity"] == "weights_kept"].set_index("group")  # every problem has this one
    problems = first.loc["all", "problems"]
    kinds = [kind for kind in PROBLEMS if first.loc[kind, "problems"]]
    if not kinds:
        return "Direct reuse: there is no target problem in this config."
    heads = {"all": "all", **PROBLEMS} if len(kinds) > 1 else {kinds[0]: PROBLEMS[kinds[0]]}
    lines = {"target problems": [str(first.loc[group, "problems"]) for group in heads] + [""]}
    for (quantity, engine), part in table.groupby(["quantity", "engine"], sort=False):
        part = part.set_index("group")
        unit, measured = part["unit"].iloc[0], part.loc["all", "problems"]
        values = [*(part.loc[group, "ours_mean"] for group in heads), part.loc["all", "published"]]
        lines[label(quantity, engine, unit, measured, problems)] = [number(value, unit) for value in values]
    frame = pd.DataFrame(lines.values(), index=list(lines), columns=[*heads.values(), "published"])
    as_published = first.loc["all", "problems_as_published"]
    paragraphs = [textwrap.fill(note, WIDTH) for note in notes(problems, as_published)]
    numbers = [line.rstrip() for line in frame.to_string(col_space=8).splitlines()]
    return "\n".join(["Direct reuse: means over the target problems", "", *numbers, "", *paragraphs])


if "snakemake" in globals():
    with job(snakemake.log[0]):
        found = summary(
            read_table(snakemake.input.binary),
            read_table(snakemake.input.multiclass),
            read_table(snakemake.input.published),
        )
        write_csv(snakemake.output.summary, found)
        log.info("\n%s", render(found))
elif __name__ == "__main__":
    try:
        print(render(read_table(sys.argv[1])))
    except UserError as error:
        sys.exit(f"Error: {error}")

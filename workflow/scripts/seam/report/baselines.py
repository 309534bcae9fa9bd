"""The tables of baselines: each baseline beside the search of its target problem, and paired differences."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from seam.log import log
from seam.report.intervals import bootstrap
from seam.report.tables import Record, Table, missing_file, records, write_table

Paths = Iterable[str | Path]

NAMES = {  # in the order in which they are shown
    "head": "head alone",
    "biases": "head and biases",
    "magnitude": "magnitude",
    "random": "random",
    "activation": "activation (Wanda)",
    "snip": "gradient (SNIP)",
    "magnitude-overall": "magnitude, overall",
    "random-overall": "random, overall",
    "activation-overall": "activation, overall",
    "snip-overall": "gradient, overall",
    "scratch": "from nothing",
    "widths-scratch": "widths, from nothing",
    "widths-magnitude": "widths, magnitude",
    "widths-taylor": "widths, Taylor",
    "uniform-scratch": "uniform, from nothing",
    "uniform-magnitude": "uniform, magnitude",
    "uniform-taylor": "uniform, Taylor",
    "finetuned": "fine-tuned whole",
}
OF_CHANNELS = [name for name in NAMES if name == "finetuned" or name.startswith(("widths-", "uniform-"))]
# Baselines of searches of single weights. Those without a recovery are compared with the search before its own.
OF_WEIGHTS = [name for name in NAMES if name not in OF_CHANNELS]
RECOVERED = "-recovered"  # the end of the names of those with one, as in seam.settings, on which no table depends
NAMES = (
    {name: NAMES[name] for name in OF_WEIGHTS}
    | {name + RECOVERED: f"{NAMES[name]}, recovered" for name in OF_WEIGHTS if name != "scratch"}
    | {"head" + RECOVERED: "whole, recovered"}
    | {
        name + end: NAMES[name] + words
        for name in OF_CHANNELS
        for end, words in (("", ""), ("-distilled", ", distilled"))
    }
)
GROUP = ["model", "dataset", "problem", "baseline"]
COLUMNS = [
    *["model", "dataset", "problem", "target", "baseline", "images_test", "right_search", "right_baseline"],
    *["accuracy_source", "accuracy_search", "accuracy_baseline", "difference_points"],
    *["holdout_accuracy_search", "holdout_accuracy_baseline", "retention_search", "retention_baseline", "weights"],
    *["epochs", "selected_epoch_baseline", "seconds_baseline", "selection", "decided_by", "seed", "folder"],
]
# Of tables with baselines of searches of channels, more: in one process on one thread, in ONNX Runtime.
CHANNEL_COLUMNS = [
    *["macs_search", "macs_baseline", "latency_batch", "latency_source_ms", "latency_search_ms"],
    "latency_baseline_ms",
]
COMPARISON = [
    *["model", "dataset", "problem", "baseline", "problems", "images_test", "right_search", "right_baseline"],
    *["retention_search", "retention_baseline", "accuracy_source", "accuracy_search", "accuracy_baseline"],
    *["difference_points", "difference_low", "difference_high", "search_better", "equal", "baseline_better"],
]
WIDTH = 79  # characters of a line of text


def baseline_name(baseline: str) -> str:
    """Return how people write a baseline's name: `head` is the head alone."""
    return NAMES.get(baseline, baseline)


def row(baseline: Record, search: Record, recovery: Record | None = None) -> dict[str, Any]:
    """Return one baseline as {column: value}, from its metrics.json and that of its problem's search.

    Accuracies are balanced ones if these decided the search; `right_search` and `right_baseline` count images.
    recovery: of the search, if the baseline is compared with what the search reaches after it.
    """
    images, measure = baseline["images", "test"], baseline["decided_by"]
    plain, reached = (search[name, "reengineered"] for name in ("accuracy", measure))
    if recovery is not None:
        plain, reached = (recovery[name, "after"] for name in ("accuracy", measure))
        held = recovery.data.get("holdout_accuracy") or {}
        search = Record(search.path)
        search.data = {**search.data, "holdout_accuracy": {"reengineered": held.get("after")}}
    held_out = {
        name: (record.data.get("holdout_accuracy") or {}).get(key)
        for name, record, key in (("search", search, "reengineered"), ("baseline", baseline, "baseline"))
    }
    return {
        **baseline.select("model", "dataset", "problem", "target", "baseline", "weights", "epochs", "seed"),
        "images_test": images,
        "right_search": round(plain * images),
        "right_baseline": baseline["right"],
        "accuracy_source": baseline[measure, "source"],
        "accuracy_search": reached,
        "accuracy_baseline": baseline[measure, "baseline"],
        "difference_points": round(100 * (reached - baseline[measure, "baseline"]), 9),
        **{f"holdout_accuracy_{name}": value for name, value in held_out.items()},
        "retention_search": search["retention"],
        "retention_baseline": baseline["retention"],
        "selected_epoch_baseline": baseline["selected_epoch"],
        "seconds_baseline": baseline["seconds"],
        "selection": baseline["settings", "selection"],
        "decided_by": measure,
        "folder": baseline.path.parent.as_posix(),
    }


def channel_values(baseline: Record, latency: Record) -> dict[str, Any]:
    """Return the values of CHANNEL_COLUMNS, from its metrics.json and the baselines_latency.json of its problem."""
    measured = latency["measurements"][0]
    names = {"source": "source", "search": "search", "baseline": baseline["baseline"]}
    statistic = f"{latency['statistic']}_ms"
    return {
        "macs_search": baseline["macs", "search"],
        "macs_baseline": baseline["macs", "baseline"],
        "latency_batch": measured["batch_size"],
        **{f"latency_{name}_ms": measured[key][statistic] for name, key in names.items()},
    }


def baselines(metrics: Paths, searches: Paths, recoveries: Paths = (), latencies: Paths = ()) -> Table:
    """Return the table of baselines, from the paths of their metrics.json and those of the searches.

    recoveries: the recovery.json of problems with baselines of channels, or with recovered ones: these are compared
    with the search after its recovery, all others with the search before it. latencies: the baselines_latency.json of
    the problems with baselines of channels. Rows are in the order of `metrics`. Raises UserError if a file lacks a
    value, or if one of the search is missing.
    """
    known, rows = records(searches), []
    recovered, timed = records(recoveries), records(latencies)
    for folder, baseline in records(metrics).items():
        problem = folder.parent.parent  # .../{target}/baselines/{baseline}
        if problem not in known:
            raise missing_file(problem / "metrics.json")
        name = str(baseline["baseline"])
        if name.endswith(RECOVERED) and problem not in recovered:
            raise missing_file(problem / "recovery.json")
        recovery = None if name in OF_WEIGHTS else recovered.get(problem)
        values = row(baseline, known[problem], recovery)
        if problem in timed:
            values |= channel_values(baseline, timed[problem])
        rows.append(values)
    return pd.DataFrame(rows, columns=[*COLUMNS, *(CHANNEL_COLUMNS if timed else [])])


def comparison(table: Table) -> Table:
    """Return the mean paired difference, search less baseline, of each model, kind of problem and baseline.

    The interval is that of `bootstrap` over target problems. If the table has several seeds of a problem, their mean
    is the problem's value.
    """
    rows = []
    for names, group in table.groupby(GROUP, sort=False):
        numbers = ["difference_points", "accuracy_source", "accuracy_search", "accuracy_baseline"]
        numbers += ["retention_search", "retention_baseline"]
        problems = group.groupby("target", sort=False)[numbers].mean()
        differences = problems["difference_points"].round(9)
        low, high = bootstrap(list(differences))
        counts = group[["images_test", "right_search", "right_baseline"]].sum()
        rows.append(
            {
                **dict(zip(GROUP, names, strict=True)),
                "problems": len(problems),
                **{name: int(counts[name]) for name in counts.index},
                **problems.mean().to_dict(),
                "difference_points": round(float(problems["difference_points"].mean()), 9) + 0.0,  # no -0.0
                "difference_low": low,
                "difference_high": high,
                "search_better": int((differences > 0).sum()),
                "equal": int((differences == 0).sum()),
                "baseline_better": int((differences < 0).sum()),
                **_means_of_channels(group),
            }
        )
    more = [name for name in ("macs_baseline", "latency_baseline_ms", "verdict") if any(name in row for row in rows)]
    for values in rows:
        if "macs_baseline" in values:
            values["verdict"] = _verdict(values)
    result = pd.DataFrame(rows, columns=[*COMPARISON, *more])
    order = list(NAMES)
    places = [order.index(name) if name in order else len(order) for name in result["baseline"]]
    return result.assign(order=places).sort_values(["model", "problem", "order"], kind="stable").drop(columns="order")


def _means_of_channels(group: Table) -> dict[str, Any]:
    """Return the mean cost of a baseline of searches of channels; {} of others."""
    if "macs_baseline" not in group or group["macs_baseline"].isna().all():
        return {}
    names = ["macs_baseline", "latency_baseline_ms"]
    return {**group.groupby("target", sort=False)[names].mean().mean().to_dict(), "verdict": ""}


def _verdict(values: Mapping[str, Any]) -> str:
    """Return who wins, in words: by the sign of the mean difference, and whether the interval excludes zero."""
    difference, low, high = (values[name] for name in ("difference_points", "difference_low", "difference_high"))
    if not difference:
        return "equal"
    winner = "search" if difference > 0 else "baseline"
    is_clear = low > 0 if difference > 0 else high < 0
    return f"{winner} wins" if is_clear else f"{winner} ahead, within chance"


def summary_rows(table: Table) -> list[list[Any]]:
    """Return the rows of the summary: the comparison of each baseline over all its target problems.

    Each row has the values of COLUMNS of `seam.report.summary`, without those that engines have.
    """
    names = table["model"] + "/" + table["problem"] + "/" + table["target"]
    overall = comparison(table.assign(target=names, model="", dataset="", problem=""))
    rows = []
    for each in overall.itertuples():
        on_test = int((table[table["baseline"] == each.baseline]["selection"] == "test").sum())
        counts = "baselines", each.problems, 0, on_test
        for quantity, value, unit in (
            ("baseline_weights_kept", 100 * each.retention_baseline, "%"),
            ("baseline_accuracy", 100 * each.accuracy_baseline, "%"),
            ("search_over_baseline", each.difference_points, "points"),
            ("search_over_baseline_low", each.difference_low, "points"),
            ("search_over_baseline_high", each.difference_high, "points"),
        ):
            rows.append([quantity, "", each.baseline, float("nan"), *counts, value, float("nan"), unit, "", ""])
    return rows


def render_summary(rows: Table) -> list[str]:
    """Return the paragraphs of the summary on baselines, from its rows of them; none if there are no such rows."""
    if not len(rows):
        return []
    values = rows.pivot_table("ours_mean", "student", "quantity", sort=False, dropna=False)
    names = {"search_over_baseline": "difference_points"} | {
        f"search_over_baseline_{end}": f"difference_{end}" for end in ("low", "high")
    }
    values = values.reindex(columns=["baseline_weights_kept", "baseline_accuracy", *names]).rename(columns=names)
    counts = rows.groupby("student", sort=False)["problems"].first()
    lines = {}
    for each in values.reset_index(names="baseline").itertuples():
        numbers = f"{each.baseline_weights_kept:.2f}", f"{each.baseline_accuracy:.2f}"
        lines[baseline_name(each.baseline)] = [
            str(counts[each.baseline]), *numbers, f"{each.difference_points:+.2f}", _interval(each),
        ]  # fmt: skip
    heads = ["problems", "weights %", "accuracy %", "search", "95 % interval"]
    frame = pd.DataFrame(lines.values(), index=list(lines), columns=heads)
    return [
        "Baselines: the search's accuracy less theirs, means over the same problems",
        "\n".join(line.rstrip() for line in frame.to_string(col_space=8).splitlines()),
        *(textwrap.fill(note, WIDTH) for note in verdicts(values.reset_index(names="baseline"))),
    ]


def write_tables(
    path: str | Path,
    comparison_path: str | Path,
    metrics: Paths,
    searches: Paths,
    recoveries: Paths = (),
    latencies: Paths = (),
) -> None:
    """Write both tables, and the comparison as text to the log."""
    table = baselines(metrics, searches, recoveries, latencies)
    write_table(path, table, "baselines")
    means = comparison(table)
    write_table(comparison_path, means, "comparisons")
    if len(means):
        log.info("\n%s", render(means))


def render(means: Table) -> str:
    """Return the comparison as text of lines of at most 79 characters; a baseline that wins is named in a sentence."""
    parts = ["Baselines: search less baseline, paired by target problem"]
    # Baselines of other target problems have a paragraph of their own: its head tells of the search on the same ones.
    names = ["model", "problem", "problems", "accuracy_source"]
    keys = [*(means[name] for name in names), means["baseline"].isin(OF_CHANNELS)]
    for (model, problem, *_), rows in means.groupby(keys, sort=False):
        first, is_recovered = rows.iloc[0], rows["baseline"].str.endswith(RECOVERED)
        searched = [
            f"{100 * group.iloc[0]['accuracy_search']:.2f} %{words}"
            for group, words in ((rows[~is_recovered], ""), (rows[is_recovered], " after its recovery"))
            if len(group)
        ]
        text = (
            f"{model}, {problem}: {first['problems']} problems, source {100 * first['accuracy_source']:.2f} %, search "
            f"{', '.join(searched)} at {100 * first['retention_search']:.1f} % of the weights"
        )
        parts.append(textwrap.fill(text, WIDTH) if is_recovered.any() else text)
        lines = {baseline_name(each.baseline): _line(each) for each in rows.itertuples()}
        heads = ["weights %", "accuracy %", "search", "95 % interval", "better", "equal", "worse"]
        frame = pd.DataFrame(lines.values(), index=list(lines), columns=heads)
        parts.append("\n".join(text.rstrip() for text in frame.to_string(col_space=7).splitlines()))
        parts += [textwrap.fill(note, WIDTH) for note in verdicts(rows)]
    return "\n\n".join(parts)


def _interval(each: Any) -> str:
    if each.difference_low != each.difference_low:
        return "-"
    return f"{each.difference_low:+.2f}..{each.difference_high:+.2f}"


def _line(each: Any) -> list[str]:
    numbers = f"{100 * each.retention_baseline:.1f}", f"{100 * each.accuracy_baseline:.2f}"
    counts = map(str, (each.search_better, each.equal, each.baseline_better))
    return [*numbers, f"{each.difference_points:+.2f}", _interval(each), *counts]


def verdicts(rows: Table) -> Iterator[str]:
    """Yield a sentence on the baselines that are ahead of the search, and one on those that may be as good."""
    ahead = rows[rows["difference_points"] < 0]
    undecided = rows[(rows["difference_points"] >= 0) & ~(rows["difference_low"] > 0)]
    if len(ahead):
        names = [
            f"{baseline_name(each.baseline)} by {-each.difference_points:.2f} points"
            + ("" if each.difference_high < 0 else " (not beyond chance)")
            for each in ahead.itertuples()
        ]
        yield f"Ahead of the search: {'; '.join(names)}."
    if len(undecided):
        names = [baseline_name(each.baseline) for each in undecided.itertuples()]
        yield f"No difference beyond chance: {'; '.join(names)}."
    if not len(ahead) and not len(undecided):
        yield "The search is ahead of every baseline."

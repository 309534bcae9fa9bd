"""The report: one page in HTML that needs no other file, from the answer down to each target problem.

It shows what exists: columns and keys are read by name, and a file that is missing leaves a part of the page out.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import numbers
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from seam.cost.processor import describe_cpu
from seam.errors import UserError
from seam.files import read_json, write_text
from seam.log import log
from seam.progress import duration
from seam.report.html import (
    Number,
    chart,
    confusion,
    identifier,
    image,
    link,
    page,
    pairs,
    table,
    text,
)
from seam.report.intervals import bootstrap, wilson
from seam.report.losses import LOST_POINTS, lost
from seam.report.measured import read_metrics
from seam.report.style import BLUE, INK, RED
from seam.report.summary import quantities
from seam.report.tables import (
    PROBLEMS,
    Column,
    Table,
    all_problems,
    deciding,
    engine_name,
    engines,
    read_table,
    student_name,
)

FIGURES = {  # in the order of the page, with what they show
    "accuracy_binary": "Accuracy on each binary target before (ring) and after (dot) re-engineering.",
    "accuracy_multiclass": "Accuracy on each multi-class target before (ring) and after (dot) re-engineering; the tick "
    "is the source model with only the target's classes to choose from.",
    "cost": "What re-engineering saves: bars are means, dots are problems, dashed lines are published means.",
    "retention_accuracy": "Weights kept against accuracy, one point per problem.",
    "engines": "How many times as fast each engine runs the re-engineered models as ONNX Runtime the source models.",
    "history": "The course of the search of the first target of each model and kind of problem.",
    "baselines": "The search beside what is reached without one: accuracy against the weights kept.",
    "baselines_latency": "Accuracy against latency in ONNX Runtime: searches of channels and their baselines. "
    "Above and left of the dashed Pareto front is nothing.",
    "thresholds": "Accuracy and inherited defects of the students against the share of weights removed.",
    "defects": "Inherited defects of each student.",
}
ENGINE_TITLES = {
    "inference_time_reduction": "time saved, {}",
    "speedup": "times as fast, {}",
    "speedup_over_onnxruntime": "times as fast as ONNX Runtime, {}",
    "accuracy_change_int8": "accuracy change in int8, {}",
}
TITLES = {
    "weights_kept": "weights kept",
    "macs_reduction": "MACs saved",
    "accuracy_gain": "accuracy gain",
    "accuracy_gain_restricted": "accuracy gain, like for like",
    "budget_met": "budgets met",
    "inherited_defects_reduction": "fewer inherited defects",
    "defect_inheritance_rate": "defects inherited",
}
COUNTS = ("problems", "images", "right", "search_better", "equal", "baseline_better", "batch", "threads")
SHARES = ("accuracy_", "retention_", "macs_")  # beginnings of columns' names, as those of COUNTS, of whole numbers
PACKAGES = ["seam-reuse", "torch", "torchvision", "numpy", "pandas", "onnx", "onnxruntime", "openvino", "snakemake"]


def write_report(
    path: str | Path, tables: Mapping[str, str | Path], figures: Mapping[str, str | Path], run: Any
) -> None:
    """Write the report to `path`.

    tables: {"binary", "multiclass", "indirect", "summary", and others: path of the CSV file}. figures: {name: path of
    the PNG file}. run: {"benchmarks": folder of the jobs' times, "config": the checked config, "left_out": sentences on
    what the config leaves out}. The problems' own files are read from the folders that the tables name.
    """
    data = {name: read_table(file) for name, file in tables.items()}
    problems = all_problems(data["binary"], data["multiclass"])
    students = data["indirect"]
    times = run_times(Path(run["benchmarks"]))
    shown = {name: file for name, file in figures.items() if name not in figures_of_nothing(data)}
    sections = [("figures", "Figures", figures_section(shown))]
    if len(problems):
        sections.append(("table", "Target problems", problems_table(problems)))
    if len(students):
        sections.append(("students", "Students", students_table(students)))
    sections.append(("means", "Means", means_table(data["summary"])))
    if "baselines_comparison" in data and len(data["baselines_comparison"]):
        sections.append(("baselines", "Baselines", whole_table(data["baselines_comparison"])))
    if "latency_budgets" in data:
        budgets = data["latency_budgets"]
        budgets = budgets.assign(missed=budgets["missed"].map({True: "yes", False: "no"}))
        sections.append(("budgets", "Budgets of time", whole_table(budgets)))
    if len(problems):
        sections.append(("problems", "Each problem", "".join(problem_details(problems, times))))
    sections += [
        ("gaps", "Gaps", gaps(problems, students, run["left_out"])),
        ("run", "Run", run_section(problems, students, times, run["config"])),
    ]
    write_text(path, page("SeaM: results", sections, introduction(problems, students, data["summary"])))
    log.info("%s: target problems: %d, students: %d", path, len(problems), len(students))


# The answer


def introduction(problems: Table, students: Table, summary: Table) -> str:
    """Return the answer: what was saved, at what accuracy, beside the published values."""
    date = datetime.date.today().isoformat()
    count = f"{len(problems)} target problem{'s' * (len(problems) != 1)}"
    count += f" and {len(students)} student{'s' * (len(students) != 1)}" if len(students) else ""
    parts = [f'<p class="note">{count}, {date}</p>']
    parts.append(warnings(problems))
    cards = [*direct_cards(problems, summary), *indirect_cards(students, summary)]
    if not cards:
        parts.append("<p>There is no result yet.</p>")
    parts.append(f'<dl class="cards">{"".join(cards)}</dl>')
    parts.append(
        '<p class="note">Means over the problems. Intervals are 95 % intervals of the mean over the problems, and say '
        "nothing of other seeds. Published: the SeaM paper's means over its own problems, on its own machine. Accuracy "
        "like for like: the source model, too, chooses among the target's classes alone.</p>"
    )
    return "".join(parts)


def warnings(problems: Table) -> str:
    """Return what a reader must know first: problems that lost accuracy."""
    worse = lost(problems)
    if not len(worse):
        return ""
    items = "".join(
        f"<li>{text(link(problem_id(row), problem_name(row)))}: {text(Number(row['lost_points'], 1))} points</li>"
        for _, row in worse.head(8).iterrows()
    )
    more = f"<li>and {len(worse) - 8} more</li>" if len(worse) > 8 else ""
    noun = "result has" if len(worse) == 1 else "results have"
    return (
        f'<div class="warning"><b>{len(worse)} of {len(problems)} {noun} lost more than {LOST_POINTS:g} points of '
        f"accuracy</b> against the source model:<ul>{items}{more}</ul></div>"
    )


def card(title: str, value: str, *lines: str) -> str:
    """Return a card of the answer."""
    small = "".join(f'<dd class="small">{text(line)}</dd>' for line in lines if line)
    return f'<div><dt>{text(title)}</dt><dd class="value">{text(value)}</dd>{small}</div>'


def direct_cards(problems: Table, summary: Table) -> Iterable[str]:
    """Yield a card for each quantity of direct reuse that has values."""
    if not len(problems):
        return
    published = {
        (row["quantity"], row["engine"]): row["published"]
        for _, row in summary[summary["group"] == "all"].iterrows()
        if not pd.isna(row["published"])
    }
    for quantity, engine, unit, values in quantities(problems):
        if not values.notna().any():
            continue
        signed, ending = unit == "points", " %" if unit == "%" else f" {unit}"
        title = TITLES.get(quantity, quantity.replace("_", " "))
        if quantity in ENGINE_TITLES:
            title = ENGINE_TITLES[quantity].format(engine_name(engine))
        if quantity == "speedup_over_onnxruntime" and engine == "onnxruntime":
            continue  # the same as its speed-up
        low, high = bootstrap(values.dropna().to_list())
        known = published.get((quantity, engine))
        lines = [] if pd.isna(low) else [f"{Number(low, 1)} to {Number(high, 1)}"]
        lines.append(f"published: {Number(known, 2, ending, signed)}" if known is not None else "")
        if len(values.dropna()) < len(values):
            lines.append(f"{len(values.dropna())} of {len(values)} measured")
        yield card(title, str(Number(values.mean(), 1, ending, signed)), *lines)


def indirect_cards(students: Table, summary: Table) -> Iterable[str]:
    """Yield the cards of indirect reuse: the reduction of inherited defects, and SeaM's accuracy."""
    if not len(students):
        return
    for _, row in summary[(summary["group"] == "indirect") & summary["ours_mean"].notna()].iterrows():
        if row["quantity"] == "inherited_defects_reduction" or row["student"] in ("seam", "standard"):
            name = {
                "inherited_defects_reduction": "fewer inherited defects, SeaM",
                "accuracy": f"accuracy, {student_name(row['student'])}",
                "defect_inheritance_rate": f"defects inherited, {student_name(row['student'])}",
            }.get(row["quantity"])
            if name:
                known = f"published: {Number(row['published'], 2, ' %')}" if not pd.isna(row["published"]) else ""
                count = f"{row['problems']:g} problem{'s' * (row['problems'] != 1)}"
                yield card(name, str(Number(row["ours_mean"], 1, " %")), known, count)


# Figures and tables


def figures_of_nothing(data: Mapping[str, Table]) -> set[str]:
    """Return the names of the figures that have nothing to show, such as that of engines where none timed a model."""
    names = {f"accuracy_{kind}" for kind in ("binary", "multiclass") if not len(data[kind])}
    problems = all_problems(data["binary"], data["multiclass"])
    if "onnxruntime" not in engines(problems):  # the figure compares with it
        names.add("engines")
    return names if len(data["indirect"]) else names | {"thresholds", "defects"}


def figures_section(figures: Mapping[str, str | Path]) -> str:
    """Return all figures with their captions, those of unknown names last."""
    names = [name for name in FIGURES if name in figures] + sorted(set(figures) - set(FIGURES))
    parts = []
    for name in names:
        caption = FIGURES.get(name, name.replace("_", " "))
        file = Path(figures[name])
        if file.is_file():
            parts.append(f"<figure><figcaption>{text(caption)}</figcaption>{image(file, caption)}</figure>")
    return "".join(parts) or "<p>There are no figures.</p>"


def problem_id(row: Column) -> str:
    """Return the id of a problem's part of the page."""
    return identifier(str(row["model"]), str(row["problem"]), str(row["target"]))


def problem_name(row: Column) -> str:
    """Return how the page names a problem."""
    return f"{row['model']}, {PROBLEMS.get(row['problem'], row['problem'])}: {row['target']}"


def per_cent(value: Any, decimals: int = 1) -> Number:
    """Return a share as a number in per cent."""
    return Number(None if value is None or pd.isna(value) else 100 * float(value), decimals)


def interval(low: float, high: float) -> str:
    """Return an interval of shares in per cent, which no line break parts."""
    return f"{100 * low:.1f}\u00a0to\u00a0{100 * high:.1f}"


def without_empty(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[str], list[list[object]]]:
    """Return the heads and rows of a table without its columns that have no value."""
    kept = [place for place in range(len(heads)) if any(str("" if row[place] is None else row[place]) for row in rows)]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows]


def optional(value: Any, decimals: int = 0) -> Number:
    """Return a number of a table, which may be missing."""
    return Number(None if pd.isna(value) else float(value), decimals)


def problems_table(problems: Table) -> str:
    """Return the table of the target problems: the main columns; the CSV files have them all."""
    names = engines(problems)
    heads = ["target", "model", "kind", "accuracy, source %", "re-engineered %", "95 % interval", "gain, points"]
    heads += ["like for like, points", "lowest class %", "weights kept %", "MACs saved %"]
    heads += [f"{engine_name(name)}, times as fast" for name in names]
    rows, before, after = [], deciding(problems, "accuracy_source"), deciding(problems, "accuracy_reengineered")
    fair = (100 * (after - deciding(problems, "accuracy_source_restricted"))).round(9)
    is_alike = bool((fair == problems["accuracy_gain_points"]).all())  # as without multi-class problems
    for place, row in problems.iterrows():
        is_balanced = row.get("decided_by") == "balanced_accuracy"  # whose error the smallest class decides
        chance = "" if is_balanced else interval(*wilson(float(after[place]), int(row["images_test"])))
        lowest = per_cent(row["lowest_recall_reengineered"]) if "lowest_recall_reengineered" in row else None
        rows.append(
            [
                link(problem_id(row), row["target"]),
                row["model"],
                PROBLEMS.get(row["problem"], row["problem"]),
                per_cent(before[place]),
                per_cent(after[place]),
                chance,
                Number(row["accuracy_gain_points"], 1, signed=True, judged=is_alike),
                None if is_alike else Number(fair[place], 1, signed=True),
                lowest,
                per_cent(row["retention"]),
                per_cent(row["macs_reduction"]),
                *(Number(row[f"speedup_{name}"], 2) for name in names),
            ]
        )
    note = (
        "A click on the name of a column sorts by it. The interval is that of the accuracy for so many test images "
        "(Wilson), and empty where the balanced accuracy decides. Gain: over the source model, as published. Like for "
        "like: over the source model with only the target's classes to choose from. The tables "
        "<code>direct_binary.csv</code> and <code>direct_multiclass.csv</code> have all columns."
    )
    return f'<p class="note">{note}</p>{table(*without_empty(heads, rows))}'


def students_table(students: Table) -> str:
    """Return the table of the students."""
    heads = ["student", "source model", "data set", "accuracy %", "95 % interval", "published %", "DIR %"]
    heads += ["published %", "inherited of right", "weights kept %"]
    rows = []
    for _, row in students.iterrows():
        low, high = wilson(float(row["accuracy"]), int(row["images_test"]))
        rows.append(
            [
                student_name(row["student"], row["threshold"]).replace(" = ", "\u00a0=\u00a0"),
                row["model"],
                row["dataset"],
                per_cent(row["accuracy"]),
                interval(low, high),
                per_cent(row["published_accuracy"]),
                per_cent(row["defect_inheritance_rate"]),
                per_cent(row["published_defect_inheritance_rate"]),
                f"{row['images_inherited']:g} of {row['images_right']:g}",
                per_cent(row["retention"]),
            ]
        )
    note = (
        "DIR, the defect inheritance rate: the share, among the test images that a student gets right, of those that "
        "it gets wrong once they are perturbed against the source model."
    )
    return f'<p class="note">{note}</p>{table(*without_empty(heads, rows))}'


def means_table(summary: Table) -> str:
    """Return the table of the means: a row for each quantity and group of problems, without empty columns."""
    heads = {"quantity": "mean of", "group": "problems", "problems": "number", "ours_mean": "here"}
    heads |= {"published": "published", "unit": "unit", "problems_as_published": "of them as in the paper"}
    heads |= {"problems_selected_on_test": "of them selected on test images"}
    counts = ("problems_as_published", "problems_selected_on_test")
    empty = {name for name in counts if name in summary and not summary[name].fillna(0).any()}
    names = [name for name in heads if name in summary and name not in empty]
    rows = []
    for _, row in summary.iterrows():
        if row["quantity"] == "speedup_over_onnxruntime" and row["engine"] == "onnxruntime":
            continue  # the same as its speed-up
        cells: dict[str, object] = {name: row[name] for name in names}
        cells["quantity"] = quantity_title(row)
        cells["group"] = PROBLEMS.get(row["group"], row["group"])
        for name in ("ours_mean", "published"):
            cells[name] = Number(row[name], 2)
        cells |= {name: optional(row[name]) for name in ("problems", *counts) if name in names}
        rows.append([cells[name] for name in names])
    note = (
        "The same numbers as in <code>summary.csv</code>, which also has the versions of the engines. Published: the "
        "SeaM paper's mean over its own problems."
    )
    return f'<p class="note">{note}</p>{table([heads[name] for name in names], rows)}'


def quantity_title(row: Column) -> str:
    """Return the name of a quantity of the summary, with the engine or the student that it is of."""
    quantity = str(row["quantity"])
    if quantity in ENGINE_TITLES:
        return ENGINE_TITLES[quantity].format(engine_name(row["engine"]))
    title = TITLES.get(quantity, quantity.replace("_", " "))
    student = row.get("student")
    return (
        title if not isinstance(student, str) or not student else f"{title}, {student_name(student, row['threshold'])}"
    )


def whole_table(summary: Table) -> str:
    """Return a table with all its columns but those of paths. Shares are in per cent."""
    names = [name for name in summary.columns if name != "folder"]
    rows = [[_cell(name, row[name]) for name in names] for _, row in summary.iterrows()]
    heads = [name.replace("_", " ") + " %" * name.startswith(SHARES) for name in names]
    return table(heads, rows)


def _cell(column: str, value: Any) -> object:
    if not isinstance(value, numbers.Real):
        return value
    size = float(value)
    if column.startswith(SHARES):
        return per_cent(value, 2)
    if column.startswith(COUNTS):
        return optional(value)
    if column.endswith("_ms") and 0 < size < 1:  # three digits, however short
        return optional(value, 2 - math.floor(math.log10(size)))
    return optional(value, 2)


# Each problem


def problem_details(problems: Table, times: Mapping[str, Table]) -> Iterable[str]:
    """Yield a closed part of the page for each problem, below a field to search for names."""
    yield '<p><label>Show problems named <input type="search" id="filter" placeholder="cat"></label></p>'
    before, after = deciding(problems, "accuracy_source"), deciding(problems, "accuracy_reengineered")
    for place, row in problems.iterrows():
        numbers = (
            f"{100 * before[place]:.1f} → {100 * after[place]:.1f}\u00a0%, {100 * row['retention']:.1f}\u00a0% kept"
        )
        yield (
            f'<details class="problem" id="{problem_id(row)}"><summary><b>{text(problem_name(row))}</b> '
            f'<span class="note">{text(numbers)}</span></summary><div>{problem_content(row, times)}</div></details>'
        )


def problem_content(row: Column, times: Mapping[str, Table]) -> str:
    """Return what is known of a problem, from its folder; a sentence for what cannot be read."""
    folder = Path(row["folder"])
    try:
        recovered = bool(row.get("recovery_epochs", 0) > 0)  # files may be left of a recovery that is no longer wanted
        metrics, steps = read_metrics(folder, recovered), read_table(folder / "history.csv")
    except UserError as error:
        return f"<p>{text(error)}</p>"
    left = [f"<h3>Course of the search</h3>{history(steps, metrics)}"]
    matrices = metrics.get("confusion") or {}
    right = []
    for name, title in (
        ("reengineered", "Answers of the re-engineered model"),
        ("source", "Answers of the source model"),
    ):
        if name in matrices:
            right.append(f"<h3>{title}</h3>{confusion(matrices[name], metrics['classes'])}")
    if "per_class" in metrics:
        right.append(f"<h3>Each class</h3>{classes(metrics)}")
    left.append(f"<h3>Result</h3>{pairs(result(row, metrics, folder))}")
    right.append(f"<h3>Hyper-parameters</h3>{pairs(settings(metrics))}")
    if (card_file := folder / "card.md").is_file():
        left.append(f"<h3>Card</h3><pre>{text(card_file.read_text(encoding='utf-8', errors='replace'))}</pre>")
    rule_times = problem_times(times, f"{row['model']}/{row['problem']}/{row['target']}")
    if rule_times:
        left.append(f"<h3>Run times</h3>{table(['rule', 'seconds', 'memory, MB'], rule_times, sortable=False)}")
    return f'<div class="columns"><div>{"".join(left)}</div><div>{"".join(right)}</div></div>'


def history(steps: Table, metrics: Mapping[str, Any]) -> str:
    """Return the chart of a search: accuracy and weights kept by epoch."""
    evaluated = steps.dropna(subset=["accuracy"])
    lines = {
        "accuracy, images of the selection": (
            BLUE,
            list(zip(evaluated["epoch"], 100 * evaluated["accuracy"], strict=True)),
        ),
        "weights kept": (RED, list(zip(steps["epoch"], 100 * steps["retention"], strict=True))),
    }
    source = (metrics.get("holdout_accuracy") or {}).get("source")
    if source is not None:
        ends = [steps["epoch"].min(), steps["epoch"].max()]
        lines["source model, same images"] = (INK, [(end, 100 * source) for end in ends])
    return chart(lines, metrics.get("selected_epoch"), "Accuracy and weights kept by epoch")


def classes(metrics: Mapping[str, Any]) -> str:
    """Return the table of the classes of a problem."""
    after, before, images = (metrics["per_class"].get("reengineered", {}), metrics["per_class"].get("source", {}), {})
    images = metrics.get("test_images", {})
    rows = [
        [
            name,
            Number(images.get(name)),
            per_cent(before.get(name, {}).get("recall")),
            per_cent(values.get("recall")),
            per_cent(values.get("precision")),
        ]
        for name, values in after.items()
    ]
    return table(["class", "images", "source: right %", "re-engineered: right %", "precision %"], rows, sortable=False)


def result(row: Column, metrics: Mapping[str, Any], folder: Path) -> dict[str, object]:
    """Return the main numbers of a problem, and all others that metrics.json has."""
    values: dict[str, object] = {"folder": folder.as_posix(), "outputs": ", ".join(metrics["classes"])}
    for key, title in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced accuracy")):
        accuracies = metrics.get(key) or {}
        if accuracies:
            restricted = accuracies.get("source_restricted", accuracies["source"])
            fair = f", of the target's classes {100 * restricted:.2f}" if restricted != accuracies["source"] else ""
            values[title] = f"{100 * accuracies['source']:.2f}{fair} → {100 * accuracies['reengineered']:.2f} %"
    values["decided by"] = str(metrics.get("decided_by", "accuracy")).replace("_", " ")
    low, high = wilson(float(metrics["accuracy"]["reengineered"]), int(metrics["images"]["test"]))
    values["95 % interval of the accuracy"] = f"{100 * low:.2f} to {100 * high:.2f} %"
    values["weights kept"] = f"{metrics['kept']:,} of {metrics['weights']:,} ({100 * metrics['retention']:.2f} %)"
    if (macs := folder / "macs.json").is_file():
        counts = read_json(macs)
        values["MACs per image"] = f"{counts['source']['total']:,} → {counts['reengineered']['total']:,}"
    for name in engines(row.to_frame().T):
        before, after = row.get(f"latency_source_ms_{name}"), row.get(f"latency_reengineered_ms_{name}")
        if not pd.isna(before) and not pd.isna(after):
            version = row.get(f"version_{name}", "")
            values[f"{engine_name(name)} {'' if pd.isna(version) else version}".strip()] = (
                f"{before:.2f} → {after:.2f} ms for a batch"
            )
    values["images"] = ", ".join(f"{count:,} {name}" for name, count in metrics["images"].items())
    values["epochs"] = f"{metrics['epochs']}, of which {metrics['selected_epoch']} is the result"
    values["time of the search"] = duration(float(metrics["seconds"]))
    values["seed"] = metrics.get("seed")
    values["device"] = ", ".join(str(metrics[name]) for name in ("device", "precision") if name in metrics)
    values["torch"] = metrics.get("torch")
    if recovery := metrics.get("recovery"):
        values["recovery"] = (
            f"{recovery['epochs']} epochs in {duration(float(recovery['seconds']))}; accuracy before it "
            f"{100 * recovery['accuracy']['before']:.2f} %"
        )
    shown = {
        "accuracy",
        "balanced_accuracy",
        "decided_by",
        "confusion",
        "per_class",
        "test_images",
        "settings",
        "images",
    }
    shown |= {"classes", "kept", "weights", "retention", "epochs", "selected_epoch", "seconds", "seed", "device"}
    shown |= {"recovery", "precision", "torch", "model", "dataset", "problem", "target", "digest", "holdout_accuracy"}
    for name in sorted(metrics.keys() - shown):
        value = metrics[name]
        values[name.replace("_", " ")] = plain(value)
    return values


def settings(metrics: Mapping[str, Any]) -> dict[str, object]:
    """Return the hyper-parameters of a search."""
    return {name: plain(value) for name, value in sorted(metrics.get("settings", {}).items())}


def plain(value: Any) -> str:
    """Return a value of a JSON file as people write it.

    >>> plain({"limit": 0.25, "met": True, "widths": [8, 16], "engine": None})
    'limit 0.25; met yes; widths 8, 16; engine none'
    """
    if isinstance(value, Mapping):
        return "; ".join(f"{str(name).replace('_', ' ')} {plain(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


# The run


def run_times(folder: Path) -> dict[str, list[list[object]]]:
    """Return {what the jobs worked on: [rule, seconds, peak memory] of each}, from Snakemake's benchmark files."""
    rows_by_problem: dict[str, list[list[object]]] = defaultdict(list)
    for file in sorted(folder.rglob("*.tsv")):
        rule, _, where = file.relative_to(folder).with_suffix("").as_posix().partition("/")
        try:
            row = pd.read_csv(file, sep="\t").iloc[-1]
            seconds, memory = float(row["s"]), pd.to_numeric(row["max_rss"], errors="coerce")
        except (ValueError, KeyError, IndexError, OSError):
            continue
        rows_by_problem[where].append([rule, Number(seconds, 1), optional(memory)])
    return dict(rows_by_problem)


def problem_times(times: Mapping[str, list[list[object]]], problem: str) -> list[list[object]]:
    """Return [job, seconds, peak memory] of the jobs of a target problem: rules, with their engine or baseline.

    times: as `run_times` returns them. problem: MODEL/PROBLEM/TARGET.
    """
    rows = []
    for where, jobs in times.items():
        before, found, after = f"/{where}/".partition(f"/{problem}/")
        if found:
            of = " ".join(filter(None, (before.strip("/"), after.strip("/"))))
            rows += [[f"{rule} ({of})" if of else rule, *numbers] for rule, *numbers in jobs]
    return sorted(rows, key=lambda row: str(row[0]))


def gaps(problems: Table, students: Table, left_out: Sequence[str]) -> str:
    """Return what is missing, and what makes numbers less comparable."""
    lines = list(left_out)
    for name in engines(problems):
        missing = int(problems[f"speedup_{name}"].isna().sum())
        if missing:
            lines.append(f"No latency by {engine_name(name)} for {missing} of {len(problems)} target problems.")
    if len(problems) and not engines(problems):
        lines.append("No latency was measured: the config names no engine.")
    for rows, column, noun in (
        (problems, "search_selection", "target problems"),
        (students, "transfer_selection", "students"),
    ):
        on_test = int((rows[column] == "test").sum()) if column in rows else 0
        if on_test:
            lines.append(
                f"{on_test} of {len(rows)} {noun} had their epoch selected on the test images, as published, which "
                "flatters their accuracy."
            )
    small = int((problems["images_test"] < 200).sum()) if len(problems) else 0
    if small:
        lines.append(f"{small} of {len(problems)} target problems have fewer than 200 test images: mind the intervals.")
    if len(problems) and "decided_by" in problems:
        unequal = int((problems["decided_by"] == "balanced_accuracy").sum())
        if unequal:
            lines.append(f"In {unequal} target problems classes differ much in size: their balanced accuracy is shown.")
    if not lines:
        return "<p>Nothing that the config asks for is missing.</p>"
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def run_section(
    problems: Table, students: Table, times: Mapping[str, list[list[Any]]], config: Mapping[str, Any]
) -> str:
    """Return versions, the jobs' times by rule, and the config."""
    versions: dict[str, object] = {"Python": platform.python_version(), "system": platform.platform(terse=True)}
    versions["processor"] = describe_cpu()[0]
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    where = [rows for rows in (problems, students) if len(rows)]
    for column in ("torch", "device", "precision"):
        known = sorted({str(value) for rows in where if column in rows for value in rows[column].dropna()})
        versions[f"{column} of the results"] = ", ".join(known)
    by_rule: dict[str, list[list[Any]]] = defaultdict(list)
    for jobs in times.values():
        for job in jobs:
            by_rule[job[0]].append(job)
    rows = [
        [
            rule,
            Number(len(jobs)),
            Number(sum(job[1].value or 0 for job in jobs) / 60, 1),
            Number(max((job[2].value or 0 for job in jobs), default=0)),
        ]
        for rule, jobs in sorted(by_rule.items())
    ]
    content = json.dumps(config, indent=1, ensure_ascii=False, default=str)
    by_rule_table = table(["rule", "jobs", "minutes", "peak memory, MB"], rows)
    return (
        f"<h3>Versions</h3>{pairs(versions)}"
        f"{f'<h3>Times of the jobs, by rule</h3>{by_rule_table}' if rows else ''}"
        f"<details><summary>The whole configuration</summary><pre>{text(content)}</pre></details>"
    )

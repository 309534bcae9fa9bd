"""Draw the figures of direct reuse: accuracy, retention, cost, and the course of a search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from seam.report.style import BLUE, FAINT, GREY, INK, RED, blank, empty, looks, short, spread, style
from seam.report.tables import (
    PROBLEMS,
    TABLE_OF,
    Column,
    Table,
    all_problems,
    deciding,
    engine_name,
    engines,
    read_table,
    speedup_over_onnxruntime,
    time_saved,
    with_problem,
)

COLUMN_LENGTH = 50  # targets in one column of a panel
LINE_HEIGHT = 0.155  # inches from one target to the next
GOLDEN = 0.6180339887498949  # its multiples modulo 1 spread evenly: a jitter that is always the same
DASHED = {"linewidth": 0.9, "linestyle": (0, (4, 3))}
NO_PROBLEMS = "There are no target problems in this config."


def groups(binary: Table, multiclass: Table) -> list[tuple[str, str, Table]]:
    """Return [(model, kind of problem, rows)] of both tables, in their order."""
    return [
        (model, kind, rows)
        for name, table in (("binary", binary), ("multiclass", multiclass))
        for (model, kind), rows in with_problem(table, name).groupby(["model", "problem"], sort=False)
    ]


# Accuracy before and after, one line per target


def panel_columns(table: Table, most: int) -> list[Table]:
    """Return the rows of a panel in columns of equal length, at most `most` of them."""
    pieces = min(most, math.ceil(len(table) / COLUMN_LENGTH))
    length = math.ceil(len(table) / pieces)
    return [table.iloc[start : start + length] for start in range(0, len(table), length)]


def lines_of_panels(sizes: Mapping[str, int]) -> list[list[str]]:
    """Return the models of {model: its number of targets}, smallest first, in lines of one or two of similar size."""
    lines: list[list[str]] = []
    for model, size in sizes.items():
        if lines and len(lines[-1]) == 1 and size <= 3 * sizes[lines[-1][0]]:
            lines[-1].append(model)
        else:
            lines.append([model])
    return lines


def draw_dumbbells(axes: Axes, rows: Table, height: int, limits: tuple[float, float], restricted: bool) -> None:
    """Draw one line per target, the first at the top: a ring before and a dot after re-engineering, in per cent.

    height: of the panel, in lines. limits: the ends of its axis of accuracies. restricted: whether to mark the
    accuracy of the source model that chooses among the target's classes only.
    """
    places = range(len(rows))
    before, after = 100 * deciding(rows, "accuracy_source"), 100 * deciding(rows, "accuracy_reengineered")
    colours = [BLUE if gain >= 0 else RED for gain in rows["accuracy_gain_points"]]
    axes.hlines(places, before, after, colors=colours, linewidth=1.6, alpha=0.55, zorder=2)
    axes.scatter(before, places, s=26, facecolors="white", edgecolors=GREY, linewidths=1.1, zorder=3, label="source")
    axes.scatter(after, places, s=15, color=colours, linewidths=0, zorder=4, label="reengineered")
    if restricted:
        fair = 100 * deciding(rows, "accuracy_source_restricted")
        axes.scatter(fair, places, s=34, marker="|", color=INK, linewidths=1.1, zorder=3, label="restricted")
    axes.set_yticks(places, [short(name) for name in rows["target"]], fontsize=8 if len(rows) <= 25 else 7)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(*limits)
    axes.set_ylim(height - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("accuracy (%)")


@style()
def accuracy(table: Table, problem: str) -> Figure:
    """Draw the accuracy on each target before and after, one panel per model, sorted by the source model's accuracy."""
    kind = PROBLEMS[problem]
    title = f"Accuracy before and after re-engineering, {kind} problems"
    if not len(table):
        return empty(title, f"There are no {kind} problems in this config.")
    table = with_problem(table, problem)
    restricted = bool((table["accuracy_source_restricted"].dropna() != table["accuracy_source"]).any())
    names = ["accuracy_source", "accuracy_reengineered"] + ["accuracy_source_restricted"] * restricted
    shown = pd.DataFrame({name: deciding(table, name) for name in names})
    limits = {name: spread(100 * shown.loc[rows.index]) for name, rows in table.groupby("dataset")}
    others = table["problem"] != problem  # a group against the rest, say, in a panel of its own
    table = table.assign(panel=table["model"] + (", " + table["problem"].map(PROBLEMS)).where(others, ""))
    sizes = {panel: int((table["panel"] == panel).sum()) for panel in table["panel"].unique()}
    sizes = dict(sorted(sizes.items(), key=lambda item: item[1]))  # similar sizes go side by side
    lines = lines_of_panels(sizes)
    beside = max(len(line) for line in lines)
    panels = {}
    for model in sizes:
        rows = table[table["panel"] == model]
        rows = rows.assign(order=deciding(rows, "accuracy_source"))
        rows = rows.sort_values(["order", "target"], ascending=[False, True])
        panels[model] = panel_columns(rows, 4 // beside)
    split = max(len(columns) for columns in panels.values())
    line_lengths = [max(2, *(len(panels[model][0]) for model in line)) for line in lines]
    heights = [length * LINE_HEIGHT + 0.85 for length in line_lengths]
    width = max(7.2, (3.4 if split > 1 else 4.0) * beside * split)
    figure = blank(width, sum(heights) + 0.8, title)
    grid = figure.add_gridspec(len(lines), beside * split, height_ratios=heights)
    for line, models in enumerate(lines):
        panel_width = beside * split // len(models)  # in cells of the grid
        for place, model in enumerate(models):
            column_width = panel_width // len(panels[model])
            for number, rows in enumerate(panels[model]):
                left = place * panel_width + number * column_width
                axes = figure.add_subplot(grid[line, left : left + column_width])
                draw_dumbbells(axes, rows, line_lengths[line], limits[rows["dataset"].iloc[0]], restricted)
                if number == 0:
                    all_rows = table[table["panel"] == model]
                    before, after = (
                        100 * deciding(all_rows, name).mean() for name in ("accuracy_source", "accuracy_reengineered")
                    )
                    targets = "1 target" if len(all_rows) == 1 else f"{len(all_rows)} targets"
                    axes.set_title(f"{model}: {targets}, mean {before:.2f} → {after:.2f} %")
                else:
                    axes.set_title(" ")
    ring = {"marker": "o", "linestyle": "", "markersize": 5}
    handles = [
        Line2D([], [], markerfacecolor="white", markeredgecolor=GREY, label="source model", **ring),
        Line2D([], [], color=BLUE, label="re-engineered, better or equal", **ring),
        Line2D([], [], color=RED, label="re-engineered, worse", **ring),
    ]
    if restricted:
        name = "source model, target's classes only"
        handles.insert(1, Line2D([], [], color=INK, marker="|", linestyle="", markersize=7, label=name))
    figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles) if width > 7.2 else 2, handletextpad=0.2
    )
    return figure


# Retention against accuracy


@style()
def retention_accuracy(binary: Table, multiclass: Table, published: float) -> Figure:
    """Draw the share of kept weights against the re-engineered model's accuracy, one point per problem.

    published: the paper's mean share of kept weights, in per cent.
    """
    title = "Weights kept and accuracy of the re-engineered models"
    panels = groups(binary, multiclass)
    if not panels:
        return empty(title, NO_PROBLEMS)
    figure = blank(7.2, 4.6, title)
    axes = figure.add_subplot()
    look = looks(list(dict.fromkeys(model for model, _, _ in panels)))
    for model, kind, rows in panels:
        paint = look[model]["color"]
        solid = {"facecolors": paint, "edgecolors": "white", "linewidths": 0.5}
        hollow = {"facecolors": "none", "edgecolors": paint, "linewidths": 1.3}
        axes.scatter(
            100 * rows["retention"],
            100 * deciding(rows, "accuracy_reengineered"),
            s=30,
            marker=look[model]["marker"],
            alpha=0.85,
            label=f"{model}, {PROBLEMS[kind]}",
            zorder=3,
            **(solid if TABLE_OF[kind] == "binary" else hollow),
        )
    axes.axvline(published, color=GREY, zorder=1, **DASHED)
    axes.annotate(
        f"published mean, {published:.2f} %",
        (published, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(3, 2),
        textcoords="offset points",
        color=GREY,
        fontsize=7.5,
    )
    axes.set_xlim(left=0)
    accuracies = pd.concat([deciding(rows, "accuracy_reengineered") for _, _, rows in panels])
    axes.set_ylim(*spread(100 * accuracies.to_frame()))
    axes.set_xlabel("weights kept (%)")
    axes.set_ylabel("accuracy on the target problem (%)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.2)
    return figure


# What is saved


def savings(table: Table) -> list[tuple[str, Column, str, str]]:
    """Return [(title, saved per cent by problem, published quantity, engine)] of the panels of the cost figure."""
    panels = [
        ("Weights", 100 * (1 - table["retention"]), "weights_kept", ""),
        ("MACs", 100 * table["macs_reduction"], "", ""),
    ]
    for engine in engines(table):
        title = f"Inference time, {engine_name(engine)}"
        panels.append((title, time_saved(table, engine), "inference_time_reduction", engine))
    return panels


@style()
def cost(binary: Table, multiclass: Table, published: Mapping[tuple[str, str], float]) -> Figure:
    """Draw what re-engineering saves, per model: bars are means, dots are problems.

    published: {(quantity, engine): published mean in per cent}.
    """
    title = "Saved by re-engineering: means (bars) and problems (dots)"
    table = all_problems(binary, multiclass)
    if not len(table):
        return empty(title, NO_PROBLEMS)
    lines = [(model, kind) for model, kind, _ in groups(binary, multiclass)]
    panels = savings(table)
    columns = 2 if len(lines) <= 3 and len(panels) > 2 else min(len(panels), 4)  # few lines: as wide as a page
    rows = math.ceil(len(panels) / columns)
    figure = blank(1.6 + 2.5 * columns, 0.5 + (1 + 0.55 * len(lines)) * rows, title)
    plots = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes in plots[len(panels) :]:
        axes.remove()
    for axes, (name, values, quantity, engine) in zip(plots, panels, strict=False):
        axes.set_title(name)
        if values.notna().any():
            axes.text(1.03, 1.02, "mean", transform=axes.transAxes, color=GREY, fontsize=8)
        for place, (model, kind) in enumerate(lines):
            chosen = values[(table["model"] == model) & (table["problem"] == kind)]
            measured = chosen.dropna()
            if len(measured):
                axes.barh(place, measured.mean(), height=0.62, color=BLUE, alpha=0.3, linewidth=0)
                jitter = [place + 0.5 * (index * GOLDEN % 1 - 0.5) for index in range(1, len(measured) + 1)]
                axes.scatter(measured, jitter, s=9, color=BLUE, alpha=0.75, linewidths=0, zorder=3)
                mean = f"{measured.mean():.1f}".replace("-", "−")
                axes.text(1.03, place, mean, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
            if len(measured) < len(chosen):
                gap = f"{len(measured)} of {len(chosen)} measured" if len(measured) else "not measured"
                beside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
                axes.annotate(gap, (0, place), color=GREY, fontsize=8, **beside)
        value = published.get((quantity, engine))
        if value is not None and values.notna().any():
            axes.axvline(value, color=GREY, zorder=1, **DASHED)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        lowest = values.min()  # NaN where nothing is measured
        axes.set_xlim(lowest - 4 if lowest < 0 else 0, 100)
        axes.set_xlabel("saved (%)")
    plots[0].set_yticks(range(len(lines)), [f"{model}\n{PROBLEMS[kind]}" for model, kind in lines])
    plots[0].set_ylim(len(lines) - 0.5, -0.5)
    dashes = Line2D([], [], color=GREY, label="published mean", **DASHED)
    figure.legend(handles=[dashes], loc="outside lower left")
    return figure


@style()
def speed(binary: Table, multiclass: Table) -> Figure:
    """Draw how many times as fast each engine runs the re-engineered models as ONNX Runtime the source models.

    One panel per model and kind of problem, one bar per engine: bars are means, dots are problems.
    """
    title = "Speed against the source model in ONNX Runtime, float32: means (bars) and problems (dots)"
    table = all_problems(binary, multiclass)
    if not len(table):
        return empty(title, NO_PROBLEMS)
    names = [engine for engine in engines(table) if speedup_over_onnxruntime(table, engine).notna().any()]
    if not names:
        return empty(title, "ONNX Runtime has timed no source model in this config.")
    panels = groups(binary, multiclass)
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure = blank(2.6 + 2.9 * columns, 0.7 + (0.8 + 0.3 * len(names)) * rows, title)
    plots = list(figure.subplots(rows, columns, sharey=True, sharex=True, squeeze=False).flat)
    for axes in plots[len(panels) :]:
        axes.remove()
        plots[len(panels) - columns].tick_params(labelbottom=True)  # the panel above it
    longest = 1.0
    for axes, (model, kind, problems) in zip(plots, panels, strict=False):
        axes.set_title(f"{model}, {PROBLEMS[kind]}")
        for place, engine in enumerate(names):
            measured = speedup_over_onnxruntime(problems, engine).dropna()
            if not len(measured):
                axes.annotate("not measured", (0, place), color=GREY, fontsize=8, va="center")
                continue
            longest = max(longest, measured.max())
            axes.barh(place, measured.mean(), height=0.62, color=BLUE, alpha=0.3, linewidth=0)
            jitter = [place + 0.5 * (index * GOLDEN % 1 - 0.5) for index in range(1, len(measured) + 1)]
            axes.scatter(measured, jitter, s=9, color=BLUE, alpha=0.75, linewidths=0, zorder=3)
            mean = f"{measured.mean():.2f}"
            axes.text(1.03, place, mean, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.axvline(1, color=GREY, zorder=1, **DASHED)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("times as fast")
    plots[0].set_xlim(0, 1.05 * longest)
    plots[0].set_yticks(range(len(names)), [engine_label(table, engine) for engine in names])
    plots[0].set_ylim(len(names) - 0.5, -0.5)
    dashes = Line2D([], [], color=GREY, label="source model in ONNX Runtime", **DASHED)
    figure.legend(handles=[dashes], loc="outside lower left")
    return figure


def engine_label(table: Table, engine: str) -> str:
    """Return an engine's name for an axis, with a word if it gains from zeros."""
    gains = "yes" in set(table[f"gains_from_zeros_{engine}"])
    return f"{engine_name(engine)}\nskips zeros" if gains else engine_name(engine)


# The course of a search


def first_targets(binary: Table, multiclass: Table) -> list[tuple[str, Column]]:
    """Return [(kind of problem, row)] of the first target of each model and kind of problem."""
    return [(kind, rows.iloc[0]) for _, kind, rows in groups(binary, multiclass)]


def draw_search(axes: Axes, steps: Table, row: Column) -> None:
    """Draw one search: accuracy and retention in per cent against the epoch.

    The source model's accuracy is dashed if it is known on the same images, those of the selection.
    """
    epochs = steps["epoch"]
    for epoch in epochs[steps["phase"] == "head"]:
        axes.axvspan(epoch - 0.5, epoch + 0.5, color=FAINT, alpha=0.45, linewidth=0, zorder=0)
    on_test = deciding(row.to_frame().T, "accuracy_source").iloc[0]
    source = {"holdout": row["holdout_accuracy_source"], "test": on_test}.get(row["search_selection"])
    if source is not None:  # with `selection: last`, the accuracy is on training images
        axes.axhline(100 * source, color=INK, zorder=2, label="source", **DASHED)
    accuracy = steps.set_index("epoch")["accuracy"].dropna()  # of the epochs that were evaluated
    axes.plot(accuracy.index, 100 * accuracy, color=BLUE, label="accuracy", zorder=3)
    axes.plot(epochs, 100 * steps["retention"], color=RED, label="retention", zorder=3)
    chosen = steps[epochs == row["selected_epoch"]]
    axes.axvline(row["selected_epoch"], color=INK, linewidth=0.9, zorder=2, label="selected")
    dots = {"s": 26, "edgecolors": "white", "linewidths": 0.8, "zorder": 4, "clip_on": False}
    for name, colour in (("accuracy", BLUE), ("retention", RED)):
        axes.scatter(chosen["epoch"], 100 * chosen[name], color=colour, **dots)
    axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    axes.set_ylim(0, 102)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))


@style()
def history(binary: Table, multiclass: Table, histories: Mapping[str, Table]) -> Figure:
    """Draw the search of the first target of each model and kind of problem.

    histories: {folder of the problem: its history}.
    """
    title = "Course of the search, first target of each model and kind of problem"
    searches = first_targets(binary, multiclass)
    if not searches:
        return empty(title, NO_PROBLEMS)
    columns = min(len(searches), 2 if len(searches) in (2, 4) else 3)
    rows = math.ceil(len(searches) / columns)
    figure = blank(max(6.5, 3.6 * columns), 2.75 * rows + 0.8, title)
    plots = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for place, axes in enumerate(plots.flat):
        if place >= len(searches):
            axes.remove()
            continue
        kind, row = searches[place]
        axes.set_title(f"{row['model']}\n{PROBLEMS[kind]}: {short(row['target'])}")
        if row["folder"] in histories:
            draw_search(axes, histories[row["folder"]], row)
        else:
            axes.set_xticks([])
            axes.text(0.5, 0.5, "no history", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xlabel("epoch")
        if place % columns == 0:
            axes.set_ylabel("accuracy, weights kept (%)")
    handles = [
        Line2D([], [], color=BLUE, label="accuracy, selection images"),
        Line2D([], [], color=INK, label="source model's accuracy, same images", **DASHED),
        Line2D([], [], color=RED, label="weights kept"),
        Line2D([], [], color=INK, linewidth=0.9, label="selected epoch"),
        Patch(color=FAINT, alpha=0.45, linewidth=0, label="head-only epoch"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2 if columns < 3 else 5)
    return figure


# All of them


def published_savings(published: Table) -> dict[tuple[str, str], float]:
    """Return {(quantity, engine): per cent saved} for the quantities that the paper gives over its whole evaluation."""
    overall = published[(published["reuse"] == "direct") & (published["architecture"] == "")]
    overall = overall[overall["unit"] == "%"]
    values = {(row.quantity, row.engine): row.value for row in overall.itertuples()}
    values["weights_kept", ""] = 100 - values["weights_kept", ""]
    return values


def figures(binary: Table, multiclass: Table, histories: Mapping[str, Table], published: Table) -> dict[str, Figure]:
    """Return {name: figure} of all figures of direct reuse.

    histories: {folder of the problem: its history}, at least of the first target of each model and kind of problem.
    """
    saved = published_savings(published)
    return {
        "accuracy_binary": accuracy(binary, "binary"),
        "accuracy_multiclass": accuracy(multiclass, "multiclass"),
        "retention_accuracy": retention_accuracy(binary, multiclass, 100 - saved["weights_kept", ""]),
        "cost": cost(binary, multiclass, saved),
        "engines": speed(binary, multiclass),
        "history": history(binary, multiclass, histories),
    }


def figures_of_files(
    binary: str | Path, multiclass: str | Path, histories: Iterable[str | Path], published: str | Path
) -> dict[str, Figure]:
    """Return {name: figure} from the paths of the tables, of the problems' history.csv and of published.csv."""
    tables = read_table(binary), read_table(multiclass)
    folders = {row["folder"] for _, row in first_targets(*tables)}
    paths = {Path(path).parent.as_posix(): path for path in histories}
    courses = {folder: read_table(path) for folder, path in paths.items() if folder in folders}
    return figures(*tables, courses, read_table(published))

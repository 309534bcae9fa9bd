"""Draw the figures of indirect reuse: accuracy and DIR against the threshold, and the DIR of each student.

DIR is the defect inheritance rate. Here, a student's key is (student, threshold or None), and its published values are
{key: value in per cent}.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from seam.report.style import COLOURS, GREY, INK, blank, empty, short, spread, style
from seam.report.tables import STUDENTS, Column, Table, published_students, read_table, student_name, threshold_key

LOOKS = {  # the colours are those of the bars, too
    "standard": {"color": INK, "linestyle": (0, (5, 2.5))},
    "seam": {"color": COLOURS[0], "marker": "o", "markersize": 4.5, "zorder": 5},
    # Hollow and larger, so that SeaM's point shows inside if they coincide.
    "magnitude": {"color": COLOURS[1], "marker": "s", "markersize": 7, "markerfacecolor": "none", "zorder": 4},
    "random": {"color": COLOURS[2], "marker": "^", "markersize": 7, "markerfacecolor": "none", "zorder": 4},
    "remos": {"color": COLOURS[3], "linestyle": (0, (3, 1.5, 1, 1.5))},
    "retrain": {"color": GREY, "linestyle": (0, (1, 1.5))},
}
Key = tuple[str, float | None]
Panel = tuple[str, str, str]  # model, data set, quantity

QUANTITIES = {"accuracy": "accuracy (%)", "defect_inheritance_rate": "DIR (%)"}
LINE_HEIGHT = 0.21  # inches from one bar to the next


def datasets_by_model(table: Table) -> dict[str, list[str]]:
    """Return {model: its data sets}, in the table's order."""
    return {model: list(rows["dataset"].unique()) for model, rows in table.groupby("model", sort=False)}


def chunks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    """Return the items in pieces of `size`; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def rows_of(table: Table, model: str, dataset: str) -> Table:
    """Return the students of a source model on a data set."""
    return table[(table["model"] == model) & (table["dataset"] == dataset)]


def published_values(published: Table, quantity: str, rows: Table) -> dict[Key, float]:
    """Return the published values of a quantity for the architecture and data set of these rows."""
    place = quantity, rows["architecture"].iloc[0], rows["dataset"].iloc[0]
    values = published_students(published)
    students = set(STUDENTS) - ({"remos"} - set(rows["student"]))  # ReMoS is shown only beside its student here
    return {key[3:]: value for key, value in values.items() if key[:3] == place and key[3] in students}


def panel_title(model: str, dataset: str) -> str:
    """Return the title of a panel: the model above the data set."""
    return f"{short(model)}\n{short(dataset)}"


def has_published(figure: Figure) -> bool:
    """Return whether a published value is drawn in the figure."""
    return any(str(line.get_label()).startswith("published") for axes in figure.axes for line in axes.lines)


# Accuracy and DIR against the threshold


def layout(datasets: Mapping[str, Sequence[str]]) -> list[list[Panel]]:
    """Return the panels for {model: its data sets} in lines.

    If no model has more than two data sets, each data set has a line with accuracy beside DIR. Otherwise five data
    sets share a line, with accuracy above DIR.
    """
    if max(map(len, datasets.values())) <= 2:
        return [
            [(model, name, quantity) for quantity in QUANTITIES] for model, names in datasets.items() for name in names
        ]
    return [
        [(model, name, quantity) for name in chunk]
        for model, names in datasets.items()
        for chunk in chunks(names, 5)
        for quantity in QUANTITIES
    ]


def draw_curves(axes: Axes, rows: Table, quantity: str, published: Mapping[Key, float]) -> None:
    """Draw one data set's accuracy or DIR: a line per student with masks, a level per other student.

    Published values are faint.
    """
    study = sorted((t, value) for (student, t), value in published.items() if student == "seam" and t is not None)
    if study:
        faint = {"linewidth": 3.5, "marker": "o", "markersize": 8, "markeredgewidth": 0, "alpha": 0.25, "zorder": 2}
        axes.plot(*zip(*study, strict=True), color=LOOKS["seam"]["color"], **faint, label="published seam")
    for student, look in LOOKS.items():
        curve = rows[rows["student"] == student].dropna(subset=quantity).sort_values("threshold")
        if "marker" in look and len(curve):
            axes.plot(curve["threshold"], 100 * curve[quantity], **look, linewidth=1.2, label=student, clip_on=False)
        elif len(curve):
            axes.axhline(100 * curve[quantity].iloc[0], **look, linewidth=1.2, label=student)
        if (student, None) in published:
            faint = {"color": look["color"], "linewidth": 3.5, "alpha": 0.15}
            axes.axhline(published[student, None], **faint, label=f"published {student}")


def gaps(table: Table, datasets: Mapping[str, Sequence[str]], students: Sequence[str]) -> list[str]:
    """Return a sentence for each data set that lacks one of the `students`, or a DIR of one.

    datasets: {model: its data sets}.
    """
    sentences = []
    for model, names in datasets.items():
        for name in names:
            rows = rows_of(table, model, name)
            absent = [STUDENTS[student] for student in students if student not in set(rows["student"])]
            undefined = rows[rows["defect_inheritance_rate"].isna()].itertuples()
            parts = [f"{student} not made" for student in absent]
            parts += [f"no DIR of {student_name(row.student, row.threshold)} (no image right)" for row in undefined]
            if parts:
                sentences.append(f"{model}, {name}: {'; '.join(parts)}")
    return sentences


def share_axes(panels: Sequence[tuple[str, str, Axes, Column]], thresholds: Iterable[float]) -> None:
    """Give all data sets of a model the same axes of accuracy and of DIR, and all panels the same thresholds.

    panels: [(model, quantity, its axes, all values drawn)].
    """
    ticks = sorted(thresholds)
    width = ticks[-1] - ticks[0] + 0.1
    close = any(after - before < 0.13 * width for before, after in itertools.pairwise(ticks))
    for model, quantity, axes, _ in panels:
        drawn = pd.concat([values for *key, _, values in panels if key == [model, quantity]]).dropna()
        low, high = spread(drawn) if len(drawn) else (0, 100)
        axes.set_ylim(low if quantity == "accuracy" else 0, high)
        axes.set_xlim(ticks[0] - 0.05, ticks[-1] + 0.05)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=90 if close else 0)
        axes.grid(axis="x", visible=False)


@style()
def thresholds(study: Table, table: Table, published: Table) -> Figure:
    """Draw accuracy and DIR against the threshold, the share of weights to remove, for each model and data set.

    study: the table of the threshold study. table: that of all students. published: the published values.
    """
    title = "Accuracy and inherited defects (DIR) by threshold"
    if not len(study):
        return empty(title, "There are no students with masks in this config.")
    datasets = datasets_by_model(table.merge(study[["model", "dataset"]].drop_duplicates()))
    lines = layout(datasets)
    columns = max(map(len, lines))
    students = [student for student in LOOKS if student in set(table["student"])]
    notes = gaps(table, datasets, students)
    panels, drawn_thresholds = [], set(study["threshold"])
    figure = blank(max(7.2, 0.9 + 2.15 * columns), 1.1 + 2.05 * len(lines) + 0.15 * len(notes), title)
    grid = figure.add_gridspec(len(lines), columns)
    for line, members in enumerate(lines):
        beside = len({quantity for _, _, quantity in members}) > 1  # accuracy beside DIR
        for place, (model, dataset, quantity) in enumerate(members):
            axes = figure.add_subplot(grid[line, place])
            rows = rows_of(table, model, dataset)
            known = published_values(published, quantity, rows)
            draw_curves(axes, rows, quantity, known)
            values = [*(100 * rows[quantity]), *known.values()]
            panels.append((model, quantity, axes, pd.Series(values, dtype=float)))
            drawn_thresholds |= {threshold for _, threshold in known if threshold}
            if beside or quantity == "accuracy":
                axes.set_title(panel_title(model, dataset))
            if beside or place == 0:
                axes.set_ylabel(QUANTITIES[quantity])
            if beside or quantity != "accuracy":
                axes.set_xlabel("share of weights to remove, t")
    share_axes(panels, drawn_thresholds)
    handles = [Line2D([], [], label=STUDENTS[student], linewidth=1.2, **LOOKS[student]) for student in students]
    if has_published(figure):
        handles.append(Line2D([], [], color=GREY, linewidth=3.5, alpha=0.4, label="published (faint)"))
    legend = figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), title="\n".join(notes), alignment="left"
    )
    legend.get_title().set(fontsize=7.5, color=GREY)
    return figure


# DIR per student


def draw_bars(axes: Axes, rows: Table, keys: Sequence[Key], published: Mapping[Key, float], highest: float) -> None:
    """Draw the DIR of one data set's students as bars, the first at the top.

    On the right are the counts behind it, and the accuracy on clean and on perturbed images: a student that has
    forgotten much has little to inherit. keys: the student of each line. published: their published DIR. highest: the
    end of the axis, in per cent.
    """
    students = {(row.student, threshold_key(row.threshold)): row for row in rows.itertuples()}

    def note(place: float, text: str, points: int, colour: str, align: str = "left") -> None:
        """Write a text on a line, so many points to the right of the panel's end."""
        beside = {"xytext": (points, 0), "textcoords": "offset points", "va": "center", "ha": align}
        axes.annotate(text, (1, place), xycoords=axes.get_yaxis_transform(), fontsize=7.5, color=colour, **beside)

    note(-0.95, "DIR (%)", 36, GREY, "right")
    note(-0.95, "inherited of right", 42, GREY)
    note(-0.95, "accuracy → attacked (%)", 128, GREY)
    for place, key in enumerate(keys):
        row = students.get(key)
        if row is None or pd.isna(row.defect_inheritance_rate):
            note(place, "not made" if row is None else "no image right", 42, GREY)
        else:
            rate = 100 * row.defect_inheritance_rate
            axes.barh(place, rate, height=0.66, color=LOOKS[row.student]["color"], alpha=0.7, linewidth=0)
            note(place, f"{rate:.1f}", 36, INK, "right")
            note(place, f"{row.images_inherited:.0f} of {row.images_right:.0f}", 42, GREY)
            note(place, f"{100 * row.accuracy:.1f} → {100 * row.accuracy_perturbed:.1f}", 128, GREY)
        if key in published:
            axes.plot([published[key]] * 2, [place - 0.44, place + 0.44], color=INK, linewidth=1.6, label="published")
    axes.set_xlim(0, highest)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.set_ylim(len(keys) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def student_keys(rows: Table) -> list[Key]:
    """Return the keys of all students of a model, in the order in which they are shown."""
    keys = {(row.student, threshold_key(row.threshold)) for row in rows.itertuples()}
    return sorted(keys, key=lambda key: (list(STUDENTS).index(key[0]), key[1] or 0))


@style()
def defects(table: Table, published: Table) -> Figure:
    """Draw the DIR of each student, one panel per model and data set, with the published values as ticks."""
    title = "Defect inheritance rate (DIR) of each student"
    if not len(table):
        return empty(title, "There are no students in this config.")
    lines = [
        (model, chunk, student_keys(table[table["model"] == model]))
        for model, datasets in datasets_by_model(table).items()
        for chunk in chunks(datasets, 2 if len(datasets) in (2, 4) else 3)
    ]
    known = {
        (model, dataset): published_values(published, "defect_inheritance_rate", rows_of(table, model, dataset))
        for model, chunk, _ in lines
        for dataset in chunk
    }
    published_rates = [value for values in known.values() for value in values.values()]
    rates = pd.Series([*(100 * table["defect_inheritance_rate"]), *published_rates])
    highest = min(100, 10 * math.ceil(max(rates.max(), 1) / 10)) if rates.notna().any() else 100
    columns = max(len(chunk) for _, chunk, _ in lines)
    heights = [max(2, len(keys)) for _, _, keys in lines]
    figure = blank(max(7.2, 1.3 + 4.5 * columns), 0.7 + sum(1.05 + LINE_HEIGHT * n for n in heights), title)
    grid = figure.add_gridspec(len(lines), columns, height_ratios=heights)
    for line, (model, chunk, keys) in enumerate(lines):
        for place, dataset in enumerate(chunk):
            axes = figure.add_subplot(grid[line, place])
            draw_bars(axes, rows_of(table, model, dataset), keys, known[model, dataset], highest)
            axes.set_title(panel_title(model, dataset), pad=19)  # above the heads of the columns
            names = [student_name(*key) if place == 0 else "" for key in keys]
            axes.set_yticks(range(len(keys)), names)
            axes.set_xlabel("DIR (%)")
    if has_published(figure):
        tick = Line2D([], [], color=INK, marker="|", markersize=9, markeredgewidth=1.6, linestyle="", label="published")
        figure.legend(handles=[tick], loc="outside lower left", handletextpad=0.2)
    return figure


def figures(indirect: Table, study: Table, published: Table) -> dict[str, Figure]:
    """Return {name: figure} of all figures of indirect reuse."""
    return {"thresholds": thresholds(study, indirect, published), "defects": defects(indirect, published)}


def figures_of_files(indirect: str | Path, study: str | Path, published: str | Path) -> dict[str, Figure]:
    """Return {name: figure} from the paths of the tables and of published.csv."""
    return figures(read_table(indirect), read_table(study), read_table(published))

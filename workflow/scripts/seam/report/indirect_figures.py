"""Draw what the tables of indirect reuse say: accuracy and DIR against the threshold, and the DIR of each student."""

import itertools
import math

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from seam.report.style import COLOURS, GREY, INK, blank, empty, short, spread, style
from seam.report.tables import STUDENTS, published_students, same_threshold, student_name

LOOKS = {  # the colours are those of the bars, too
    "standard": {"color": INK, "linestyle": (0, (5, 2.5))},
    "seam": {"color": COLOURS[0], "marker": "o", "markersize": 4.5, "zorder": 5},
    # Hollow and larger, so that SeaM's point is seen inside where they coincide.
    "magnitude": {"color": COLOURS[1], "marker": "s", "markersize": 7, "markerfacecolor": "none", "zorder": 4},
    "random": {"color": COLOURS[2], "marker": "^", "markersize": 7, "markerfacecolor": "none", "zorder": 4},
    "retrain": {"color": GREY, "linestyle": (0, (1, 1.5))},
}
QUANTITIES = {"accuracy": "accuracy (%)", "defect_inheritance_rate": "DIR (%)"}
LINE = 0.21  # inches from one bar to the next


def pairs(table):
    """{model: [its data sets]}, in the table's order."""
    return {model: list(rows["dataset"].unique()) for model, rows in table.groupby("model", sort=False)}


def chunks(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


def of(table, model, dataset):
    return table[(table["model"] == model) & (table["dataset"] == dataset)]


def published_of(published, quantity, rows):
    """{(student, threshold or None): published value in per cent} for the model and data set of these rows."""
    place = quantity, rows["architecture"].iloc[0], rows["dataset"].iloc[0]
    known = published_students(published)
    return {key[3:]: value for key, value in known.items() if key[:3] == place and key[3] in STUDENTS}


def title_of(model, dataset):
    return f"{short(model)}\n{short(dataset)}"


# Accuracy and DIR against the threshold


def layout(found):
    """The panels of {model: its data sets}: lines of (model, data set, quantity).

    Where no model has more than two data sets, a line for each, accuracy beside DIR; else five data sets
    in a line, accuracy above DIR.
    """
    if max(map(len, found.values())) <= 2:
        return [
            [(model, dataset, quantity) for quantity in QUANTITIES]
            for model, datasets in found.items()
            for dataset in datasets
        ]
    return [
        [(model, dataset, quantity) for dataset in chunk]
        for model, datasets in found.items()
        for chunk in chunks(datasets, 5)
        for quantity in QUANTITIES
    ]


def curves(axes, rows, quantity, known):
    """One data set's accuracy or DIR: a line per student with masks, a level for the others; published ones faint.

    `known`: {(student, threshold or None): published value in per cent}.
    """
    study = sorted((t, value) for (student, t), value in known.items() if student == "seam")
    if study:
        faint = {"linewidth": 3.5, "marker": "o", "markersize": 8, "markeredgewidth": 0, "alpha": 0.25, "zorder": 2}
        axes.plot(*zip(*study, strict=True), color=LOOKS["seam"]["color"], **faint, label="published seam")
    for student, look in LOOKS.items():
        mine = rows[rows["student"] == student].dropna(subset=quantity).sort_values("threshold")
        if "marker" in look and len(mine):
            axes.plot(mine["threshold"], 100 * mine[quantity], **look, linewidth=1.2, label=student, clip_on=False)
        elif len(mine):
            axes.axhline(100 * mine[quantity].iloc[0], **look, linewidth=1.2, label=student)
        if (student, None) in known:
            faint = {"color": look["color"], "linewidth": 3.5, "alpha": 0.15}
            axes.axhline(known[student, None], **faint, label=f"published {student}")


def lacking(table, found, everybody):
    """A sentence for each data set of {model: its data sets} that lacks a student or a DIR that others have."""
    sentences = []
    for model, datasets in found.items():
        for dataset in datasets:
            rows = of(table, model, dataset)
            absent = [STUDENTS[student] for student in everybody if student not in set(rows["student"])]
            undefined = rows[rows["defect_inheritance_rate"].isna()].itertuples()
            gaps = [
                *(f"{name} not made" for name in absent),
                *(f"no DIR of {student_name(row.student, row.threshold)} (no image right)" for row in undefined),
            ]
            if gaps:
                sentences.append(f"{model}, {dataset}: {'; '.join(gaps)}")
    return sentences


def share_axes(panels, reached):
    """The same axis of accuracies and of DIRs for all data sets of a model, the same thresholds for all panels.

    `panels`: [(model, quantity, its axes, all values drawn)], `reached`: the thresholds.
    """
    ticks = sorted(reached)
    room = ticks[-1] - ticks[0] + 0.1
    close = any(after - before < 0.13 * room for before, after in itertools.pairwise(ticks))
    for model, quantity, axes, _ in panels:
        drawn = pd.concat([values for *key, _, values in panels if key == [model, quantity]]).dropna()
        low, high = spread(drawn) if len(drawn) else (0, 100)
        axes.set_ylim(low if quantity == "accuracy" else 0, high)
        axes.set_xlim(ticks[0] - 0.05, ticks[-1] + 0.05)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=90 if close else 0)
        axes.grid(axis="x", visible=False)


@style()
def thresholds(study, table, published):
    """Accuracy and DIR against the threshold, the share of weights to remove, for each source model and data set.

    `study` is the table of thresholds, `table` that of all students, `published` the published values.
    """
    title = "Accuracy and inherited defects (DIR) by threshold"
    if not len(study):
        return empty(title, "There are no students with masks in this config.")
    found = pairs(table.merge(study[["model", "dataset"]].drop_duplicates()))
    lines = layout(found)
    columns = max(map(len, lines))
    everybody = [student for student in LOOKS if student in set(table["student"])]
    gaps = lacking(table, found, everybody)
    panels, reached = [], set(study["threshold"])
    figure = blank(max(7.2, 0.9 + 2.15 * columns), 1.1 + 2.05 * len(lines) + 0.15 * len(gaps), title)
    grid = figure.add_gridspec(len(lines), columns)
    for line, members in enumerate(lines):
        beside = len({quantity for _, _, quantity in members}) > 1  # accuracy beside DIR
        for place, (model, dataset, quantity) in enumerate(members):
            axes = figure.add_subplot(grid[line, place])
            rows = of(table, model, dataset)
            known = published_of(published, quantity, rows)
            curves(axes, rows, quantity, known)
            values = [*(100 * rows[quantity]), *known.values()]
            panels.append((model, quantity, axes, pd.Series(values, dtype=float)))
            reached |= {threshold for _, threshold in known if threshold}
            if beside or quantity == "accuracy":
                axes.set_title(title_of(model, dataset))
            if beside or place == 0:
                axes.set_ylabel(QUANTITIES[quantity])
            if beside or quantity != "accuracy":
                axes.set_xlabel("share of weights to remove, t")
    share_axes(panels, reached)
    handles = [Line2D([], [], label=STUDENTS[student], linewidth=1.2, **LOOKS[student]) for student in everybody]
    if any(line.get_label().startswith("published") for axes in figure.axes for line in axes.lines):
        handles.append(Line2D([], [], color=GREY, linewidth=3.5, alpha=0.4, label="published (faint)"))
    legend = figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), title="\n".join(gaps), alignment="left"
    )
    legend.get_title().set(fontsize=7.5, color=GREY)
    return figure


# DIR per student


def bars(axes, rows, wanted, known, most):
    """One data set's students, the first at the top: DIR as a bar, with the counts behind it on the right.

    `wanted`: [(student, threshold or None)] of the lines; `known`: their published DIR in per cent; `most`: what the
    axis reaches to.
    """
    found = {(row.student, same_threshold(row.threshold)): row for row in rows.itertuples()}

    def note(place, text, points, colour, align="left"):
        """A text on a line, so many points to the right of the panel's end."""
        beside = {"xytext": (points, 0), "textcoords": "offset points", "va": "center", "ha": align}
        axes.annotate(text, (1, place), xycoords=axes.get_yaxis_transform(), fontsize=7.5, color=colour, **beside)

    note(-0.95, "DIR (%)", 36, GREY, "right")
    note(-0.95, "inherited of right", 42, GREY)
    for place, key in enumerate(wanted):
        row = found.get(key)
        if row is None or pd.isna(row.defect_inheritance_rate):
            note(place, "not made" if row is None else "no image right", 42, GREY)
        else:
            rate = 100 * row.defect_inheritance_rate
            axes.barh(place, rate, height=0.66, color=LOOKS[row.student]["color"], alpha=0.7, linewidth=0)
            note(place, f"{rate:.1f}", 36, INK, "right")
            note(place, f"{row.images_inherited:.0f} of {row.images_right:.0f}", 42, GREY)
        if key in known:
            axes.plot([known[key]] * 2, [place - 0.44, place + 0.44], color=INK, linewidth=1.6, label="published")
    axes.set_xlim(0, most)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.set_ylim(len(wanted) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def wanted_of(rows):
    """[(student, threshold or None)] of all students of a model, in the order in which they are shown."""
    keys = {(row.student, same_threshold(row.threshold)) for row in rows.itertuples()}
    return sorted(keys, key=lambda key: (list(STUDENTS).index(key[0]), key[1] or 0))


@style()
def defects(table, published):
    """The DIR of each student, one panel per source model and data set, with the published values as ticks."""
    title = "Defect inheritance rate (DIR) of each student"
    if not len(table):
        return empty(title, "There are no students in this config.")
    lines = [
        (model, chunk, wanted_of(table[table["model"] == model]))
        for model, datasets in pairs(table).items()
        for chunk in chunks(datasets, 2 if len(datasets) in (2, 4) else 3)
    ]
    panels = [(model, dataset, of(table, model, dataset)) for model, chunk, _ in lines for dataset in chunk]
    known = {
        (model, dataset): published_of(published, "defect_inheritance_rate", rows) for model, dataset, rows in panels
    }
    rates = pd.Series([*(100 * table["defect_inheritance_rate"]), *(v for one in known.values() for v in one.values())])
    most = min(100, 10 * math.ceil(max(rates.max(), 1) / 10)) if rates.notna().any() else 100
    columns = max(len(chunk) for _, chunk, _ in lines)
    rooms = [max(2, len(wanted)) for _, _, wanted in lines]
    figure = blank(max(7.2, 1.3 + 3.2 * columns), 0.7 + sum(1.05 + LINE * room for room in rooms), title)
    grid = figure.add_gridspec(len(lines), columns, height_ratios=rooms)
    for line, (model, chunk, wanted) in enumerate(lines):
        for place, dataset in enumerate(chunk):
            axes = figure.add_subplot(grid[line, place])
            rows = of(table, model, dataset)
            bars(axes, rows, wanted, known[model, dataset], most)
            axes.set_title(title_of(model, dataset), pad=19)  # above the heads of the columns
            names = [student_name(*key) if place == 0 else "" for key in wanted]
            axes.set_yticks(range(len(wanted)), names)
            axes.set_xlabel("DIR (%)")
    if any(line.get_label() == "published" for axes in figure.axes for line in axes.lines):
        tick = Line2D([], [], color=INK, marker="|", markersize=9, markeredgewidth=1.6, linestyle="", label="published")
        figure.legend(handles=[tick], loc="outside lower left", handletextpad=0.2)
    return figure


def figures(indirect, study, published):
    """{name: figure} of all figures of indirect reuse."""
    return {"thresholds": thresholds(study, indirect, published), "defects": defects(indirect, published)}

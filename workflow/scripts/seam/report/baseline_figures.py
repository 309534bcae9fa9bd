"""Draw the figure of the baselines: accuracy against weights, search and baselines, with intervals."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from seam.report.baselines import OF_CHANNELS, RECOVERED, baseline_name
from seam.report.intervals import bootstrap
from seam.report.style import BLUE, GREY, INK, blank, empty, looks, style
from seam.report.tables import PROBLEMS, Table, read_table

SEARCH_RECOVERED = "search, recovered"  # with which recovered baselines are compared
STARS = {"search": {"color": BLUE, "marker": "*"}, SEARCH_RECOVERED: {"color": INK, "marker": "*"}}


def interval(values: Table) -> tuple[float, float]:
    """Return how far the bootstrap interval of the mean reaches below and above it; zeros for a single value."""
    low, high = bootstrap(list(values))
    mean = values.mean()
    return (mean - low, high - mean) if low == low else (0.0, 0.0)


def _searches(rows: Table) -> Table:
    """Return the search's means over the seeds of each target, indexed by target, from rows of its baselines."""
    names = ["accuracy_source", "accuracy_search", "retention_search"]
    return rows.drop_duplicates(["target", "seed"]).groupby("target")[names].mean()


@style()
def baselines(table: Table) -> Figure:
    """Draw mean accuracy against mean retention of the search and of each baseline, one panel per model and problem.

    Baselines of other target problems, or of searches of channels, have a panel of their own: only the same problems
    can be compared. table: that of baselines. Bars are 95 % intervals over the target problems. With recovered
    baselines, the search has a second point, after its recovery.
    """
    title = "Search and baselines: accuracy against weights kept"
    names = ["model", "problem", "baseline"]
    targets = table.groupby(names, sort=False)["target"].transform(lambda each: "\n".join(sorted(set(each))))
    keys = [table["model"], table["problem"], table["baseline"].isin(OF_CHANNELS), targets]
    groups = list(table.groupby(keys, sort=False))
    if not groups:
        return empty(title, "There are no baselines in this config.")
    columns = min(len(groups), 2)
    lines = -(-len(groups) // columns)
    figure = blank(max(7.2, 4.4 * columns + 1.4), 3.6 * lines + 0.9, title)
    plots = list(figure.subplots(lines, columns, squeeze=False).flat)
    look = looks([str(name) for name in table["baseline"].unique()])
    handles = {}
    for axes, ((model, problem, *_), rows) in zip(plots, groups, strict=False):
        searches = _searches(rows)
        axes.axhline(
            100 * searches["accuracy_source"].mean(), color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1
        )
        is_recovered = rows["baseline"].str.endswith(RECOVERED)
        points = []
        for name, group in (("search", rows[~is_recovered]), (SEARCH_RECOVERED, rows[is_recovered])):
            if len(group):
                means = _searches(group)
                points.append((name, means["retention_search"], means["accuracy_search"], STARS[name]))
        for name, group in rows.groupby("baseline", sort=False):
            problems = group.groupby("target")[["retention_baseline", "accuracy_baseline"]].mean()
            points.append((name, problems["retention_baseline"], problems["accuracy_baseline"], look[str(name)]))
        for name, retention, accuracy, shape in points:
            below, above = interval(100 * accuracy)
            is_search = name in STARS
            label = str(name) if is_search else baseline_name(str(name))
            handles[label] = axes.errorbar(
                100 * retention.mean(), 100 * accuracy.mean(), yerr=[[below], [above]], linestyle="",
                markersize=13 if is_search else 6, markeredgecolor="white", markeredgewidth=0.6,
                elinewidth=1, capsize=2, zorder=4 if is_search else 3, label=label, **shape,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("weights kept (%)")
        axes.set_ylabel("accuracy on the target problem (%)")
        axes.set_title(f"{model}, {PROBLEMS.get(str(problem), problem)}: {len(searches)} problems", color=INK)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    for axes in plots[len(groups) :]:
        axes.remove()
    figure.legend(handles=list(handles.values()), loc="outside lower left", ncols=4, handletextpad=0.3)
    return figure


def figures_of_file(path: str | Path) -> dict[str, Figure]:
    """Return {"baselines": figure} from the path of the table of baselines."""
    return {"baselines": baselines(read_table(path))}

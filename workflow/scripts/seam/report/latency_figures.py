"""Draw accuracy against latency: the source model, searches of channels and their baselines, with the Pareto front."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from seam.report.baseline_figures import interval
from seam.report.baselines import baseline_name
from seam.report.style import BLUE, GREY, INK, blank, empty, looks, style
from seam.report.tables import PROBLEMS, Table, read_table


def points(rows: Table) -> dict[str, tuple[Table, Table]]:
    """Return {name: (latency in milliseconds, accuracy), both by target} of a model's problems of one kind.

    The names are source, search, and those of the baselines.
    """
    searches = rows.drop_duplicates(["target", "seed"]).groupby("target", sort=False)
    means = {
        name: (searches[f"latency_{name}_ms"].mean(), searches[f"accuracy_{name}"].mean())
        for name in ("source", "search")
    }
    for name, group in rows.groupby("baseline", sort=False):
        problems = group.groupby("target", sort=False)
        means[str(name)] = problems["latency_baseline_ms"].mean(), problems["accuracy_baseline"].mean()
    return means


def pareto_front(means: dict[str, tuple[float, float]]) -> list[str]:
    """Return the names on the Pareto front of {name: (latency, accuracy)}, fastest first.

    No other is as fast and more accurate, or as accurate and faster.
    """
    front: list[str] = []
    for name in sorted(means, key=lambda name: (means[name][0], -means[name][1])):
        if not front or means[name][1] > means[front[-1]][1]:
            front.append(name)
    return front


@style()
def baselines_latency(table: Table) -> Figure:
    """Draw mean accuracy against mean latency, one panel per model and kind of problem.

    table: that of baselines, with those of searches of channels. Bars are 95 % intervals over the target problems.
    """
    title = "Searches of channels and baselines: accuracy against latency"
    if "latency_baseline_ms" in table:
        table = table[table["latency_baseline_ms"].notna()]
    if not len(table) or "latency_baseline_ms" not in table:
        return empty(title, "There are no baselines of searches of channels in this config.")
    groups = list(table.groupby(["model", "problem"], sort=False))
    columns = min(len(groups), 2)
    lines = -(-len(groups) // columns)
    figure = blank(max(7.2, 4.4 * columns + 1.4), 3.6 * lines + 1.1, title)
    plots = list(figure.subplots(lines, columns, squeeze=False).flat)
    look = looks(["search", *(str(name) for name in table["baseline"].unique())])  # the first colour is the search's
    look |= {"search": {"color": BLUE, "marker": "*"}, "source": {"color": GREY, "marker": "X"}}
    handles = {}
    for axes, ((model, problem), rows) in zip(plots, groups, strict=False):
        places = points(rows)
        means = {name: (float(time.mean()), 100 * float(accuracy.mean())) for name, (time, accuracy) in places.items()}
        front = [means[name] for name in pareto_front(means)]
        front.append((max(time for time, _ in means.values()), front[-1][1]))
        axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        for name, (_, accuracy) in places.items():
            below, above = interval(100 * accuracy)
            label = {"search": "search and recovery", "source": "source model"}.get(name, baseline_name(name))
            handles[label] = axes.errorbar(
                *means[name], yerr=[[below], [above]], linestyle="", markersize=13 if name == "search" else 7,
                markeredgecolor="white", markeredgewidth=0.6, elinewidth=1, capsize=2,
                zorder=4 if name == "search" else 3, label=label, **look[name],
            )  # fmt: skip
        count = rows["target"].nunique()
        batch = int(rows["latency_batch"].iloc[0])
        axes.set_xlabel(f"ONNX Runtime, {batch} images, one thread (ms)")
        axes.set_ylabel("accuracy on the target problem (%)")
        axes.set_title(
            f"{model}, {PROBLEMS.get(str(problem), problem)}: {count} problem{'s' * (count != 1)}", color=INK
        )
    for axes in plots[len(groups) :]:
        axes.remove()
    figure.legend(handles=list(handles.values()), loc="outside lower left", ncols=3, handletextpad=0.3)
    return figure


def figures_of_file(path: str | Path) -> dict[str, Figure]:
    """Return {"pareto": figure} from the path of the table of baselines."""
    return {"pareto": baselines_latency(read_table(path))}

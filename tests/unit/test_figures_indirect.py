"""Figures of indirect reuse: what is drawn is what the tables say, at the demo's size and at the full config's."""

import itertools
import warnings

import numpy as np
import pytest
import synthetic_indirect
from made_tables import PUBLISHED, stored
from matplotlib.colors import to_rgb

from seam.report import indirect, indirect_figures
from seam.report.style import save, style
from seam.report.tables import STUDENTS, published_students, read_table

QUANTITIES = ["accuracy", "defect_inheritance_rate"]


class Results:
    """Made-up results as `indirect_figures` gets them: the table of students, the threshold study, published values."""

    def __init__(self, folder, entries):
        made = synthetic_indirect.make(folder, entries)
        self.published = read_table(PUBLISHED)
        table = indirect.students(made["training"], made["metrics"], self.published)
        self.table = stored(table, folder / "indirect.csv")
        self.study = stored(indirect.thresholds(table), folder / "thresholds.csv")

    def thresholds(self, **changed):
        given = {"study": self.study, "table": self.table, "published": self.published} | changed
        return indirect_figures.thresholds(**given)

    def defects(self, table=None):
        return indirect_figures.defects(self.table if table is None else table, self.published)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("demo"), synthetic_indirect.DEMO)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("three"), synthetic_indirect.THREE)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("full"), synthetic_indirect.FULL)


def lines_of(axes):
    """{label: line} of a panel; no label comes twice."""
    found = [(line.get_label(), line) for line in axes.lines]
    assert len(dict(found)) == len(found)
    return dict(found)


def gaps_of(figure):
    (legend,) = figure.legends
    return legend.get_title().get_text()


def legible(figure):
    """Draw the figure: nothing is outside, nothing overlaps that is to be read, the layout has room for all."""
    with style(), warnings.catch_warnings():
        warnings.simplefilter("error")  # as where the panels have no room
        figure.draw_without_rendering()
    width, height = figure.bbox.size
    texts = [*figure.legends, figure._suptitle]
    for axes in figure.axes:
        texts += [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
        texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_text()]
            assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    boxes = [text.get_window_extent() for text in texts if not hasattr(text, "get_text") or text.get_text()]
    assert min(box.x0 for box in boxes) >= 0 and max(box.x1 for box in boxes) <= width
    assert min(box.y0 for box in boxes) >= 0 and max(box.y1 for box in boxes) <= height
    frames = [axes.get_tightbbox() for axes in figure.axes]
    assert not [pair for pair in itertools.combinations(frames, 2) if pair[0].overlaps(pair[1])]
    return True


# Accuracy and DIR against the threshold


@pytest.mark.parametrize("results", ["demo", "three"])
def test_thresholds_shows_the_tables(results, request):
    results = request.getfixturevalue(results)
    figure = results.thresholds()
    for axes, quantity in zip(figure.axes, QUANTITIES, strict=True):
        lines = lines_of(axes)
        assert set(lines) == set(results.table["student"])
        for student in lines:
            rows = results.table[results.table["student"] == student].sort_values("threshold")
            values = list(100 * rows[quantity])
            if student in ("standard", "retrain"):
                assert list(lines[student].get_ydata()) == 2 * values
            else:
                assert list(lines[student].get_xdata()) == list(rows["threshold"])
                assert list(lines[student].get_ydata()) == values
        assert list(axes.get_xticks()) == sorted(results.study["threshold"].unique())
        low, high = axes.get_ylim()
        drawn = [value for line in lines.values() for value in line.get_ydata()]
        assert low < min(drawn) and high > max(drawn)
    assert figure.axes[1].get_ylim()[0] == 0  # a rate's height can be compared
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy (%)", "DIR (%)"]
    assert gaps_of(figure) == ""
    assert "published (faint)" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_thresholds_of_the_full_config(full):
    figure = full.thresholds()
    assert len(figure.axes) == 2 * 2 * 5
    known = published_students(full.published)
    places = [
        (model, dataset, quantity)
        for model, datasets in indirect_figures.datasets_by_model(full.table).items()
        for quantity in QUANTITIES
        for dataset in datasets
    ]
    for axes, (model, dataset, quantity) in zip(figure.axes, places, strict=True):
        assert axes.get_title(loc="left") == ("" if quantity != "accuracy" else f"{model}\n{dataset}")
        lines, architecture = lines_of(axes), f"torchvision:{model.removesuffix('-imagenet')}"
        rows = full.table[(full.table["model"] == model) & (full.table["dataset"] == dataset)]
        seam = rows[rows["student"] == "seam"]
        assert list(lines["seam"].get_ydata()) == list(100 * seam[quantity])
        assert lines["magnitude"].get_xdata() == [0.6] and lines["random"].get_xdata() == [0.6]
        published = known[quantity, architecture, dataset, "standard", None]
        assert list(lines["published standard"].get_ydata()) == [published] * 2
        assert ("published seam" in lines) == ("published retrain" in lines) == (model == "resnet18-imagenet")
        if "published seam" in lines:
            faint = [known[quantity, architecture, dataset, "seam", t] for t in (0.3, 0.4, 0.5, 0.6, 0.7)]
            assert list(lines["published seam"].get_ydata()) == faint
            assert lines["published seam"].get_zorder() < lines["seam"].get_zorder()  # faint, behind ours
            assert lines["published seam"].get_alpha() < 0.5
    # The data sets of a model can be compared.
    for line in range(4):
        assert len({axes.get_ylim() for axes in figure.axes[5 * line : 5 * line + 5]}) == 1
    assert figure.axes[0].get_ylim() != figure.axes[10].get_ylim()  # while each model has limits of its own
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert "published (faint)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_published_points_show_where_ours_has_one_threshold(tmp_path):
    results = Results(tmp_path, [(*synthetic_indirect.FULL[0][:4], synthetic_indirect.students([0.6]))])
    for axes in results.thresholds().axes:
        assert list(axes.get_xticks()) == [0.3, 0.4, 0.5, 0.6, 0.7]
        assert list(lines_of(axes)["seam"].get_xdata()) == [0.6]


@pytest.mark.parametrize(
    ("found", "shape"),
    [
        ({"a": ["x"]}, [2]),
        ({"a": ["x", "y"], "b": ["x"]}, [2, 2, 2]),
        ({"a": ["x", "y", "z"]}, [3, 3]),
        ({"a": list("uvwxyz"), "b": ["x"]}, [5, 5, 1, 1, 1, 1]),
    ],
)
def test_layout(found, shape):
    lines = indirect_figures.layout(found)
    assert [len(line) for line in lines] == shape
    wanted = {(model, dataset, quantity) for model in found for dataset in found[model] for quantity in QUANTITIES}
    assert {panel for line in lines for panel in line} == wanted


def lacking(table, **keys):
    """The rows of a table, those of these values aside."""
    return table[~np.logical_and.reduce([table[name] == value for name, value in keys.items()])]


def test_thresholds_names_gaps(tmp_path):
    results = Results(tmp_path, synthetic_indirect.FULL[:2])
    table = lacking(results.table, dataset="cub200", student="standard")
    undefined = (table["dataset"] == "cub200") & (table["student"] == "random")
    table.loc[undefined, ["images_right", "accuracy"]] = 0
    table.loc[undefined, "defect_inheritance_rate"] = np.nan
    figure = results.thresholds(table=table)
    note = "resnet18-imagenet, cub200: standard not made; no DIR of random, t = 0.6 (no image right)"
    assert gaps_of(figure) == note
    assert [("random" in lines_of(axes), "standard" in lines_of(axes)) for axes in figure.axes] == [
        *[(True, True), (True, True)],
        *[(True, False), (False, False)],
    ]
    assert legible(figure)


def test_lines_go_by_threshold_in_any_order_of_the_config(demo):
    for axes, shuffled in zip(demo.thresholds().axes, demo.thresholds(table=demo.table[::-1]).axes, strict=True):
        line, same = lines_of(axes)["seam"], lines_of(shuffled)["seam"]
        assert line.get_xydata().tolist() == same.get_xydata().tolist()


def test_long_names_and_near_thresholds_have_room(tmp_path):
    students = synthetic_indirect.students([0.25, 0.3, 0.4, 0.5, 0.6, 0.7])
    names = "a-model-with-a-name-that-is-long", "resnet20", "a-data-set-with-a-name-that-is-long", "train"
    results = Results(tmp_path, [(*names[:2], f"{number}-{names[2]}", names[3], students) for number in range(4)])
    assert legible(results.thresholds())
    figure = results.defects()
    assert legible(figure)
    for axes in figure.axes:  # the title is above the heads of the columns
        assert axes._left_title.get_window_extent().y0 > max(text.get_window_extent().y1 for text in axes.texts)


def test_thresholds_without_any_rate(demo):
    table = demo.table.assign(defect_inheritance_rate=np.nan, images_right=0)
    figure = demo.thresholds(table=table)
    assert figure.axes[1].get_ylim() == (0, 100)
    assert gaps_of(figure).count("no DIR of") == 8


def test_data_set_without_masked_students_is_not_in_the_study(tmp_path):
    entries = [synthetic_indirect.FULL[0], (*synthetic_indirect.FULL[1][:4], [("standard", None)])]
    results = Results(tmp_path, entries)
    titles = {axes.get_title(loc="left") for axes in results.thresholds().axes}
    assert titles == {"resnet18-imagenet\nmit67"}


# DIR per student


def shown(axes):
    """{place on the axis: (DIR of the bar, texts beside it)}."""
    bars = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in axes.patches}
    texts = {}
    for text in axes.texts:
        if text.xy[1] >= 0:  # those above are the heads of the columns
            texts.setdefault(text.xy[1], []).append(text.get_text())
    return {place: (bars.get(place), *texts[place]) for place in texts}


@pytest.mark.parametrize("results", ["demo", "three", "full"])
def test_defects_shows_the_table(results, request):
    results = request.getfixturevalue(results)
    figure = results.defects()
    pairs = [(m, d) for m, datasets in indirect_figures.datasets_by_model(results.table).items() for d in datasets]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["\n".join(pair) for pair in pairs]
    known, labels = published_students(results.published), []
    for axes, (model, dataset) in zip(figure.axes, pairs, strict=True):
        rows = results.table[(results.table["model"] == model) & (results.table["dataset"] == dataset)]
        labels = (
            [label.get_text() for label in axes.get_yticklabels()] if axes.get_yticklabels()[0].get_text() else labels
        )
        expected = {
            (STUDENTS[row.student] + ("" if np.isnan(row.threshold) else f", t = {row.threshold:g}")): row
            for row in rows.itertuples()
        }
        assert set(labels) == set(expected)
        ticks = {round(np.mean(line.get_ydata())): line.get_xdata()[0] for line in axes.lines}
        for place, (rate, *texts) in shown(axes).items():
            row = expected[labels[place]]
            assert rate == 100 * row.defect_inheritance_rate
            assert texts == [
                f"{100 * row.defect_inheritance_rate:.1f}",
                f"{row.images_inherited} of {row.images_right}",
                f"{100 * row.accuracy:.1f} → {100 * row.accuracy_perturbed:.1f}",
            ]
            threshold = None if np.isnan(row.threshold) else row.threshold
            key = "defect_inheritance_rate", row.architecture, dataset, row.student, threshold
            assert ticks.get(place) == known.get(key)


def test_students_have_one_order_and_one_colour(full):
    axes = full.defects().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *["standard", "SeaM, t = 0.3", "SeaM, t = 0.4", "SeaM, t = 0.5", "SeaM, t = 0.6", "SeaM, t = 0.7"],
        *["magnitude, t = 0.6", "random, t = 0.6", "retrained"],
    ]
    colours = [to_rgb(bar.get_facecolor()[:3]) for bar in axes.patches]
    lines = lines_of(full.thresholds().axes[0])
    order = ["standard", *["seam"] * 5, "magnitude", "random", "retrain"]
    assert colours == [to_rgb(lines[student].get_color()) for student in order]
    assert len(set(colours)) == 5


def test_bars_are_alike_in_all_panels(full):
    figure = full.defects()
    assert legible(figure)
    heights = [bar.get_window_extent().height for axes in figure.axes for bar in axes.patches]
    assert max(heights) < 1.1 * min(heights)


def test_defects_names_gaps(tmp_path):
    results = Results(tmp_path, synthetic_indirect.FULL[:2])
    table = lacking(results.table, dataset="cub200", student="magnitude")
    undefined = (table["dataset"] == "cub200") & (table["student"] == "random")
    table.loc[undefined, "defect_inheritance_rate"] = np.nan
    figure = results.defects(table)
    places = shown(figure.axes[1])
    assert places[6] == (None, "not made") and places[7] == (None, "no image right")
    assert len(figure.axes[1].patches) == 7 and len(figure.axes[0].patches) == 9
    assert legible(figure)


def test_legend_of_published_values_only_where_there_are_any(demo, full):
    assert not demo.defects().legends
    assert [text.get_text() for text in full.defects().legends[0].get_texts()] == ["published"]


# Both


@pytest.mark.parametrize("name", ["thresholds", "defects"])
@pytest.mark.parametrize("results", ["demo", "three", "full"])
def test_figures_are_legible(results, name, request):
    results = request.getfixturevalue(results)
    figure = getattr(results, name)()
    assert max(figure.get_size_inches()) < 16
    assert legible(figure)


def test_all_figures_without_students(demo):
    drawn = indirect_figures.figures(demo.table.iloc[:0], demo.study.iloc[:0], demo.published)
    assert list(drawn) == ["thresholds", "defects"]
    for figure in drawn.values():
        assert not figure.axes
        assert any("There are no students" in text.get_text() for text in figure.texts)


def test_figures_without_masked_students(demo):
    table = demo.table[demo.table["threshold"].isna()]
    drawn = indirect_figures.figures(table, demo.study.iloc[:0], demo.published)
    assert "no students with masks" in drawn["thresholds"].texts[-1].get_text()
    assert len(drawn["defects"].axes[0].patches) == 2


def test_files_are_the_same_bytes_each_time(demo, tmp_path):
    def write(folder):
        paths = [tmp_path / folder / f"figure.{kind}" for kind in ("png", "pdf")]
        save(demo.thresholds(), paths)
        return [path.read_bytes() for path in paths]

    assert write("first") == write("second")

"""Figures: what is drawn is what the tables say, at the demo's size and at the published one."""

import itertools
import re

import numpy as np
import pytest
import synthetic
from made_tables import ENGINES, PUBLISHED
from matplotlib.collections import LineCollection

from seam.report import direct, direct_figures
from seam.report.style import BLUE, RED, looks, save, style
from seam.report.tables import read_table

SAVED = {("weights_kept", ""): 89.89, ("inference_time_reduction", "deepsparse"): 42.41}


class Results:
    """Made-up results as `direct_figures` gets them: two tables and the histories by folder."""

    def __init__(self, folder, problems, engines=ENGINES, **options):
        made = synthetic.make(folder, problems, engines, **options)
        tables = direct.tables(made["metrics.json"], made["macs.json"], made["latency"], made["models"], ENGINES)
        self.binary, self.multiclass = tables["binary"], tables["multiclass"]
        self.histories = {path.rsplit("/", 1)[0]: read_table(path) for path in made["history.csv"]}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("demo"), synthetic.DEMO)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("full"), synthetic.FULL, origin="hub", epochs=10)


def points(axes, label):
    """The points [N, 2] of the scatter of this label."""
    (found,) = [drawn for drawn in axes.collections if drawn.get_label() == label]
    return found.get_offsets()


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def panels(figure):
    """{the title up to a colon: axes} of all panels."""
    return {axes.get_title(loc="left").split(":")[0]: axes for axes in figure.axes}


# Accuracy


@pytest.mark.parametrize("problem", ["binary", "multiclass"])
def test_accuracy_shows_the_table(demo, problem):
    table = getattr(demo, problem)
    drawn = panels(direct_figures.accuracy(table, problem))
    assert set(drawn) == set(table["model"])
    for model, axes in drawn.items():
        rows = table[table["model"] == model].sort_values("accuracy_source", ascending=False)
        assert names(axes) == list(rows["target"])
        for label, column in (("source", "accuracy_source"), ("reengineered", "accuracy_reengineered")):
            places = points(axes, label)
            assert list(places[:, 0]) == list(100 * rows[column])
            assert list(places[:, 1]) == list(range(len(rows)))
        (lines,) = [item for item in axes.collections if isinstance(item, LineCollection)]
        ends = [segment[:, 0].tolist() for segment in lines.get_segments()]
        assert ends == (100 * rows[["accuracy_source", "accuracy_reengineered"]]).to_numpy().tolist()
        low, high = axes.get_xlim()
        assert low < min(map(min, ends)) and high > max(map(max, ends))


def test_problems_are_sorted_by_the_accuracy_that_is_drawn(demo):
    table = demo.binary.assign(decided_by="balanced_accuracy")
    for name in ("source", "source_restricted", "reengineered"):
        table[f"balanced_accuracy_{name}"] = 1.0 - table[f"accuracy_{name}"]
    drawn = [points(axes, "source")[:, 0] for axes in panels(direct_figures.accuracy(table, "binary")).values()]
    assert max(len(set(values)) for values in drawn) > 1
    assert all(list(values) == sorted(values, reverse=True) for values in drawn)


def test_accuracy_tells_losses_from_gains(demo):
    table = demo.binary.assign(accuracy_gain_points=[1.0, -1.0, 0.0, 1.0], accuracy_source=[0.9, 0.8, 0.7, 0.9])
    axes = panels(direct_figures.accuracy(table, "binary"))["resnet20-digits"]
    (dots,) = [drawn for drawn in axes.collections if drawn.get_label() == "reengineered"]
    colours = [BLUE, RED, BLUE]
    from matplotlib.colors import to_rgba

    assert [tuple(colour) for colour in dots.get_facecolors()] == [to_rgba(colour) for colour in colours]


def test_fair_baseline_is_drawn_for_multiclass_problems_only(demo):
    (axes,) = direct_figures.accuracy(demo.multiclass, "multiclass").axes
    assert list(points(axes, "restricted")[:, 0]) == list(100 * demo.multiclass["accuracy_source_restricted"])
    for axes in direct_figures.accuracy(demo.binary, "binary").axes:
        assert "restricted" not in [drawn.get_label() for drawn in axes.collections]


def test_accuracy_of_the_published_evaluation_is_legible(full):
    figure = direct_figures.accuracy(full.binary, "binary")
    with style():
        figure.draw_without_rendering()
    shown = [name for axes in figure.axes for name in names(axes)]
    assert sorted(shown) == sorted(full.binary["target"])
    assert max(figure.get_size_inches()) < 16
    for axes in figure.axes:
        labels = axes.get_yticklabels()
        assert min(label.get_fontsize() for label in labels) >= 7
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
        assert all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))
        assert min(box.x0 for box in boxes) >= 0
    # The panels of one data set share their axis, so that models can be compared.
    limits = {name: axes.get_xlim() for name, axes in panels(figure).items() if name.strip()}
    assert limits["vgg16-cifar100"] == limits["resnet20-cifar100"] != limits["vgg16-cifar10"]


@pytest.mark.parametrize(
    ("sizes", "lines"),
    [
        ({"a": 1, "b": 3}, [["a", "b"]]),
        ({"a": 3, "b": 60}, [["a"], ["b"]]),
        ({"a": 10, "b": 10, "c": 100, "d": 100}, [["a", "b"], ["c", "d"]]),
        ({"a": 5}, [["a"]]),
    ],
)
def test_panels_of_like_size_stand_side_by_side(sizes, lines):
    assert direct_figures.lines_of_panels(sizes) == lines


def test_long_names_are_shortened(demo):
    table = demo.multiclass.assign(target="a_name_that_is_much_too_long_to_be_read")
    (axes,) = direct_figures.accuracy(table, "multiclass").axes
    assert names(axes) == ["a_name_that_is_much_too_l…"]


# Retention against accuracy


def test_retention_accuracy_shows_the_tables(demo):
    (axes,) = direct_figures.retention_accuracy(demo.binary, demo.multiclass, 10.11).axes
    groups = {
        f"{model}, {kind}": rows
        for kind, table in (("binary", demo.binary), ("multi-class", demo.multiclass))
        for model, rows in table.groupby("model")
    }
    assert {drawn.get_label() for drawn in axes.collections} == set(groups)
    for label, rows in groups.items():
        expected = 100 * rows[["retention", "accuracy_reengineered"]].to_numpy()
        assert points(axes, label).tolist() == expected.tolist()
    (line,) = axes.lines
    assert list(line.get_xdata()) == [10.11, 10.11]
    assert axes.get_xlim()[0] == 0


def test_models_look_different():
    look = looks([str(number) for number in range(36)])
    assert len({(one["color"], one["marker"]) for one in look.values()}) == 36


# Cost


def dots_and_bars(axes):
    bars = [bar.get_width() for bar in axes.patches]
    return bars, [drawn.get_offsets()[:, 0].tolist() for drawn in axes.collections]


def test_cost_shows_the_tables(demo):
    drawn = panels(direct_figures.cost(demo.binary, demo.multiclass, SAVED))
    tables = [rows for table in (demo.binary, demo.multiclass) for _, rows in table.groupby("model", sort=False)]
    values = {
        "Weights": [100 * (1 - rows["retention"]) for rows in tables],
        "MACs": [100 * (1 - rows["macs_reengineered"] / rows["macs_source"]) for rows in tables],
        "Inference time, DeepSparse": [100 * (1 - 1 / rows["speedup_deepsparse"]) for rows in tables],
        "Inference time, ONNX Runtime": [100 * (1 - 1 / rows["speedup_onnxruntime"]) for rows in tables],
    }
    assert list(drawn) == list(values)
    for title, expected in values.items():
        bars, dots = dots_and_bars(drawn[title])
        assert bars == pytest.approx([rows.mean() for rows in expected])
        for got, rows in zip(dots, expected, strict=True):
            assert got == pytest.approx(list(rows))
    assert names(drawn["Weights"]) == [
        "resnet20-digits\nbinary",
        "vgg16-digits\nbinary",
        "resnet20-digits\nmulti-class",
    ]
    published = {title: {line.get_xdata()[0] for line in axes.lines} - {0} for title, axes in drawn.items()}
    assert published["Weights"] == {89.89} and published["Inference time, DeepSparse"] == {42.41}
    assert not published["MACs"] and not published["Inference time, ONNX Runtime"]


def test_cost_names_gaps(demo):
    binary = demo.binary.copy()
    columns = [f"{name}_deepsparse" for name in ("latency_source_ms", "latency_reengineered_ms", "speedup")]
    binary.loc[[0, 3], columns] = np.nan  # one of three of the first model, all of the second
    axes = panels(direct_figures.cost(binary, demo.multiclass, SAVED))["Inference time, DeepSparse"]
    texts = [text.get_text() for text in axes.texts]
    assert "2 of 3 measured" in texts and "not measured" in texts
    bars, _ = dots_and_bars(axes)
    expected = 100 * (1 - 1 / binary["speedup_deepsparse"][[1, 2]]).mean()
    assert len(bars) == 2 and bars[0] == pytest.approx(expected)


def test_engine_without_any_value(tmp_path):
    results = Results(tmp_path, synthetic.DEMO, engines=["onnxruntime"])
    drawn = panels(direct_figures.cost(results.binary, results.multiclass, SAVED))
    axes = drawn["Inference time, DeepSparse"]
    assert [text.get_text() for text in axes.texts] == ["not measured"] * 3
    assert {line.get_xdata()[0] for line in axes.lines} == {0}  # no published value where there is none to compare


def test_slower_models_are_inside_the_panel(demo):
    binary = demo.binary.assign(latency_reengineered_ms_onnxruntime=2 * demo.binary["latency_source_ms_onnxruntime"])
    axes = panels(direct_figures.cost(binary, demo.multiclass, SAVED))["Inference time, ONNX Runtime"]
    assert axes.get_xlim()[0] < -100
    assert "−100.0" in [text.get_text() for text in axes.texts]


# Engines


def test_speed_is_against_the_source_model_in_onnxruntime(demo):
    drawn = panels(direct_figures.speed(demo.binary, demo.multiclass))
    assert list(drawn) == ["resnet20-digits, binary", "vgg16-digits, binary", "resnet20-digits, multi-class"]
    tables = [rows for table in (demo.binary, demo.multiclass) for _, rows in table.groupby("model", sort=False)]
    for axes, rows in zip(drawn.values(), tables, strict=True):
        bars, dots = dots_and_bars(axes)
        for place, engine in enumerate(ENGINES):
            expected = rows["latency_source_ms_onnxruntime"] / rows[f"latency_reengineered_ms_{engine}"]
            assert bars[place] == pytest.approx(expected.mean())
            assert dots[place] == pytest.approx(list(expected))
    assert names(next(iter(drawn.values()))) == ["DeepSparse\nskips zeros", "ONNX Runtime"]


def test_each_column_of_speeds_has_numbers_below_it(demo):
    figure = direct_figures.speed(demo.binary, demo.multiclass)
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    for axes in figure.axes[1:]:
        assert any(label.get_visible() for label in axes.get_xticklabels())


def test_speed_needs_onnxruntime(tmp_path):
    results = Results(tmp_path, synthetic.DEMO)
    names = [name for name in results.binary if name.endswith("_onnxruntime")]
    figure = direct_figures.speed(results.binary.drop(columns=names), results.multiclass.drop(columns=names))
    assert any("ONNX Runtime has timed no source model" in text.get_text() for text in figure.texts)


# History


def test_history_shows_the_first_target_of_each_model(demo):
    figure = direct_figures.history(demo.binary, demo.multiclass, demo.histories)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["resnet20-digits\nbinary: 3", "vgg16-digits\nbinary: 0", "resnet20-digits\nmulti-class: round"]
    rows = [demo.binary.iloc[0], demo.binary.iloc[3], demo.multiclass.iloc[0]]
    for axes, row in zip(figure.axes, rows, strict=True):
        steps = demo.histories[row["folder"]]
        lines = {line.get_label(): line for line in axes.lines}
        for name in ("accuracy", "retention"):
            assert list(lines[name].get_xdata()) == list(steps["epoch"])
            assert list(lines[name].get_ydata()) == list(100 * steps[name])
        assert set(lines["source"].get_ydata()) == {100 * row["holdout_accuracy_source"]}
        assert set(lines["selected"].get_xdata()) == {row["selected_epoch"]}
        chosen = steps.set_index("epoch").loc[row["selected_epoch"]]
        dots = [drawn.get_offsets()[0].tolist() for drawn in axes.collections]
        assert dots == [[row["selected_epoch"], 100 * chosen[name]] for name in ("accuracy", "retention")]
        shaded = [patch.get_x() + patch.get_width() / 2 for patch in axes.patches]
        assert shaded == list(steps["epoch"][steps["phase"] == "head"])


def test_history_joins_the_epochs_that_were_evaluated(demo):
    folder = demo.binary["folder"][0]
    steps = demo.histories[folder].copy()
    steps.loc[steps["epoch"] % 2 == 1, "accuracy"] = None
    axes = direct_figures.history(demo.binary, demo.multiclass, {folder: steps}).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["accuracy"].get_xdata()) == [epoch for epoch in steps["epoch"] if epoch % 2 == 0]
    assert list(lines["retention"].get_xdata()) == list(steps["epoch"])


def test_history_of_the_published_selection_compares_on_the_test_images(demo):
    binary = demo.binary.assign(holdout_accuracy_source=None, search_selection="test")
    axes = direct_figures.history(binary, demo.multiclass, demo.histories).axes[0]
    (line,) = [line for line in axes.lines if line.get_label() == "source"]
    assert set(line.get_ydata()) == {100 * binary["accuracy_source"][0]}


def test_history_of_a_search_on_training_images_has_no_accuracy_of_the_source_model(demo):
    binary = demo.binary.assign(holdout_accuracy_source=None, search_selection="last")
    plots = direct_figures.history(binary, demo.multiclass, demo.histories).axes
    labels = [[line.get_label() for line in axes.lines] for axes in plots]
    assert labels == [["accuracy", "retention", "selected"]] * 2 + [["source", "accuracy", "retention", "selected"]]


def test_missing_history_is_named(demo):
    axes = direct_figures.history(demo.binary, demo.multiclass, {}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["no history"]


# All of them


def test_all_figures_without_problems(demo):
    drawn = direct_figures.figures(demo.binary.iloc[:0], demo.multiclass.iloc[:0], {}, read_table(PUBLISHED))
    assert list(drawn) == [
        *("accuracy_binary", "accuracy_multiclass", "retention_accuracy", "cost", "engines", "history")
    ]
    for figure in drawn.values():
        assert not figure.axes
        assert any("There are no" in text.get_text() for text in figure.texts)


def test_published_values_that_are_drawn(demo):
    assert direct_figures.published_savings(read_table(PUBLISHED)) == {
        key: pytest.approx(value) for key, value in SAVED.items()
    }


def test_files_are_the_same_bytes_each_time(demo, tmp_path):
    def write(folder):
        paths = [tmp_path / folder / f"figure.{kind}" for kind in ("png", "pdf")]
        save(direct_figures.accuracy(demo.multiclass, "multiclass"), paths)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["figure.pdf", "figure.png"]
        return [path.read_bytes() for path in paths]

    first, second = write("first"), write("second")
    assert first == second
    png, pdf = first
    assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF")
    assert not re.search(rb"CreationDate|ModDate", pdf)

"""Tables of baselines: what the files say, paired differences with their intervals, and who wins in plain words."""

import re

import numpy as np
import pandas as pd
import pytest
from made_tables import PUBLISHED

from seam.errors import UserError
from seam.files import read_json, write_csv, write_json
from seam.report import indirect
from seam.report.baseline_figures import baselines as draw
from seam.report.baseline_figures import figures_of_file
from seam.report.baselines import baselines, comparison, render, summary_rows, write_tables
from seam.report.direct import SETTINGS
from seam.report.direct import columns as direct_columns
from seam.report.intervals import bootstrap
from seam.report.summary import render as render_summary
from seam.report.summary import summarise
from seam.report.tables import read_table


def write_problem(root, target, right, baselines_right, images=200, retention=0.1, problem="binary", seed=0):
    """Write a search's metrics.json and those of its baselines; return their paths."""
    folder = root / f"results/direct/net/{problem}/{target}"
    common = {
        **{"model": "net", "dataset": "pets", "problem": problem, "target": target, "classes": [target, "rest"]},
        **{"seed": seed, "settings": {"selection": "holdout", "epochs": 9}, "weights": 1000, "epochs": 9},
        "decided_by": "accuracy",
        "images": {"train": 80, "holdout": 20, "test": images},
    }
    accuracy = {"source": 0.8, "source_restricted": 0.8}
    write_json(
        folder / "metrics.json",
        {**common, "accuracy": {**accuracy, "reengineered": right / images}, "retention": retention, "kept": 100}
        | {"holdout_accuracy": {"source": 0.9, "reengineered": 0.85}},
    )
    paths = []
    for name, number in baselines_right.items():
        own = {
            "baseline": name,
            "right": number,
            "retention": 1.0 if name.startswith("head") else retention,
            "kept": 100,
        }
        own |= {"accuracy": {**accuracy, "baseline": number / images}, "selected_epoch": 3, "seconds": 1.5}
        path = folder / "baselines" / name / "metrics.json"
        write_json(path, {**common, **own, "holdout_accuracy": {"source": 0.9, "baseline": 0.8}})
        paths.append(path)
    return folder / "metrics.json", paths


@pytest.fixture
def made(tmp_path):
    searches, paths = [], []
    for number, target in enumerate(["cat", "dog", "cow"]):
        search, own = write_problem(tmp_path, target, 180, {"head": 184 - number, "random": 150 + 5 * number})
        searches.append(search)
        paths += own
    return paths, searches


def test_rows_are_those_of_the_files(made):
    table = baselines(*made)
    assert list(table["baseline"]) == ["head", "random"] * 3
    row = table.iloc[1]
    assert (row["right_search"], row["right_baseline"], row["images_test"]) == (180, 150, 200)
    assert row["difference_points"] == 15
    assert (row["retention_search"], row["holdout_accuracy_baseline"], row["epochs"]) == (0.1, 0.8, 9)
    with pytest.raises(UserError, match="cat/metrics.json is missing"):
        baselines(made[0], made[1][1:])


def test_where_the_balanced_accuracy_decides_it_is_compared(tmp_path):
    """A baseline that always names the larger class is no better for it."""
    path, (other,) = write_problem(tmp_path, "cat", 150, {"head": 160})
    for file, name, reached in ((path, "reengineered", 0.74), (other, "baseline", 0.5)):
        own = {"decided_by": "balanced_accuracy", "balanced_accuracy": {"source": 0.7, name: reached}}
        write_json(file, {**read_json(file), **own})
    row = baselines([other], [path]).iloc[0]
    assert (row["accuracy_source"], row["accuracy_search"], row["accuracy_baseline"]) == (0.7, 0.74, 0.5)
    assert (row["right_search"], row["right_baseline"], row["decided_by"]) == (150, 160, "balanced_accuracy")
    assert row["difference_points"] == 24


def test_differences_are_paired_and_counted(made):
    means = comparison(baselines(*made)).set_index("baseline")
    assert list(means.index) == ["head", "random"]
    head, random = means.loc["head"], means.loc["random"]
    assert head["difference_points"] == pytest.approx(-1.5) and random["difference_points"] == pytest.approx(12.5)
    assert (head["search_better"], head["equal"], head["baseline_better"]) == (0, 0, 3)
    assert (random["right_search"], random["right_baseline"], random["images_test"]) == (540, 465, 600)
    half = 4.302652730 * 2.5 / 3**0.5  # Student's t of 10, 12.5 and 15
    assert [random["difference_low"], random["difference_high"]] == pytest.approx([12.5 - half, 12.5 + half])
    assert head["retention_baseline"] == 1 and head["retention_search"] == pytest.approx(0.1)


def test_seeds_of_a_problem_are_no_further_problems(made):
    table = baselines(*made)
    once, thrice = (comparison(pd.concat([table.assign(seed=seed) for seed in range(n)])) for n in (1, 3))
    names = ["problems", "difference_points", "difference_low", "difference_high", "search_better"]
    pd.testing.assert_frame_equal(once[names], thrice[names])
    assert list(thrice["images_test"]) == [3 * number for number in once["images_test"]]


def test_who_wins_is_said_in_words(made):
    text = " ".join(render(comparison(baselines(*made))).split())
    assert "Ahead of the search: head alone by 1.50 points." in text
    assert "search 90.00 % at 10.0 % of the weights" in text
    assert all(len(line) <= 90 for line in render(comparison(baselines(*made))).splitlines())


def test_a_difference_by_chance_is_said_to_be_one(tmp_path):
    searches, paths = [], []
    for target, right in (("a", 170), ("b", 188)):
        search, own = write_problem(tmp_path, target, 180, {"magnitude": right, "random": 150})
        searches, paths = [*searches, search], [*paths, *own]
    text = " ".join(render(comparison(baselines(paths, searches))).split())
    assert "No difference beyond chance: magnitude." in text and "Ahead" not in text


def test_the_summary_has_the_baselines_and_names_the_winner(made, tmp_path):
    empty = pd.DataFrame(columns=direct_columns([], SETTINGS))
    students = indirect.students([], [], read_table(PUBLISHED))
    write_csv(tmp_path / "t.csv", baselines(*made))
    without = summarise(empty, empty, students, read_table(PUBLISHED))
    summary = summarise(empty, empty, students, read_table(PUBLISHED), baselines=read_table(tmp_path / "t.csv"))
    pd.testing.assert_frame_equal(summary.iloc[: len(without)].reset_index(drop=True), without, check_dtype=False)
    rows = summary[summary["group"] == "baselines"]
    assert len(rows) == 10 and set(rows["problems"]) == {3}
    values = rows.set_index(["student", "quantity"])["ours_mean"]
    assert values["head", "search_over_baseline"] == pytest.approx(-1.5)
    assert values["random", "baseline_weights_kept"] == pytest.approx(10)
    write_csv(tmp_path / "summary.csv", summary)
    text = render_summary(read_table(tmp_path / "summary.csv"))
    assert "Ahead of the search: head alone by 1.50 points." in " ".join(text.split())
    assert all(len(line) <= 79 for line in text.splitlines())
    assert len(summary_rows(baselines([], []))) == 0


def test_the_summary_counts_problems_of_two_kinds_over_the_same_classes_apart(tmp_path):
    searches, paths = [], []
    for problem, right, targets in (("group", 188, ["fish", "trees"]), ("multiclass", 170, ["fish"])):
        for target in targets:
            search, own = write_problem(tmp_path, target, 180, {"head": right}, problem=problem)
            searches, paths = [*searches, search], [*paths, *own]
    rows = {row[0]: row for row in summary_rows(baselines(paths, searches))}
    assert {(group, problems) for _, _, _, _, group, problems, *_ in rows.values()} == {("baselines", 3)}
    assert rows["search_over_baseline"][8] == pytest.approx((-4 - 4 + 5) / 3)  # not (0.5 - 4) / 2
    assert rows["search_over_baseline_high"][8] == pytest.approx(-1 + 4.302652730 * 27**0.5 / 3**0.5)


@pytest.fixture
def recovered(tmp_path):
    """Paths of (metrics, searches, recoveries): the search is right on 180 of 200, and on 190 after its recovery."""
    searches, recoveries, paths = [], [], []
    for target in ("cat", "dog", "cow"):
        search, own = write_problem(
            tmp_path, target, 180, {"magnitude": 170, "scratch": 150, "magnitude-recovered": 188, "head-recovered": 192}
        )
        accuracy = {"accuracy": {"before": 0.9, "after": 0.95}, "holdout_accuracy": {"before": 0.85, "after": 0.97}}
        write_json(search.parent / "recovery.json", accuracy)
        searches, recoveries = [*searches, search], [*recoveries, search.parent / "recovery.json"]
        paths += own
    return paths, searches, recoveries


def test_recovered_baselines_are_compared_with_the_search_after_its_recovery_and_others_before(recovered):
    table = baselines(*recovered)
    for each in table.itertuples():
        is_after = each.baseline.endswith("-recovered")
        assert (each.accuracy_search, each.right_search) == ((0.95, 190) if is_after else (0.9, 180))
        assert each.holdout_accuracy_search == (0.97 if is_after else 0.85)
    differences = comparison(table).set_index("baseline")["difference_points"]
    expected = {"magnitude": 5, "scratch": 15, "head-recovered": -1, "magnitude-recovered": 1}
    assert differences.to_dict() == pytest.approx(expected)
    assert list(differences.index) == list(expected)
    with pytest.raises(UserError, match="cat/recovery.json is missing"):
        baselines(recovered[0], recovered[1])


def test_recovered_baselines_have_names_and_the_search_a_second_star(recovered, tmp_path):
    text = render(comparison(baselines(*recovered)))
    assert "search 90.00 %, 95.00 % after its recovery at 10.0 % of the weights" in " ".join(text.split())
    assert "Ahead of the search: whole, recovered by 1.00 points." in " ".join(text.split())
    assert all(len(line) <= 90 for line in text.splitlines())
    write_tables(tmp_path / "b.csv", tmp_path / "c.csv", *recovered)
    (axes,) = figures_of_file(tmp_path / "b.csv")["baselines"].axes
    points = {bar.get_label(): bar.lines[0].get_xydata()[0][1] for bar in axes.containers}
    assert points["search"] == pytest.approx(90) and points["search, recovered"] == pytest.approx(95)
    assert points["magnitude, recovered"] == pytest.approx(94)


def test_baselines_of_other_problems_have_a_panel_and_a_paragraph_of_their_own(tmp_path):
    searches, paths = [], []
    for target, right, others in (("cat", 190, {"head": 188}), ("dog", 120, {"head": 116, "random": 90}),
                                  ("cow", 150, {"finetuned": 160})):  # fmt: skip
        search, own = write_problem(tmp_path, target, right, others)
        searches.append(search)
        paths += own
    table = baselines(paths, searches)
    panels = draw(table).axes
    assert [axes.get_title(loc="left").partition(": ")[2] for axes in panels] == [
        "2 problems",
        "1 problems",
        "1 problems",
    ]
    stars = [float(axes.containers[0].lines[0].get_ydata()[0]) for axes in panels]
    assert stars == pytest.approx([100 * (190 + 120) / 400, 60, 75])
    text = " ".join(render(comparison(table)).split())
    for accuracy, count in (("77.50", 2), ("60.00", 1), ("75.00", 1)):
        assert re.search(rf"{count} problems, source 80.00 %, search {accuracy} %", text)


def test_a_tie_is_no_lead(tmp_path):
    results = [write_problem(tmp_path, f"t{number}", 1000, {"random": 1000 - points}, images=1000)
               for number, points in enumerate((3, -1, -2))]  # fmt: skip
    means = comparison(baselines([path for _, paths in results for path in paths], [path for path, _ in results]))
    assert means.iloc[0]["difference_points"] == 0
    assert "Ahead of the search" not in render(means) and "No difference beyond chance: random" in render(means)


def test_files_and_figure(made, tmp_path):
    write_tables(tmp_path / "b.csv", tmp_path / "c.csv", *made)
    assert len(read_table(tmp_path / "b.csv")) == 6 and len(read_table(tmp_path / "c.csv")) == 2
    (axes,) = figures_of_file(tmp_path / "b.csv")["baselines"].axes
    points = {bar.get_label(): bar.lines[0].get_xydata()[0] for bar in axes.containers}
    assert np.allclose(points["head alone"], (100, 91.5)) and np.allclose(points["search"], (10, 90))
    write_tables(tmp_path / "b.csv", tmp_path / "c.csv", [], [])
    assert not figures_of_file(tmp_path / "b.csv")["baselines"].axes


@pytest.mark.parametrize("count", (3, 10))
def test_intervals_over_few_problems_are_wide_enough(count):
    random = np.random.default_rng(2)
    intervals = [bootstrap(list(random.normal(1, 2, count)), resamples=1000) for _ in range(400)]
    assert 0.92 <= np.mean([low <= 1 <= high for low, high in intervals]) <= 0.98


def test_the_interval_is_that_of_the_mean_over_problems():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = bootstrap(list(random.normal(3, 2, 30)), resamples=400)
        covered += low <= 3 <= high
    assert 180 <= covered <= 200  # about 95 %
    assert bootstrap([1.0, 2.0, 4.0]) == bootstrap([1.0, 2.0, 4.0])
    assert all(np.isnan(bootstrap([5.0]))) and bootstrap([2.0, 2.0]) == (2.0, 2.0)

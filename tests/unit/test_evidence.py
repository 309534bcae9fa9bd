"""The evidence of several runs: methods side by side, with seeds and intervals."""

import pandas as pd
import pytest
from scipy import stats

from seam.errors import UserError
from seam.files import write_csv
from seam.report import indirect
from seam.report.baselines import COLUMNS as BASELINES
from seam.report.direct import SETTINGS, columns
from seam.report.evidence import collect, evidence, read_runs, render
from seam.report.indirect_evidence import indirect_evidence, read_students
from seam.report.intervals import student_t, wilson


def write_run(root, seed, gains, selection="holdout", model="net", ahead=2.0, dataset="pets", first=0, **cells):
    """Write the tables of a run with a problem for each gain, in points over a source model of 80 %.

    first: the number of the first problem. cells: further columns of the problems, each with one value for all.
    """
    names = [*columns([], SETTINGS), *cells]
    rows = [
        dict.fromkeys(names)
        | {
            **{"model": model, "dataset": dataset, "architecture": "resnet20", "weights_origin": "hub", "seed": seed},
            **{
                "problem": "binary",
                "target": f"t{number}",
                "accuracy_source": 0.8,
                "accuracy_source_restricted": 0.83,
                "accuracy_reengineered": 0.8 + gain / 100,
            },
            **{"retention": 0.1, "images_test": 200, "search_selection": selection, **cells},
        }
        for number, gain in enumerate(gains, first)
    ]
    tables = root / "results/tables"
    write_csv(tables / "direct_binary.csv", pd.DataFrame(rows, columns=names))
    write_csv(tables / "direct_multiclass.csv", pd.DataFrame(columns=names))
    if selection == "holdout":
        own = [
            dict.fromkeys(BASELINES)
            | {
                **{"model": model, "dataset": dataset, "problem": "binary", "target": row["target"], "seed": seed},
                **{"baseline": "head", "images_test": 200, "accuracy_source": 0.8, "difference_points": ahead},
                **{"accuracy_baseline": row["accuracy_reengineered"] - ahead / 100, "retention_baseline": 1.0},
                "accuracy_search": row["accuracy_reengineered"],
                "right_baseline": round(200 * (row["accuracy_reengineered"] - ahead / 100)),
            }
            for row in rows
        ]
        write_csv(tables / "baselines.csv", pd.DataFrame(own, columns=BASELINES))
    return root


def test_methods_are_side_by_side_and_seeds_are_averaged_by_problem(tmp_path):
    runs = [write_run(tmp_path / str(seed), seed, [2 + seed, 4 + seed]) for seed in (0, 1)]
    runs.append(write_run(tmp_path / "test", 0, [6, 6], "test", model="net-on-test"))
    table = evidence(*read_runs(runs)).set_index(["model", "selection", "method"])
    assert list(table.index) == [
        ("net", "holdout", "search"),
        ("net", "holdout", "head"),
        ("net-on-test", "test", "search"),
    ]
    assert set(table["granularity"]) == {"weight"}
    search = table.loc["net", "holdout", "search"]
    assert (search["problems"], search["seeds"], search["images_test"]) == (2, 2, 800)
    assert search["gain_points"] == pytest.approx(3.5)
    half = 12.706204736  # Student's t with one degree of freedom, and the standard error is 1
    assert search["gain_low"] == pytest.approx(3.5 - half) and search["gain_high"] == pytest.approx(3.5 + half)
    names = ["accuracy_source_restricted", "gain_restricted_points", "gain_restricted_high"]
    assert search[names].tolist() == pytest.approx([0.83, 0.5, 0.5 + half])
    assert search["right"] == 164 + 168 + 166 + 170
    head = table.loc["net", "holdout", "head"]
    assert head["gain_points"] == pytest.approx(1.5) and head["retention"] == 1
    assert head["gain_restricted_points"] == pytest.approx(-1.5)
    assert head[["search_over_points", "search_over_low", "search_over_high"]].tolist() == pytest.approx([2, 2, 2])
    assert pd.isna(search["search_over_points"])


def test_baselines_of_earlier_searches_are_refused(tmp_path):
    run = write_run(tmp_path / "run", 0, [2, 4])
    before = (run / "results/tables/baselines.csv").read_bytes()
    write_run(run, 0, [2, 5])
    (run / "results/tables/baselines.csv").write_bytes(before)  # as a run without baselines leaves it
    with pytest.raises(UserError, match=r"baselines\.csv is of other searches than .*direct_binary\.csv: run the"):
        read_runs([run])


def test_searches_that_differ_have_rows_of_their_own(tmp_path):
    runs = [
        write_run(tmp_path / "weights", 0, [2, 4]),
        write_run(tmp_path / "few", 0, [6], "last", first=2),
        write_run(tmp_path / "channels", 0, [8], first=3, search_granularity="channel"),
        write_run(tmp_path / "model", 0, [10, 10], model="other"),
        write_run(tmp_path / "data", 1, [20], dataset="birds"),
    ]
    table = evidence(*read_runs(runs))
    keys = ["model", "dataset", "granularity", "selection"]
    gains = table.set_index([*keys, "method"])[["problems", "gain_points"]].apply(tuple, axis=1).to_dict()
    assert gains == {
        ("net", "birds", "weight", "holdout", "search"): (1, pytest.approx(20)),
        ("net", "birds", "weight", "holdout", "head"): (1, pytest.approx(18)),
        ("net", "pets", "channel", "holdout", "search"): (1, pytest.approx(8)),
        ("net", "pets", "channel", "holdout", "head"): (1, pytest.approx(6)),
        ("net", "pets", "weight", "holdout", "search"): (2, pytest.approx(3)),
        ("net", "pets", "weight", "holdout", "head"): (2, pytest.approx(1)),
        ("net", "pets", "weight", "last", "search"): (1, pytest.approx(6)),
        ("other", "pets", "weight", "holdout", "search"): (2, pytest.approx(10)),
        ("other", "pets", "weight", "holdout", "head"): (2, pytest.approx(8)),
    }
    lines = render(table).splitlines()
    assert "| net | pets, binary | channels, held out | search | 1 x 1 |" in lines[5]
    assert "| net | pets, binary | weights, last epoch | search | 1 x 1 |" in lines[9]


def test_a_search_is_shown_before_and_after_its_recovery_as_its_baselines_are_compared(tmp_path):
    problems, baselines = read_runs(
        [
            write_run(tmp_path / "0", 0, [10, 14], accuracy_before_recovery=0.85),
            write_run(tmp_path / "1", 0, [5], first=2),  # without a recovery
        ]
    )
    after = problems.set_index("target")["accuracy_reengineered"]
    baselines["difference_points"] = 85 - 100 * baselines["accuracy_baseline"]
    recovered = baselines.assign(baseline="head-recovered")[:2]
    recovered["difference_points"] = 100 * (recovered["target"].map(after) - recovered["accuracy_baseline"])
    table = evidence(problems, pd.concat([baselines, recovered], ignore_index=True)).set_index("method")
    assert list(table.index) == ["search", "search-recovered", "head", "head-recovered"]
    assert list(table["problems"]) == [3, 2, 3, 2] and list(table["right"][:2]) == [510, 180 + 188]
    assert list(table["accuracy"][:2]) == pytest.approx([0.85, 0.92])
    assert list(table["gain_points"][:2]) == pytest.approx([5, 12])
    for search, baseline in (("search", "head"), ("search-recovered", "head-recovered")):
        difference = 100 * (table["accuracy"][search] - table["accuracy"][baseline])
        assert table["search_over_points"][baseline] == pytest.approx(difference)
    assert "| weights, held out | search, recovered | 2 x 1 |" in render(table.reset_index())


def test_balanced_accuracies_count_where_they_decide_the_search(tmp_path):
    own = {"decided_by": "balanced_accuracy", "accuracy_before_recovery": 0.88}
    own |= {"balanced_accuracy_source": 0.6, "balanced_accuracy_reengineered": 0.75}
    runs = [write_run(tmp_path, 0, [10, 10], balanced_accuracy_before_recovery=0.7, **own)]
    table = evidence(*read_runs(runs)).set_index("method").loc[["search", "search-recovered"]]
    assert list(table["accuracy"]) == pytest.approx([0.7, 0.75])
    assert list(table["accuracy_source"]) == pytest.approx([0.6, 0.6])
    assert list(table["gain_points"]) == pytest.approx([10, 15])
    assert list(table["right"]) == [352, 360]


def test_the_table_is_written_and_printed(tmp_path):
    text = collect(tmp_path / "e.csv", [write_run(tmp_path / "a", 0, [2, 4])])
    lines = text.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "+5.85" in lines[2] and "10.11 %" in lines[2]
    gains = "+1.00 (-11.71 to +13.71) | -2.00 (-14.71 to +10.71) | +2.00 (+2.00 to +2.00) |"
    row = f"| head alone | 2 x 1 | 100.0 % | 81.00 % | 324 of 400 | {gains}"
    assert lines[4] == f"| net | pets, binary | weights, held out {row}"
    assert len(pd.read_csv(tmp_path / "e.csv")) == 2


def test_what_cannot_be_collected_is_one_sentence(tmp_path):
    runs = [write_run(tmp_path / name, 0, [1, 2]) for name in "ab"]
    with pytest.raises(UserError, match="Two of the runs have seed 0 of net, binary t0: leave one out"):
        read_runs(runs)
    with pytest.raises(UserError, match="Name the folders of the runs"):
        read_runs([])
    with pytest.raises(UserError, match="direct_binary.csv is missing"):
        read_runs([tmp_path / "none"])


# ---------------------------------------------------------------------- indirect reuse


def write_students(root, seed, rates, adaptive=None):
    """Write the tables of a run of students {(student, threshold): DIR}, each right on 200 of 250 images."""
    names = indirect.columns([], adaptive is not None)
    rows = [
        dict.fromkeys(names)
        | {
            **{"model": "net", "dataset": "pets", "student": student, "threshold": threshold, "seed": seed},
            **{"accuracy": 0.8, "accuracy_perturbed": 0.8 * (1 - rate), "defect_inheritance_rate": rate},
            **{"images_test": 250, "images_right": 200, "images_inherited": round(200 * rate)},
            **{"retention": None if threshold is None else 1 - threshold},
            **({} if adaptive is None else {"accuracy_adaptive": adaptive}),
        }
        for (student, threshold), rate in rates.items()
    ]
    tables = root / "results/tables"
    empty = columns([], SETTINGS)
    write_csv(tables / "direct_binary.csv", pd.DataFrame(columns=empty))
    write_csv(tables / "direct_multiclass.csv", pd.DataFrame(columns=empty))
    write_csv(tables / "indirect.csv", pd.DataFrame(rows, columns=names))
    return root


SEEDS = [  # of three seeds: {student: DIR}
    {("random", 0.6): 0.2, ("retrain", None): 0.0, ("standard", None): 0.5, ("seam", 0.3): 0.4, ("seam", 0.6): 0.3},
    {("random", 0.6): 0.1, ("retrain", None): 0.1, ("standard", None): 0.4, ("seam", 0.3): 0.3, ("seam", 0.6): 0.25},
    {("random", 0.6): 0.15, ("retrain", None): 0.2, ("standard", None): 0.6, ("seam", 0.3): 0.5, ("seam", 0.6): 0.35},
]


def test_students_are_compared_by_seed(tmp_path):
    runs = [write_students(tmp_path / str(seed), seed, rates, 0.05) for seed, rates in enumerate(SEEDS)]
    table = indirect_evidence(read_students(runs))
    assert list(table["student"]) == ["standard", "seam", "seam", "random", "retrain"]
    assert list(table["threshold"].dropna()) == [0.3, 0.6, 0.6]
    rows = {(row.student, row.threshold if row.threshold == row.threshold else None): row for row in table.itertuples()}
    random = rows["random", 0.6]
    assert (random.seeds, random.images_test, random.images_right, random.images_inherited) == (3, 750, 600, 90)
    assert random.defect_inheritance_rate == pytest.approx(0.15) and random.accuracy_adaptive == pytest.approx(0.05)
    assert random.dir_over_seam_points == pytest.approx((-10 - 15 - 20) / 3)
    low, high = stats.binomtest(30, 200).proportion_ci(0.95, "wilson")
    assert (random.defect_inheritance_rate_low, random.defect_inheritance_rate_high) == pytest.approx((low, high))
    low, high = stats.ttest_1samp([-10, -15, -20], 0).confidence_interval(0.95)
    assert (random.dir_over_seam_low, random.dir_over_seam_high) == pytest.approx((low, high))
    assert random.dir_over_standard_points == pytest.approx((-30 - 30 - 45) / 3)
    assert rows["seam", 0.3].dir_over_standard_points == pytest.approx(-10)
    for row in (rows["seam", 0.6], rows["standard", None], rows["retrain", None]):  # no SeaM at a threshold of theirs
        assert pd.isna(row.dir_over_seam_points)
    assert pd.isna(rows["standard", None].dir_over_standard_points)


def test_runs_of_students_alone_have_one_table(tmp_path):
    text = collect(tmp_path / "e.csv", [write_students(tmp_path / "0", 0, SEEDS[0])])
    assert not (tmp_path / "e.csv").exists() and len(pd.read_csv(tmp_path / "e_indirect.csv")) == 5
    line = "| net | pets | random, t = 0.6 | 1 | 60.0 % | 80.0 % | 64.0 % |  | 20.0 % (15 to 26) | 40 of 200 | -30.0 "
    assert f"{line}| -10.0 |" in text.splitlines()


def test_both_kinds_of_reuse_have_a_table_each(tmp_path):
    run = write_students(tmp_path / "0", 0, SEEDS[0])
    students = (run / "results/tables/indirect.csv").read_bytes()
    write_run(run, 0, [2, 4])
    (run / "results/tables/indirect.csv").write_bytes(students)
    text = collect(tmp_path / "e.csv", [run])
    assert len(pd.read_csv(tmp_path / "e.csv")) == 2 and len(pd.read_csv(tmp_path / "e_indirect.csv")) == 5
    assert "head alone" in text and "SeaM, t = 0.6" in text


def test_students_that_cannot_be_collected_are_one_sentence(tmp_path):
    runs = [write_students(tmp_path / name, 0, SEEDS[0]) for name in "ab"]
    with pytest.raises(UserError, match="Two of the runs have seed 0 of net on pets: leave one out"):
        read_students(runs)
    with pytest.raises(UserError, match="The runs have no results yet: run the workflow"):
        collect(tmp_path / "e.csv", [write_students(tmp_path / "none", 0, {})])


def test_an_interval_over_seeds_is_wider_than_their_range():
    low, high = student_t([1.0, 2.0, 3.0])
    assert low < 1 and high > 3 and low + high == pytest.approx(4)
    assert all(map(pd.isna, student_t([1.0]))) and all(map(pd.isna, wilson(0, 0)))

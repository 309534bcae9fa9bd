"""Tables of indirect reuse: what is in them is exactly what the students' files say, and what is missing is named."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import synthetic_indirect
from made_tables import PUBLISHED, ROOT, rewrite, stored

from seam.errors import UserError
from seam.report import direct, indirect
from seam.report.indirect import MASKED_BLOCKS
from seam.report.summary import COLUMNS, compared, render, summarise
from seam.report.tables import TEXT, published_students, read_table, student_name


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The demo's eight students as files in the working folder: {name: [paths]}."""
    monkeypatch.chdir(tmp_path)
    return synthetic_indirect.make(".", synthetic_indirect.DEMO)


def collect(made):
    return indirect.students(made["training"], made["metrics"], read_table(PUBLISHED))


def tables(made):
    """Both tables after a trip to the disk and back."""
    found = collect(made)
    return stored(found), stored(indirect.thresholds(found))


def change(made, name, method, **values):
    """Write values into a student's training or metrics."""
    (path,) = [path for path in made[name] if Path(path).parent.name == method]
    rewrite(path, lambda data: data.update(values))


def without(made, *students):
    """The same files but for those of some students."""
    return {
        name: [path for path in paths if json.loads(Path(path).read_text())["student"] not in students]
        for name, paths in made.items()
    }


# One row per student


def test_values_are_those_of_the_files(made):
    table, _ = tables(made)
    assert list(table["folder"]) == [str(Path(path).parent) for path in made["training"]]  # the config's order
    for row in table.to_dict("records"):
        training = json.loads(Path(row["folder"], "training.json").read_text())
        metrics = json.loads(Path(row["folder"], "metrics.json").read_text())
        expected = {
            **{name: training[name] for name in ("model", "dataset", "architecture", "weights_origin", "student")},
            **{name: training[name] for name in ("threshold", "retention", "weights", "holdout_accuracy", "epochs")},
            **{name: training[name] for name in ("selected_epoch", "seconds", "seed", "device", "threads", "torch")},
            **{name: metrics[name] for name in ("accuracy", "accuracy_perturbed", "defect_inheritance_rate")},
            "sparsity": metrics["sparsity"],
            "weights_kept": training["kept"],
            "epochs_to_threshold": training["search_epochs"],
            "seconds_to_threshold": training["search_seconds"],
            "images_train": training["images"]["train"],
            "images_holdout": training["images"]["holdout"],
            "images_test": metrics["images"],
            "images_right": metrics["right"],
            "images_inherited": metrics["inherited"],
            "student_weights": metrics["weights"],
            "student_zeros": metrics["zeros"],
        }
        for name, value in expected.items():
            assert pd.isna(row[name]) if value is None else row[name] == value, name


def test_only_the_settings_that_made_a_student_are_in_its_row(made):
    table, _ = tables(made)
    blocks = [name for name, value in synthetic_indirect.SETTINGS.items() if isinstance(value, dict)]
    for row in table.to_dict("records"):
        mine = [row["student"]] if row["student"] in blocks else MASKED_BLOCKS
        for block in blocks:
            for name, value in synthetic_indirect.SETTINGS[block].items():
                cell = row[f"{block}_{name}"]
                assert cell == value if block in mine else pd.isna(cell), (row["student"], block, name)
        assert (row["transfer_batch_size"], row["transfer_holdout"], row["transfer_selection"]) == (64, 0.1, "holdout")


def test_a_new_hyper_parameter_is_a_column(made):
    change(made, "training", "seam-0.6", settings=synthetic_indirect.SETTINGS | {"warm_up": 3})
    table, _ = tables(made)
    assert dict(zip(table["folder"].str.split("/").str[-1], table["transfer_warm_up"], strict=True))["seam-0.6"] == 3
    assert table["transfer_warm_up"].notna().sum() == 1


def test_counts_stay_whole_numbers_beside_empty_cells(made):
    found = collect(made)
    kept = json.loads(Path(made["training"][2]).read_text())["kept"]
    found.to_csv("table.csv", index=False)
    assert f",{kept}," in Path("table.csv").read_text().splitlines()[3]


def test_large_seeds_survive(made):
    change(made, "training", "retrain", seed=2**63 - 1)
    assert stored(collect(made))["seed"][1] == 2**63 - 1


def test_one_row_stays_with_its_own_files_in_any_order(made):
    pd.testing.assert_frame_equal(collect(made | {"metrics": made["metrics"][::-1]}), collect(made))


def test_reduction_of_inherited_defects(made):
    change(made, "metrics", "standard", defect_inheritance_rate=0.5)
    change(made, "metrics", "seam-0.6", defect_inheritance_rate=0.125)
    change(made, "metrics", "random-0.4", defect_inheritance_rate=0.75)
    table, study = tables(made)
    found = table.set_index(["student", "threshold"])["inherited_defects_reduction"]
    assert found["seam", 0.6] == 0.75
    assert found["random", 0.4] == -0.5
    assert found["standard"].tolist() == [0]
    assert study.set_index(["student", "threshold"])["inherited_defects_reduction"]["seam", 0.6] == 0.75


def test_reduction_is_against_the_standard_student_of_the_same_model_and_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, _ = tables(synthetic_indirect.make(".", synthetic_indirect.FULL))
    rows = {(row.model, row.dataset, row.student, row.threshold): row for row in table.itertuples()}
    for (model, dataset, student, threshold), row in rows.items():
        if student == "seam":
            (standard,) = [value for key, value in rows.items() if key[:3] == (model, dataset, "standard")]
            expected = 1 - row.defect_inheritance_rate / standard.defect_inheritance_rate
            assert row.inherited_defects_reduction == pytest.approx(expected), (model, dataset, threshold)


# What is missing


def test_student_that_gets_nothing_right_is_named(made, caplog):
    change(made, "metrics", "random-0.6", accuracy=0.0, right=0, inherited=0, defect_inheritance_rate=None)
    table, study = tables(made)
    for frame in (table, study):
        row = frame[(frame["student"] == "random") & (frame["threshold"] == 0.6)].iloc[0]
        assert row["accuracy"] == 0
        assert pd.isna(row["defect_inheritance_rate"]) and pd.isna(row["inherited_defects_reduction"])
    sentence = "digits-high: no defect inheritance rate of random, t = 0.6, which gets no test image right"
    assert sentence in caplog.text


def test_without_a_standard_student_there_is_no_reduction(made, caplog):
    table, study = tables(without(made, "standard"))
    assert len(table) == 7
    assert table["inherited_defects_reduction"].isna().all() and study["inherited_defects_reduction"].isna().all()
    assert "digits-low-resnet20 on digits-high: no standard student" in caplog.text


def test_standard_student_without_inherited_defects_gives_no_reduction(made):
    change(made, "metrics", "standard", inherited=0, defect_inheritance_rate=0.0)
    assert tables(made)[0]["inherited_defects_reduction"].isna().all()


def test_errors_name_the_file(made):
    (path,) = [path for path in made["training"] if "seam-0.4" in path]
    rewrite(path, lambda data: data["settings"].pop("search"))
    with pytest.raises(UserError, match=r"digits-high/seam-0.4/training.json lacks settings.search: delete it"):
        collect(made)
    rewrite(made["metrics"][0], lambda data: data.pop("inherited"))
    with pytest.raises(UserError, match=r"digits-high/standard/metrics.json lacks inherited: delete it"):
        collect(made)


@pytest.mark.parametrize("name", ["training", "metrics"])
def test_student_with_one_file_only(made, name):
    with pytest.raises(UserError, match=rf"digits-high/standard/{name}.json is missing: run the workflow"):
        collect(made | {name: made[name][1:]})


def test_tables_without_students_have_the_same_columns(made):
    full = collect(made)
    none = collect({"training": [], "metrics": []})
    assert list(none.columns) == list(full.columns)
    study = indirect.thresholds(none)
    assert list(study.columns) == list(indirect.thresholds(full).columns)
    assert stored(none).empty and stored(study).empty


# The threshold study


def test_threshold_study_is_sorted_and_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entries = synthetic_indirect.FULL[::-1]
    entries[0] = (*entries[0][:4], entries[0][4][::-1])
    table, study = tables(synthetic_indirect.make(".", entries))
    keys = list(study[["model", "dataset", "student", "threshold"]].itertuples(index=False, name=None))
    assert keys == sorted(keys)
    assert len(keys) == 5 * (5 + 2) + 5 * 3 == len(set(keys))
    assert set(study["student"]) == {"seam", "magnitude", "random"}
    both = study.merge(table, on="folder", suffixes=("", "_of_table"))
    assert len(both) == len(study)
    for name in [name for name in study.columns if name != "folder"]:
        pd.testing.assert_series_equal(both[name], both[f"{name}_of_table"], check_names=False, check_dtype=False)


# Published values


def test_published_values_stand_beside_ours_as_shares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, study = tables(synthetic_indirect.make(".", synthetic_indirect.FULL))
    cells = {(row.model, row.dataset, row.student, row.threshold): row for row in study.itertuples()}
    row = cells["resnet18-imagenet", "dog120", "seam", 0.3]
    assert (row.published_accuracy, row.published_defect_inheritance_rate) == pytest.approx((0.791, 0.63))
    row = cells["resnet18-imagenet", "flower102", "seam", 0.7]
    assert (row.published_accuracy, row.published_defect_inheritance_rate) == pytest.approx((0.943, 0.05))
    others = table[table["threshold"].isna()].set_index(["model", "dataset", "student"])
    names = ["published_accuracy", "published_defect_inheritance_rate"]
    standard = others.loc[("resnet50-imagenet", "action40", "standard"), names]
    assert list(standard) == pytest.approx([0.8379, 0.6691])
    assert list(others.loc[("resnet18-imagenet", "mit67", "retrain"), names]) == pytest.approx([0.4104, 0.0545])
    # Published: SeaM at five thresholds and two others on ResNet18, the standard student on ResNet50.
    assert table[names].notna().sum().tolist() == [5 * (5 + 2) + 5] * 2
    assert table[table["student"].isin(["magnitude", "random"])][names].isna().all(axis=None)


@pytest.mark.parametrize(
    ("place", "other"), [(1, "resnet20"), (2, "photographs"), (4, [("seam", 0.61), ("seam", 0.35)])]
)
def test_other_students_have_no_published_value(tmp_path, monkeypatch, place, other):
    monkeypatch.chdir(tmp_path)
    entry = list(synthetic_indirect.FULL[0])
    entry[place] = other
    assert tables(synthetic_indirect.make(".", [tuple(entry)]))[0]["published_accuracy"].isna().all()


def test_published_students_by_key():
    known = published_students(read_table(PUBLISHED))
    assert len(known) == 5 * 5 * 2 + 4 * 5 * 2
    assert known["accuracy", "torchvision:resnet18", "cub200", "seam", 0.7] == 72.6
    assert known["defect_inheritance_rate", "torchvision:resnet18", "mit67", "remos", None] == 19.66


def test_names_of_students():
    assert student_name("seam", 0.6) == "SeaM, t = 0.6"
    assert student_name("retrain") == student_name("retrain", float("nan")) == "retrained"


# The summary


@pytest.fixture
def nothing(made):
    """The direct tables of a config without direct reuse."""
    found = direct.tables([], [], [], [], ["onnxruntime"])
    return stored(found["binary"]), stored(found["multiclass"])


def rows_of(*students, **columns):
    """What the summary reads of a table of students, each (model, data set, student, threshold, accuracy, DIR)."""
    names = ["model", "dataset", "student", "threshold", "accuracy", "defect_inheritance_rate"]
    table = pd.DataFrame(students, columns=names).astype({"threshold": float, "defect_inheritance_rate": float})
    table = table.assign(architecture="torchvision:resnet18", weights_origin="IMAGENET1K_V1")
    table["inherited_defects_reduction"] = indirect.reduction(table)
    same = {"transfer_selection": "holdout", "published_accuracy": float("nan")}
    return table.assign(**same, published_defect_inheritance_rate=float("nan"), **columns)


TWO = [
    ("net", "mit67", "standard", None, 0.75, 0.5),
    ("net", "mit67", "seam", 0.3, 0.7, 0.4),
    ("net", "mit67", "seam", 0.6, 0.5, 0.25),
    ("net", "mit67", "magnitude", 0.3, 0.1, 0.1),
    ("net", "mit67", "magnitude", 0.6, 0.625, 0.375),
    ("net", "pets", "standard", None, 0.25, 0.25),
    ("net", "pets", "seam", 0.6, 1.0, 0.0625),
]


def rows_by_student(summary):
    """{(quantity, student): row} of indirect reuse."""
    rows = summary[summary["group"] == "indirect"]
    return {(row.quantity, row.student): row for row in rows.itertuples()}


def test_means_by_hand(nothing):
    summary = summarise(*nothing, rows_of(*TWO), read_table(PUBLISHED))
    found = rows_by_student(summary)
    row = found["inherited_defects_reduction", "seam"]
    assert (row.ours_mean, row.published, row.unit) == ((50 + 75) / 2, 57, "%")
    assert (row.threshold, row.problems, row.problems_as_published) == (0.6, 2, 1)
    means = {key: row.ours_mean for key, row in found.items() if key[0] != "inherited_defects_reduction"}
    assert means == {
        ("accuracy", "standard"): 50,
        ("accuracy", "seam"): 75,
        ("accuracy", "magnitude"): 62.5,
        ("defect_inheritance_rate", "standard"): 37.5,
        ("defect_inheritance_rate", "seam"): 15.625,
        ("defect_inheritance_rate", "magnitude"): 37.5,
    }
    assert [found["accuracy", student].problems for student in ("standard", "seam", "magnitude")] == [2, 2, 1]


@pytest.mark.parametrize(
    ("thresholds", "nearest"), [([0.3, 0.6, 0.7], 0.6), ([0.5, 0.7], 0.5), ([0.3, 0.4], 0.4), ([0.65, 0.3], 0.65)]
)
def test_students_are_compared_near_the_threshold_of_the_paper(thresholds, nearest):
    students = [("net", "pets", "seam", threshold, 0.5, 0.5) for threshold in thresholds]
    others = [("net", "pets", "random", threshold, 0.5, 0.5) for threshold in (*thresholds, 0.6)]
    table = compared(rows_of(*students, *others, ("net", "pets", "standard", None, 0.5, 0.5)))
    assert set(table["threshold"].dropna()) == {nearest}
    assert list(table["student"]) == ["seam", "random", *(["random"] if nearest == 0.6 else []), "standard"]


def test_each_model_and_data_set_has_its_own_threshold(nothing):
    table = rows_of(*TWO[:6], ("net", "pets", "seam", 0.4, 1.0, 0.0625))
    summary = summarise(*nothing, table, read_table(PUBLISHED))
    found = rows_by_student(summary)
    assert pd.isna(found["accuracy", "seam"].threshold) and found["accuracy", "seam"].ours_mean == 75
    assert found["accuracy", "magnitude"].threshold == 0.6
    assert "SeaM, t near 0.6 " in render(summary)


def test_published_means_are_over_the_same_problems(nothing):
    table = rows_of(*TWO)
    table.loc[table["student"] == "standard", "published_accuracy"] = [0.5, 1.0]
    table.loc[2, "published_accuracy"] = 0.5  # of two data sets only one
    found = rows_by_student(summarise(*nothing, table, read_table(PUBLISHED)))
    assert found["accuracy", "standard"].published == 75
    assert pd.isna(found["accuracy", "seam"].published)
    assert pd.isna(found["defect_inheritance_rate", "standard"].published)


@pytest.mark.parametrize(
    ("column", "value"), [("architecture", "resnet20"), ("weights_origin", "train"), ("dataset", "pets")]
)
def test_other_models_and_data_are_not_as_published(nothing, column, value):
    table = rows_of(*TWO[:3])
    assert rows_by_student(summarise(*nothing, table, read_table(PUBLISHED)))["accuracy", "seam"].problems == 1
    for frame, expected in ((table, 1), (table.assign(**{column: value}), 0)):
        found = rows_by_student(summarise(*nothing, frame, read_table(PUBLISHED)))
        assert found["accuracy", "seam"].problems_as_published == expected


def test_rendered_summary(nothing):
    table = rows_of(*TWO)
    table.loc[table["student"] == "standard", "published_accuracy"] = [0.5, 1.0]
    text = render(stored(summarise(*nothing, table, read_table(PUBLISHED))))
    assert max(map(len, text.splitlines())) <= 79
    lines = {line.split("  ")[0]: line.split()[-5:] for line in text.splitlines() if "  " in line}
    assert lines["standard"] == ["2", "50.00", "75.00", "37.50", "-"]
    assert lines["SeaM, t = 0.6"] == ["2", "75.00", "-", "15.62", "-"]
    assert lines["magnitude, t = 0.6"] == ["1", "62.50", "-", "37.50", "-"]
    assert list(lines).index("standard") < list(lines).index("SeaM, t = 0.6") < list(lines).index("magnitude, t = 0.6")
    words = " ".join(text.split())
    assert "Direct reuse: there is no target problem" in words
    assert (
        "SeaM's DIR is lower by 62.50 % than the standard student's, mean over 2 of 2 problems; "
        "published: lower by 57.00 %" in words
    )


@pytest.mark.parametrize(("origin", "rough"), [("IMAGENET1K_V1", False), ("train", True)])
def test_published_values_beside_other_source_models_are_called_a_rough_guide(nothing, origin, rough):
    table = rows_of(("net", "mit67", "standard", None, 0.75, 0.5), ("net", "mit67", "seam", 0.6, 0.5, 0.25))
    table = table.assign(published_accuracy=0.5, published_defect_inheritance_rate=0.5, weights_origin=origin)
    words = " ".join(render(stored(summarise(*nothing, table, read_table(PUBLISHED)))).split())
    assert "Published: the same students, on data sets of the same names" in words
    assert ("only a rough guide" in words) is rough


def test_students_whose_epoch_was_chosen_on_the_test_images_are_said(nothing):
    table = rows_of(*TWO).assign(transfer_selection="test")
    words = " ".join(render(stored(summarise(*nothing, table, read_table(PUBLISHED)))).split())
    assert "In all problems the test images selected the epoch" in words


def test_rendered_summary_of_a_higher_rate_and_of_gaps(nothing):
    table = rows_of(
        *[("net", "pets", "standard", None, 0.5, 0.25), ("net", "pets", "seam", 0.6, 0.5, 0.5)],
        *[("net", "toys", "standard", None, 0.5, 0.25), ("net", "toys", "seam", 0.6, 0.0, None)],
    )
    words = " ".join(render(summarise(*nothing, table, read_table(PUBLISHED))).split())
    assert "SeaM's DIR is higher by 100.00 % than the standard student's, mean over 1 of 2 problems" in words
    assert "SeaM: no DIR in 1 of 2 problems, because it gets no test image right there." in words


def test_rendered_summary_without_a_standard_student(nothing):
    table = rows_of(("net", "pets", "seam", 0.6, 0.5, 0.5))
    summary = summarise(*nothing, table, read_table(PUBLISHED))
    assert rows_by_student(summary)["inherited_defects_reduction", "seam"].problems == 0
    assert "SeaM's DIR cannot be compared" in render(summary)


def test_rendered_summary_without_students(nothing):
    empty = stored(collect({"training": [], "metrics": []}))
    summary = summarise(*nothing, empty, read_table(PUBLISHED))
    assert list(rows_by_student(summary)) == [("inherited_defects_reduction", "seam")]
    assert "Indirect reuse: there is no student in this config." in render(stored(summary))


# The documentation


def test_documentation_names_every_column(made):
    text = (ROOT / "docs" / "outputs.md").read_text()
    documented = set(re.findall(r"`([\w{}]+)`", text))
    table, study = tables(made)
    assert {*table.columns, *study.columns, *COLUMNS} - documented == set()
    for name in ("training", "metrics"):
        assert set(json.loads(Path(made[name][0]).read_text())) - documented == set(), name


def test_text_columns_are_read_as_text(made):
    table, study = tables(made)
    for name in ("transfer_selection", "student", "folder", "dataset"):
        assert name in TEXT
    assert study["student"].map(type).eq(str).all()


def test_results_readme_names_the_columns(made):
    text = (ROOT / "results" / "README.md").read_text()
    table, study = tables(made)
    settings = ("transfer_", "head_", "search_", "finetune_", "standard_", "retrain_")
    names = {name for name in [*table.columns, *study.columns] if not name.startswith(settings)}
    assert names - set(re.findall(r"`([\w{}]+)`", text)) == set()

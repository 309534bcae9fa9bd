"""Tables: what is in them is exactly what the problems' files say, and the means are right."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import synthetic
from made_tables import ENGINES, PUBLISHED, rewrite, stored

from seam.errors import UserError
from seam.files import write_csv
from seam.report import direct, indirect, tables
from seam.report.summary import as_published, render, summarise
from seam.report.tables import read_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The demo's five problems as files in the working folder: {name: [paths]}."""
    monkeypatch.chdir(tmp_path)
    return synthetic.make(".", synthetic.DEMO)


def collect(made, engines=ENGINES):
    return direct.tables(made["metrics.json"], made["macs.json"], made["latency"], made["models"], engines)


def no_students():
    """The table of indirect reuse where there is none."""
    return indirect.students([], [], read_table(PUBLISHED))


def test_values_are_those_of_the_files(made):
    collected = collect(made)
    kinds = ("binary", "multiclass")
    rows = {row["folder"]: row for kind in kinds for row in stored(collected[kind]).to_dict("records")}
    assert [len(collected[kind]) for kind in ("binary", "multiclass")] == [4, 1]
    assert list(rows) == [str(Path(path).parent) for path in made["metrics.json"]]  # the config's order
    for folder, row in rows.items():
        metrics = json.loads(Path(folder, "metrics.json").read_text())
        macs = json.loads(Path(folder, "macs.json").read_text())
        for name in ("model", "dataset", "target", "retention", "weights", "epochs", "seconds", "seed"):
            assert row[name] == metrics[name], name
        for name in ("source", "source_restricted", "reengineered"):
            assert row[f"accuracy_{name}"] == metrics["accuracy"][name]
        for name in ("source", "reengineered"):
            assert row[f"holdout_accuracy_{name}"] == metrics["holdout_accuracy"][name]
            assert row[f"macs_{name}"] == macs[name]["total"]
        for name, value in metrics["settings"].items():
            assert row[f"search_{name}"] == value
        for part in ("train", "holdout", "test"):
            assert row[f"images_{part}"] == metrics["images"][part]
        for engine in ENGINES:
            times = json.loads(Path(folder, f"latency_{engine}.json").read_text())
            first = times["measurements"][0]
            assert row[f"latency_source_ms_{engine}"] == first["source"]["mean_ms"]
            assert row[f"latency_reengineered_ms_{engine}"] == first["reengineered"]["mean_ms"]
            assert row[f"version_{engine}"] == times["version"]
            assert row[f"gains_from_zeros_{engine}"] == {"deepsparse": "yes", "onnxruntime": "no"}[engine]
            assert row[f"bytes_source_{engine}"] == times["bytes"]["source"]
        assert row["weights_kept"] == metrics["kept"]
        assert row["classes"] == len(metrics["classes"])
        assert row["architecture"] in ("resnet20", "vgg16_bn")
        assert row["weights_origin"] == "train"


def test_a_source_model_without_counted_macs_has_no_reduction(made):
    folder = Path(made["metrics.json"][0]).parent
    rewrite(folder / "macs.json", lambda data: [data[name].update(total=0) for name in ("source", "reengineered")])
    binary = collect(made)["binary"]
    assert binary["macs_reduction"].isna().tolist() == [True] + [False] * (len(binary) - 1)


def test_derived_values(made):
    folder = Path(made["metrics.json"][0]).parent
    rewrite(folder / "metrics.json", lambda data: data["accuracy"].update(source=0.5, reengineered=0.75))
    rewrite(
        folder / "macs.json", lambda data: (data["source"].update(total=400), data["reengineered"].update(total=100))
    )

    def set_times(data):
        data["measurements"][0]["source"].update(mean_ms=12.0, median_ms=10.0)
        data["measurements"][0]["reengineered"].update(mean_ms=4.0, median_ms=2.5)

    rewrite(folder / "latency_deepsparse.json", set_times)
    row = stored(collect(made)["binary"]).iloc[0]
    assert row["accuracy_gain_points"] == 25
    assert row["macs_reduction"] == 0.75
    assert row["speedup_deepsparse"] == 3
    for engine in ENGINES:
        rewrite(folder / f"latency_{engine}.json", lambda data: data.update(statistic="median"))
    row = stored(collect(made)["binary"]).iloc[0]
    assert (row["speedup_deepsparse"], row["latency_source_ms_deepsparse"], row["timing_statistic"]) == (
        4,
        10,
        "median",
    )
    line = stored(collect(made)["latency"]).iloc[0]
    assert (line["engine"], line["speedup"], line["speedup_of_means"]) == ("deepsparse", 4, 3)


def test_latency_has_a_row_for_each_measurement(made):
    table = stored(collect(made)["latency"])
    assert len(table) == 5 * 2 * 2  # problems, engines, batch sizes
    assert list(table["engine"][:4]) == ["deepsparse", "deepsparse", "onnxruntime", "onnxruntime"]
    assert list(table["batch_size"][:4]) == [16, 1, 16, 1]
    assert set(zip(table["engine"], table["gains_from_zeros"], strict=True)) == {
        ("deepsparse", "yes"),
        ("onnxruntime", "no"),
    }
    assert (table["source_lower_quartile_ms"] <= table["source_median_ms"]).all()
    assert (table["passes"] == 200).all() and table["source_difference"].between(0, 1e-4).all()


def test_a_model_that_falls_back_does_not_gain_from_zeros(made):
    path = Path(made["metrics.json"][0]).parent / "latency_deepsparse.json"
    rewrite(path, lambda data: data.update(gains_from_zeros=False, fallback={"source": "No.", "reengineered": "No."}))
    collected = collect(made)
    assert stored(collected["binary"])["gains_from_zeros_deepsparse"][0] == "no"
    assert stored(collected["latency"])["fallback"][0] == "No."


def test_the_accuracy_of_a_quantized_model_has_columns(made):
    engine, paths = "onnxruntime-int8", []
    for place, path in enumerate(made["latency"]):
        if "onnxruntime" in path:
            folder = Path(path).parent
            times = json.loads(Path(path).read_text()) | {"engine": engine}
            (folder / f"latency_{engine}.json").write_text(json.dumps(times))
            accuracy = {"source": 0.5, "source_restricted": 0.625, "reengineered": 0.25 + place / 100}
            (folder / f"accuracy_{engine}.json").write_text(json.dumps({"accuracy": accuracy}))
            paths.append(folder / f"accuracy_{engine}.json")
    latency = [*made["latency"], *(path.with_name(f"latency_{engine}.json") for path in paths)]
    collected = direct.tables(
        made["metrics.json"], made["macs.json"], latency, made["models"], [*ENGINES, engine], int8=paths
    )
    binary = stored(collected["binary"])
    assert list(binary[f"accuracy_reengineered_{engine}"]) == [0.26, 0.28, 0.3, 0.32][: len(binary)]
    assert "accuracy_reengineered_onnxruntime" not in binary
    summary = summarise(collected["binary"], collected["multiclass"], no_students(), read_table(PUBLISHED))
    change = 100 * (0.3 - sum(frame["accuracy_reengineered"].sum() for frame in list(collected.values())[:2]) / 5)
    rows = summary[(summary["quantity"] == "accuracy_change_int8") & (summary["group"] == "all")]
    assert list(rows["engine"]) == [engine] and rows["ours_mean"].iloc[0] == pytest.approx(change)
    assert re.search(r"ONNX Runtime int8 1.0 +no +\S+ +\S+ +[+-]", render(summary))


def test_one_row_stays_with_its_own_files_in_any_order(made):
    shuffled = {name: paths[::-1] for name, paths in made.items()} | {"metrics.json": made["metrics.json"]}
    for kind, frame in collect(made).items():
        pd.testing.assert_frame_equal(collect(shuffled)[kind], frame)


def test_large_seeds_and_odd_names_survive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = synthetic.make(".", [("net", "resnet20", "pets", "binary", ["NA", "3", "None"])])
    rewrite(made["metrics.json"][1], lambda data: data.update(seed=2**63 - 1))
    table = stored(collect(made)["binary"])
    assert list(table["target"]) == ["NA", "3", "None"]
    assert table["seed"][1] == 2**63 - 1


def test_engine_that_is_not_configured_has_no_columns(made):
    made["latency"] = [path for path in made["latency"] if "deepsparse" not in path]
    collected = collect(made, ["onnxruntime"])
    assert tables.engines(collected["binary"]) == ["onnxruntime"]
    assert not [name for name in collected["binary"].columns if "deepsparse" in name]
    assert not [name for name in collect(made | {"latency": []}, [])["binary"].columns if "latency" in name]


def test_missing_latency_leaves_cells_empty(made, caplog):
    first = str(Path(made["metrics.json"][0]).parent / "latency_deepsparse.json")
    made["latency"].remove(first)
    table = stored(collect(made)["binary"])
    names = ["latency_source_ms_deepsparse", "latency_reengineered_ms_deepsparse", "speedup_deepsparse"]
    assert table.loc[0, names].isna().all()
    assert table.loc[1:, names].notna().all(axis=None)
    assert table["speedup_onnxruntime"].notna().all()
    assert "no latency by DeepSparse for 1 of 5 problems" in caplog.text


def test_tables_without_problems_have_the_same_columns(made):
    full = collect(made)
    empty = direct.tables([], [], [], [], ENGINES)
    for kind in full:
        assert list(empty[kind].columns) == list(full[kind].columns)
        assert stored(empty[kind]).empty
    tables = stored(empty["binary"]), stored(empty["multiclass"]), stored(no_students())
    summary = summarise(*tables, read_table(PUBLISHED))
    assert (summary["problems"] == 0).all() and summary["ours_mean"].isna().all()
    assert "no target problem" in render(summary)


def test_published_selection_has_no_held_out_accuracy(made):
    rewrite(made["metrics.json"][0], lambda data: data.update(holdout_accuracy=None))
    table = stored(collect(made)["binary"])
    assert pd.isna(table["holdout_accuracy_source"][0]) and pd.notna(table["holdout_accuracy_source"][1])


def test_new_hyper_parameter_is_a_column_of_both_tables(made):
    rewrite(made["metrics.json"][0], lambda data: data["settings"].update(warm_up=3))
    collected = collect(made)
    assert stored(collected["binary"])["search_warm_up"][0] == 3
    assert "search_warm_up" in collected["multiclass"].columns


def test_errors_name_the_file(made):
    rewrite(made["metrics.json"][2], lambda data: data["accuracy"].pop("reengineered"))
    with pytest.raises(UserError, match=r"binary/8/metrics.json lacks accuracy.reengineered: delete it"):
        collect(made)


def test_errors_of_absent_files(made):
    with pytest.raises(UserError, match=r"binary/3/macs.json is missing"):
        collect(made | {"macs.json": made["macs.json"][1:]})
    with pytest.raises(UserError, match="vgg16-digits has no metrics.json"):
        collect(made | {"models": made["models"][:1]})
    with pytest.raises(UserError, match=r"no/such.csv is missing"):
        read_table("no/such.csv")
    Path("empty.csv").write_text("")
    with pytest.raises(UserError, match=r"empty.csv is not a table"):
        read_table("empty.csv")


# The summary


def problems(**columns):
    """A table of problems with just what the summary reads."""
    rows = len(next(iter(columns.values())))
    same = {"architecture": "resnet20", "dataset": "cifar10", "weights_origin": "hub", "search_selection": "holdout"}
    return pd.DataFrame({name: [value] * rows for name, value in same.items()} | columns)


def facts(rows):
    """Columns of text of both engines."""
    known = {"deepsparse": ("1.8.0", "yes"), "onnxruntime": ("1.32.0", "no")}
    return {
        f"{name}_{engine}": [value] * rows
        for engine, values in known.items()
        for name, value in zip(("version", "gains_from_zeros"), values, strict=True)
    }


@pytest.fixture
def summary():
    binary = problems(
        retention=[0.125, 0.25],
        macs_reduction=[0.5, 1.0],
        accuracy_source=[0.5, 0.75],
        accuracy_source_restricted=[0.5, 0.75],
        accuracy_reengineered=[0.75, 0.75],
        accuracy_gain_points=[25.0, 0.0],
        latency_source_ms_deepsparse=[8.0, 10.0],
        latency_reengineered_ms_deepsparse=[4.0, 7.5],
        speedup_deepsparse=[2.0, 4 / 3],
        latency_source_ms_onnxruntime=[4.0, float("nan")],
        latency_reengineered_ms_onnxruntime=[5.0, float("nan")],
        speedup_onnxruntime=[0.8, float("nan")],
        **facts(2),
    )
    multiclass = problems(
        retention=[0.5],
        macs_reduction=[0.75],
        accuracy_source=[0.5],
        accuracy_source_restricted=[1.0],
        accuracy_reengineered=[0.75],
        accuracy_gain_points=[25.0],
        latency_source_ms_deepsparse=[1.0],
        latency_reengineered_ms_deepsparse=[1.0],
        speedup_deepsparse=[1.0],
        latency_source_ms_onnxruntime=[2.0],
        latency_reengineered_ms_onnxruntime=[1.0],
        speedup_onnxruntime=[2.0],
        **facts(1),
    )
    return summarise(binary, multiclass, no_students(), read_table(PUBLISHED))


def by_group(summary, quantity, engine, column):
    """The column's values for all, binary and multi-class problems."""
    rows = summary[(summary["quantity"] == quantity) & (summary["engine"] == engine)]
    return list(rows.set_index("group")[column][["all", "binary", "multiclass"]])


def test_means_by_hand(summary):
    expected = {
        ("weights_kept", ""): [(12.5 + 25 + 50) / 3, 18.75, 50],
        ("inference_time_reduction", "deepsparse"): [(50 + 25 + 0) / 3, 37.5, 0],
        ("inference_time_reduction", "onnxruntime"): [(-25 + 50) / 2, -25, 50],
        ("speedup", "deepsparse"): [13 / 9, 5 / 3, 1],
        ("speedup", "onnxruntime"): [1.4, 0.8, 2],
        ("speedup_over_onnxruntime", "deepsparse"): [1.5, 1, 2],
        ("speedup_over_onnxruntime", "onnxruntime"): [1.4, 0.8, 2],
        ("macs_reduction", ""): [75, 75, 75],
        ("accuracy_gain", ""): [50 / 3, 12.5, 25],
        ("accuracy_gain_restricted", ""): [0, 12.5, -25],
    }
    assert len(summary[summary["group"] != "indirect"]) == 3 * len(expected)
    for (quantity, engine), values in expected.items():
        assert by_group(summary, quantity, engine, "ours_mean") == pytest.approx(values), quantity


def test_counts_and_units(summary):
    assert by_group(summary, "weights_kept", "", "problems") == [3, 2, 1]
    assert by_group(summary, "inference_time_reduction", "onnxruntime", "problems") == [2, 1, 1]
    # ResNet20 on CIFAR-10 is published for binary problems only.
    assert by_group(summary, "weights_kept", "", "problems_as_published") == [2, 2, 0]
    units = summary.groupby("quantity")["unit"].unique().map(list).to_dict()
    assert units["weights_kept"] == units["macs_reduction"] == units["inference_time_reduction"] == ["%"]
    assert units["accuracy_gain"] == units["accuracy_gain_restricted"] == ["points"]


def test_published_values_stand_in_their_rows_only(summary):
    given = summary[summary["published"].notna()]
    found = given.set_index(["quantity", "engine", "group"])["published"].to_dict()
    assert found == {
        ("weights_kept", "", "all"): 10.11,
        ("inference_time_reduction", "deepsparse", "all"): 42.41,
        ("accuracy_gain", "", "all"): 5.85,
        ("inherited_defects_reduction", "", "indirect"): 57,
    }


def test_epochs_chosen_on_the_test_images_are_counted_and_said(summary):
    assert by_group(summary, "weights_kept", "", "problems_selected_on_test") == [0, 0, 0]
    assert "selection: test" not in render(summary)
    columns = {name: [0.5, 0.5] for name in ("retention", "macs_reduction", "accuracy_gain_points")}
    columns |= {f"accuracy_{name}": [0.5, 0.5] for name in ("source", "source_restricted", "reengineered")}
    table = problems(**columns, search_selection=["test", "holdout"])
    found = summarise(table, table[:0], no_students(), read_table(PUBLISHED))
    assert by_group(found, "weights_kept", "", "problems_selected_on_test") == [1, 1, 0]
    said = " ".join(render(found).split())
    assert "In 1 of the 2 problems the test images selected the epoch" in said


@pytest.mark.parametrize(
    ("name", "value"), [("architecture", "vgg11"), ("dataset", "photographs"), ("weights_origin", "train")]
)
def test_other_models_and_data_are_not_as_published(name, value):
    published = read_table(PUBLISHED)
    evaluation = published[published["quantity"] == "problems"]
    names = ["architecture", "dataset", "problem"]
    table = problems(problem=["binary", "binary"])
    assert list(as_published(table, evaluation, names)) == [True, True]
    table.loc[1, name] = value
    assert list(as_published(table, evaluation, names)) == [True, False]


def test_rendered_summary(summary):
    text = render(summary)
    assert max(map(len, text.splitlines())) <= 79
    lines = {line.split("  ")[0]: line.split()[-4:] for line in text.splitlines() if "  " in line}
    assert lines["weights kept (%)"] == ["29.17", "18.75", "50.00", "10.11"]
    assert lines["time saved, DeepSparse (%)"] == ["25.00", "37.50", "0.00", "42.41"]
    assert lines["time saved, ONNX Runtime (%; 2 of 3)"] == ["12.50", "-25.00", "50.00", "-"]
    assert lines["accuracy gain (points)"] == ["+16.67", "+12.50", "+25.00", "+5.85"]
    assert lines["accuracy gain, like for like (points)"] == ["+0.00", "+12.50", "-25.00", "-"]
    assert re.search(r"target problems +3 +2 +1$", text, re.MULTILINE)
    assert re.search(r"^DeepSparse 1.8.0 +yes +1.44 +1.50$", text, re.MULTILINE)
    assert re.search(r"^ONNX Runtime 1.32.0 +no +1.40 +1.40$", text, re.MULTILINE)
    assert "Fastest: DeepSparse runs the re-engineered models 1.50 times as fast as ONNX" in text
    assert "2 of the 3 problems here have a source model and data set of the paper." in text.replace("\n", " ")


def test_rendered_summary_warns_of_other_data(made):
    collected = collect(made)
    summary = summarise(collected["binary"], collected["multiclass"], no_students(), read_table(PUBLISHED))
    text = render(summary)
    assert "The models and data here are not the paper's" in text.replace("\n", " ")


def test_rendered_summary_of_one_kind_of_problem(made):
    collected = collect(made)
    only = summarise(collected["binary"], collected["multiclass"].iloc[:0], no_students(), read_table(PUBLISHED))
    head = render(only).splitlines()[2].split()
    assert head == ["binary", "published"]


def test_summary_in_the_terminal(summary, tmp_path):
    path = tmp_path / "summary.csv"
    write_csv(path, summary)
    command = [sys.executable, ROOT / "workflow" / "scripts" / "summarise.py"]
    done = subprocess.run([*command, path], capture_output=True, text=True, check=True)
    assert done.stdout == render(summary) + "\n"
    failed = subprocess.run([*command, tmp_path / "none.csv"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr == f"Error: {tmp_path}/none.csv is missing: run the workflow again to make it.\n"


# The published values


def test_published_values():
    table = read_table(PUBLISHED)
    assert (table["source"] != "").all() and table["value"].notna().all()
    assert set(table["unit"]) == {"%", "points", "problems"}
    evaluation = table[table["quantity"] == "problems"].groupby("problem")["value"].sum()
    assert evaluation.to_dict() == {"binary": 220, "multiclass": 84}
    students = table[table["student"] != ""]
    study = students[students["student"] == "seam"]
    assert len(study) == 5 * 5 * 2 and set(study["threshold"]) == {0.3, 0.4, 0.5, 0.6, 0.7}
    others = students[students["student"] != "seam"]
    assert len(others) == 4 * 5 * 2
    cell = study.set_index(["quantity", "dataset", "threshold"])["value"]
    assert cell["accuracy", "cub200", 0.7] == 72.6
    assert cell["defect_inheritance_rate", "dog120", 0.3] == 63
    cell = others.set_index(["architecture", "student", "quantity", "dataset"])["value"]
    assert cell["torchvision:resnet50", "standard", "defect_inheritance_rate", "action40"] == 66.91
    assert cell["torchvision:resnet18", "remos", "accuracy", "mit67"] == 74.40
    assert not students.duplicated(["architecture", "student", "quantity", "dataset", "threshold"]).any()


# The documentation


def test_documentation_names_every_column(made, summary):
    text = (ROOT / "docs" / "outputs.md").read_text()
    documented = set(re.findall(r"`([\w{}]+)`", text))
    columns = {re.sub("_(deepsparse|onnxruntime)$", "_{engine}", name) for name in collect(made)["binary"].columns}
    columns |= set(summary.columns) | set(collect(made)["latency"].columns) | set(read_table(PUBLISHED).columns)
    columns |= set(pd.read_csv(made["history.csv"][0]).columns)
    assert columns - documented == set()


def test_results_readme_names_the_columns(made, summary):
    text = (ROOT / "results" / "README.md").read_text()
    columns = {re.sub("_(deepsparse|onnxruntime)$", "_{engine}", name) for name in collect(made)["binary"].columns}
    columns = {name for name in columns if not name.startswith("search_")} | set(summary.columns)
    assert columns - set(re.findall(r"`([\w{}]+)`", text)) == set()

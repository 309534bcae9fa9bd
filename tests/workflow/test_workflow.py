"""The workflow as its users run it: a whole run on small images, what reruns after which change, its messages."""

import concurrent.futures
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from colours import ARCHITECTURE, COLOURS, paint
from PIL import Image
from workflows import ENGINES, ROOT, change, jobs, small_config, snakemake

import seam


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return (folder, config, workflow) of a complete run, with a copy of the workflow that tests may change."""
    folder, workflow = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("clone")
    for name in ("Snakefile", "config.yaml", "workflow", "envs", "profiles"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, workflow / name)
    config = small_config(paint(folder / "images"))
    snakemake(folder, config=config, workflow=workflow)
    return folder, config, workflow


def planned(run, config=None):
    """Return {rule: jobs} that would run again."""
    folder, own, workflow = run
    found = jobs(snakemake(folder, "--dry-run", config=config or own, workflow=workflow)[1])
    found.pop("all", None)
    return found


PROBLEMS = ["binary/red", "binary/blue", "multiclass/warm"]


def test_every_problem_has_all_its_files(run):
    folder, _, _ = run
    for problem in PROBLEMS:
        names = {path.name for path in (folder / "results/direct/small" / problem).iterdir()}
        assert names == {
            "masks.safetensors", "history.csv", "metrics.json", "macs.json", "model.onnx", "latency_onnxruntime.json",
        }  # fmt: skip


def test_the_tables_hold_what_the_jobs_found(run):
    folder, config, _ = run
    binary = pd.read_csv(folder / "results/tables/direct_binary.csv").set_index("target")
    multiclass = pd.read_csv(folder / "results/tables/direct_multiclass.csv").set_index("target")
    assert sorted(binary.index) == ["blue", "red"] and list(multiclass.index) == ["warm"]
    for problem in PROBLEMS:
        kind, target = problem.split("/")
        row = (binary if kind == "binary" else multiclass).loc[target]
        found = json.loads((folder / "results/direct/small" / problem / "metrics.json").read_text())
        assert row["accuracy_reengineered"] == found["accuracy"]["reengineered"]
        assert row["retention"] == found["retention"] and 0 < row["retention"] <= 1
        macs = json.loads((folder / "results/direct/small" / problem / "macs.json").read_text())
        assert row["macs_reengineered"] == macs["reengineered"]["total"] < macs["reengineered_dense"]["total"]
        assert row["speedup_onnxruntime"] > 0
    assert binary.loc["blue", "search_alpha"] == 2.0 and binary.loc["red", "search_alpha"] == 1.0
    assert (binary["images_test"] == 40).all()
    assert binary["accuracy_reengineered"].min() > 0.7


def test_the_tables_of_students_hold_what_the_jobs_found(run):
    folder, _, _ = run
    table = pd.read_csv(folder / "results/tables/indirect.csv")
    assert table["student"].tolist() == ["standard", "seam", "seam"]
    for _, row in table.iterrows():
        method = row["student"] if pd.isna(row["threshold"]) else f"{row['student']}-{row['threshold']:g}"
        place = folder / "results/indirect/small/two" / method
        assert {path.name for path in place.iterdir()} == {
            "student.safetensors", "history.csv", "training.json", "metrics.json",
        }  # fmt: skip
        found = json.loads((place / "metrics.json").read_text())
        assert row["accuracy"] == found["accuracy"] > 0.7
        assert row["defect_inheritance_rate"] == found["inherited"] / found["right"]
        assert row["images_test"] == found["images"] == 40
    thresholds = pd.read_csv(folder / "results/tables/thresholds.csv")
    assert thresholds["threshold"].tolist() == [0.3, 0.5]
    assert (thresholds["retention"] <= 1 - thresholds["threshold"]).all()
    assert not (folder / "results/checkpoints").exists() or not list((folder / "results/checkpoints").rglob("*.pt"))


def test_the_summary_is_the_mean_over_the_problems(run):
    folder, _, _ = run
    tables = [pd.read_csv(folder / f"results/tables/direct_{kind}.csv") for kind in ("binary", "multiclass")]
    summary = pd.read_csv(folder / "results/tables/summary.csv").set_index(["quantity", "group"])
    retention = pd.concat(tables)["retention"]
    assert summary.loc[("weights_kept", "all"), "ours_mean"] == pytest.approx(100 * retention.mean())
    assert summary.loc[("weights_kept", "all"), "published"] == 10.11
    assert summary.loc[("weights_kept", "all"), "problems"] == 3


def test_the_figures_are_pictures(run):
    folder, _, _ = run
    pictures = sorted((folder / "results/figures").glob("*.png"))
    assert len(pictures) >= 7
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 300 and len(picture.convert("L").resize((64, 64)).getcolors()) > 5
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_a_reengineered_model_is_loaded_from_its_folder(run):
    import torch

    model = seam.load(run[0] / "results/direct/small/multiclass/warm", architecture=ARCHITECTURE)
    assert model.classes == ["red", "yellow"]
    assert model(torch.zeros(3, 3, 16, 16)).shape == (3, 2)


def test_the_source_model_is_judged_on_its_own_data(run):
    metrics = json.loads((run[0] / "results/models/small/metrics.json").read_text())
    assert metrics["images"] == 80 and set(metrics["per_class"]) == set(COLOURS)
    assert metrics["accuracy"] == pytest.approx(sum(metrics["per_class"].values()) / 4)
    assert metrics["accuracy"] > 0.7


def test_a_second_run_has_nothing_to_do(run):
    folder, config, workflow = run
    assert "Nothing to be done" in snakemake(folder, config=config, workflow=workflow)[1]


# ---------------------------------------------------------------------- what reruns after which change

RESULTS = {"collect_direct": 1, "plot_direct": 1, "summarise": 1, "report": 1}
RESULTS_INDIRECT = {"collect_indirect": 1, "plot_indirect": 1, "summarise": 1, "report": 1}
STUDENTS = {
    "attack_source": 1, "finetune_standard": 1, "finetune_seam_head": 1, "finetune_seam_masks": 1, "finetune_seam": 2,
    "evaluate_defects": 3,
}  # fmt: skip
TARGET = {"reengineer": 1, "count_macs": 1, "export_onnx": 1, "time_engine": 1}


@contextlib.contextmanager
def changed(run, file):
    """Add a line to a file of the run's own copy of the workflow, within this block."""
    path = run[2] / "workflow/scripts" / file
    code, stamp = path.read_bytes(), path.stat()
    path.write_bytes(code + b"\n# a change\n")
    try:
        yield
    finally:
        path.write_bytes(code)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def times(number, rules):
    return {rule: number * count for rule, count in rules.items()}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (["direct_reuse", 0, "overrides", "blue", "alpha"], 3.0, TARGET | RESULTS),
        (["direct_reuse", 1, "search"], {"lr_mask": 0.2}, TARGET | RESULTS),
        (["search", "epochs"], 13, times(3, TARGET) | RESULTS),
        (["direct_reuse", 0, "targets"], ["red", "blue", "green"], TARGET | RESULTS),
        (["timing", "iterations"], 6, {"time_engine": 3} | RESULTS),
        (["direct_reuse", 1, "timing"], {"runs": 3}, {"time_engine": 1} | RESULTS),
        (
            ["models", "small", "training", "epochs"],
            5,
            times(3, TARGET)
            | RESULTS
            | {"train_source": 1, "evaluate_source": 1, "export_source": 1}
            | STUDENTS
            | RESULTS_INDIRECT,
        ),
        (["transfer", "finetune", "lr"], 0.01, {"finetune_seam": 2, "evaluate_defects": 2} | RESULTS_INDIRECT),
        (
            ["transfer", "search", "alpha"],
            0.04,
            {"finetune_seam_masks": 1, "finetune_seam": 2, "evaluate_defects": 2} | RESULTS_INDIRECT,
        ),
        (
            ["transfer", "head", "lr"],
            0.2,
            {"finetune_seam_head": 1, "finetune_seam_masks": 1, "finetune_seam": 2, "evaluate_defects": 2}
            | RESULTS_INDIRECT,
        ),
        (["transfer", "standard", "lr"], 0.01, {"finetune_standard": 1, "evaluate_defects": 1} | RESULTS_INDIRECT),
        (["attack", "steps"], 6, {"attack_source": 1, "evaluate_defects": 3} | RESULTS_INDIRECT),
        (
            ["indirect_reuse", 0, "students"],
            ["standard", "seam", "random"],
            {"finetune_seam": 2, "evaluate_defects": 2} | RESULTS_INDIRECT,
        ),
        (["engines"], [], RESULTS),
        (
            ["baselines"],
            ["head", "snip-overall", "scratch"],
            {
                "train_baseline": 6,
                "train_scratch": 3,
                "collect_baselines": 1,
                "plot_baselines": 1,
                "summarise": 1,
                "report": 1,
            },
        ),
        (
            ["search"],
            {"epochs": 12, "batch_size": 16, "lr_mask": 0.1, "patience": 100, "few_images": 0},
            {},
        ),  # as it is
        (["device"], "cpu", {}),
        (["precision"], "float32", {}),
    ],
)
def test_a_change_reruns_just_what_depends_on_it(run, path, value, expected):
    assert planned(run, change(run[1], path, value)) == expected


def test_two_values_that_are_swapped_are_a_change(run):
    config = run[1]
    one = change(change(config, ["search", "lr_head"], 0.2), ["search", "lr_mask"], 0.1)
    two = change(change(config, ["search", "lr_head"], 0.1), ["search", "lr_mask"], 0.2)
    for swapped in (one, two):
        assert planned(run, swapped)["reengineer"] == 3


MASKED_STUDENTS = {"finetune_seam_masks": 1, "finetune_seam": 2, "evaluate_defects": 2} | RESULTS_INDIRECT
EVERYTHING = (
    {"prepare_dataset": 2, "train_source": 1, "evaluate_source": 1, "export_source": 1}
    | times(3, TARGET)
    | STUDENTS
    | RESULTS
    | RESULTS_INDIRECT
)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("seam/cost/macs.py", {"count_macs": 3} | RESULTS),
        ("seam/cost/latency.py", {"time_engine": 3} | RESULTS),
        ("seam/cost/runners/onnx_runtime.py", {"time_engine": 3} | RESULTS),
        ("seam/cost/runners/open_vino.py", {}),
        ("seam/engine/fuse.py", {}),
        ("seam/engine/kernels/kernels.c", {}),
        ("seam/cost/quantization.py", {}),
        ("seam/search/mask_search.py", times(3, TARGET) | RESULTS | MASKED_STUDENTS),
        ("seam/search/stacked.py", times(3, TARGET) | RESULTS),
        ("seam/training/graphs.py", times(3, TARGET) | RESULTS | MASKED_STUDENTS),
        ("seam/reuse/transfer.py", STUDENTS | RESULTS_INDIRECT),
        (
            "seam/reuse/load.py",
            times(3, TARGET) | RESULTS | {"attack_source": 1, "evaluate_defects": 3} | RESULTS_INDIRECT,
        ),
        ("seam/data/kinds/imagefolder.py", EVERYTHING),
        ("seam/errors.py", EVERYTHING),
        ("seam/report/style.py", {"plot_direct": 1, "plot_indirect": 1, "report": 1}),
        ("reengineer.py", times(3, TARGET) | RESULTS),
        ("collect_indirect.py", RESULTS_INDIRECT),
        ("summarise.py", {"summarise": 1, "report": 1}),
    ],
)
def test_changed_code_reruns_what_imports_it(run, file, expected):
    with changed(run, file):
        assert planned(run) == expected


def test_changed_code_that_no_job_imports_reruns_nothing(run):
    """No job of this config reads a published data set, and none depends on how the config is read."""
    files = ["data/kinds/action40.py", "data/kinds/published.py", "resources/action40_classes.txt", "download.py"]
    with contextlib.ExitStack() as stack:
        for file in [*files, "config/plan.py", "cli/main.py"]:
            stack.enter_context(changed(run, f"seam/{file}"))
        assert planned(run) == {}


def test_another_caption_reruns_nothing(run):
    path = run[2] / "workflow/report/summary.rst"
    text = path.read_text()
    path.write_text(text + "Another sentence.\n")
    try:
        assert planned(run) == {}
    finally:
        path.write_text(text)


@pytest.mark.skipif("deepsparse" not in ENGINES, reason="DeepSparse does not run on this machine")
def test_another_engine_times_with_it_alone(run):
    expected = {"time_deepsparse": 3, "make_env": 1} | RESULTS
    assert planned(run, change(run[1], ["engines"], ["onnxruntime", "deepsparse"])) == expected


def installed(folder, package, version):
    """Let Python find another version of a package: as its metadata in `folder` say, which comes first."""
    metadata = folder / f"{package}-{version}.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return str(folder)


TRAINED = {"train_source": 1, "evaluate_source": 1, "export_source": 1}


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("onnxruntime", {"time_engine": 3} | RESULTS),
        ("onnx", {"export_source": 1, "export_onnx": 3, "time_engine": 3} | RESULTS),
        ("torch", TRAINED | times(3, TARGET) | RESULTS | STUDENTS | RESULTS_INDIRECT),
        ("numpy", {}),
    ],
)
def test_another_version_reruns_what_it_makes(run, tmp_path, monkeypatch, package, expected):
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path, package, "99.9"))
    assert planned(run) == expected


def test_another_order_of_targets_is_another_table(run):
    assert planned(run, change(run[1], ["direct_reuse", 0, "targets"], ["blue", "red"])) == RESULTS


def test_the_engine_for_zeros_times_with_its_own_code(run):
    config = change(run[1], ["engines"], ["onnxruntime", "seam"])
    assert planned(run, config) == {"time_engine": 3} | RESULTS
    path = run[2] / "workflow/scripts/seam/engine/kernels/kernels.c"
    wanted = [f"results/direct/small/{problem}/latency_seam.json" for problem in PROBLEMS]
    snakemake(run[0], "--", *wanted, config=config, workflow=run[2])
    before = planned(run, config)
    assert before == RESULTS
    for file in ("seam/engine/fuse.py", "seam/engine/kernels/kernels.c"):
        with changed(run, file):
            assert planned(run, config) == {"time_engine": 3} | RESULTS
    assert path.exists()


def test_int8_needs_a_quantized_model_and_its_accuracy(run):
    expected = {"quantize": 3, "quantize_source": 1, "evaluate_int8": 3, "time_engine": 3}
    assert planned(run, change(run[1], ["engines"], ["onnxruntime", "onnxruntime-int8"])) == expected | RESULTS


def test_a_file_that_is_touched_but_the_same_reruns_nothing(run):
    (run[2] / "workflow/scripts/seam/masks/masks.py").touch()
    (run[0] / "results/datasets/colours/dataset.json").touch()
    assert planned(run) == {}


def test_a_stack_of_searches_changes_no_result(run, tmp_path):
    """One job searches what is alike: here red and blue without blue's own alpha, and the multi-class problem alone."""
    folder, config, workflow = run
    config = change(config, ["direct_reuse", 0, "overrides"], {}) | {"stack": 3}
    shutil.copytree(folder / "results", tmp_path / "results", ignore=shutil.ignore_patterns("direct", "indirect"))
    shutil.copytree(folder / ".snakemake", tmp_path / ".snakemake")
    wanted = [f"results/direct/small/{problem}/metrics.json" for problem in PROBLEMS]
    said = snakemake(tmp_path, "--cores", "1", "--", *wanted, config=config, workflow=workflow)[1]
    assert jobs(said) == {"reengineer_stack_0": 1, "reengineer_stack_1": 1}
    for problem in ("binary/red", "multiclass/warm"):
        one, other = (place / "results/direct/small" / problem for place in (tmp_path, folder))
        assert (one / "masks.safetensors").read_bytes() == (other / "masks.safetensors").read_bytes()


# ---------------------------------------------------------------------- what is promised of a run


def without_time(path):
    """Return a table without the columns that a clock measured."""
    table = pd.read_csv(path, dtype=str)
    timed = [name for name in table if re.search("seconds|latency|speedup|folder|timing|onnxruntime|digest", name)]
    return table.drop(columns=timed).to_csv()


def test_the_number_of_cores_changes_no_result(run, tmp_path):
    folder, config, _ = run
    snakemake(tmp_path, "--cores", "1", config=config | {"engines": []})
    for name in ("direct_binary", "direct_multiclass", "indirect", "thresholds"):
        first, again = (place / f"results/tables/{name}.csv" for place in (folder, tmp_path))
        assert without_time(first) == without_time(again), name
    for file in ("direct/small/binary/red/masks", "indirect/small/two/seam-0.5/student", "models/small/source"):
        first, again = (place / f"results/{file}.safetensors" for place in (folder, tmp_path))
        assert first.read_bytes() == again.read_bytes(), file


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find the job's process")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, "137|-9"), (signal.SIGTERM, "75")])
def test_a_stopped_job_resumes_when_snakemake_runs_it_again(run, tmp_path, number, status):
    folder, config, workflow = run
    for name in ("datasets", "models"):
        shutil.copytree(folder / "results" / name, tmp_path / "results" / name)
    file = "results/direct/small/binary/red/masks.safetensors"
    arguments = ["--rerun-triggers", "mtime", "--cores", "2", file]  # the copies have no record of what made them
    run_it = functools.partial(snakemake, tmp_path, *arguments, config=config, check=False, workflow=workflow)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(run_it)
        checkpoint = tmp_path / "results/checkpoints/reengineer/small/binary/red.pt"
        while not checkpoint.exists() and not running.done():
            time.sleep(0.01)
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if f"{tmp_path}/.snakemake/scripts/" in place.read_text():
                    os.kill(int(place.parent.name), number)
        code, said = running.result()
    assert code != 0 and not (tmp_path / file).exists() and checkpoint.exists(), said
    assert re.search(f"exit status ({status})|died with <Signals.{number.name}", said), said
    assert "Traceback" not in said and (number is signal.SIGKILL or "run again" in said)
    assert run_it()[0] == 0
    assert "from the checkpoint" in (tmp_path / "results/logs/reengineer/small/binary/red.log").read_text()
    assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()
    assert not checkpoint.exists()


# ---------------------------------------------------------------------- the config that comes with it


def test_the_full_config_holds_the_published_evaluation(tmp_path):
    _, said = snakemake(tmp_path, "--dry-run", config={"engines": ENGINES})
    found = jobs(said)
    assert found["reengineer"] == 240  # 220 binary problems and 20 superclasses of CIFAR-100
    assert found["time_engine"] == 2 * 240 and ("deepsparse" in ENGINES) == (found.get("time_deepsparse") == 240)
    assert found["fetch_weights"] == 4 and found["prepare_dataset"] == 2
    assert said.count("datasets.imagenet: its root is not given in the config") == 1


def test_the_demo_has_its_six_problems(tmp_path):
    demo = yaml.safe_load((ROOT / "profiles/demo/workflow.yaml").read_text())
    found = jobs(snakemake(tmp_path, "--dry-run", config=demo | {"engines": ENGINES})[1])
    assert found["reengineer"] == 6 and found["recover"] == 1 and found["train_source"] == 3
    assert found["finetune_seam"] == 6 and found["finetune_standard"] == found["retrain"] == 1  # eight students
    assert found["time_engine"] == 12 and ("deepsparse" in ENGINES) == (found.get("time_deepsparse") == 6)


def test_budgets_of_time_and_baselines_of_channels_are_planned(tmp_path):
    demo = yaml.safe_load((ROOT / "profiles/demo/workflow.yaml").read_text())
    channels = next(entry for entry in demo["direct_reuse"] if entry["search"].get("granularity") == "channel")
    channels |= {"baselines": ["widths-scratch", "uniform-magnitude-distilled", "finetuned"]}
    channels["search"] = {"granularity": "channel", "budget": {"latency": 0.5, "batch": 16}}
    zeros = {**demo["direct_reuse"][0], "targets": [2], "search": {"budget": {"latency_ms": 5.0}}}
    config = demo | {"direct_reuse": [channels, zeros], "indirect_reuse": [], "engines": []}
    found = jobs(snakemake(tmp_path, "--dry-run", config=config)[1])
    expected = {
        "measure_channel_costs": 1, "measure_layer_costs": 1, "time_budget": 2, "collect_budgets": 1, "recover": 1,
        "train_channel_baseline": 3, "export_baseline": 3, "time_baselines": 1, "collect_baselines": 1,
        "plot_channel_baselines": 1,
    }  # fmt: skip
    assert {rule: found.get(rule) for rule in expected} == expected
    assert "train_baseline" not in found and "train_scratch" not in found


def test_a_recovered_baseline_is_planned_after_the_one_that_it_recovers(tmp_path):
    demo = yaml.safe_load((ROOT / "profiles/demo/workflow.yaml").read_text())
    entry = {**demo["direct_reuse"][0], "targets": [2], "recovery": {"epochs": 2}}
    entry["baselines"] = ["head-recovered", "magnitude", "magnitude-recovered", "snip-overall-recovered", "scratch"]
    rest = {"indirect_reuse": [], "engines": []}
    found = jobs(snakemake(tmp_path, "--dry-run", config=demo | {"direct_reuse": [entry], **rest})[1])
    expected = {
        "reengineer": 1, "recover": 1, "train_baseline": 3, "recover_baseline": 3, "train_scratch": 1,
        "collect_baselines": 1, "plot_baselines": 1,
    }  # fmt: skip
    assert {rule: found.get(rule) for rule in expected} == expected
    # Without them, nothing needs the plain ones that are not listed.
    entry["baselines"] = ["magnitude"]
    found = jobs(snakemake(tmp_path, "--dry-run", config=demo | {"direct_reuse": [entry], **rest})[1])
    assert found["train_baseline"] == 1 and "recover_baseline" not in found


def test_the_full_config_names_what_indirect_reuse_waits_for(tmp_path):
    _, said = snakemake(tmp_path, "--dry-run", config={"engines": ENGINES})
    for name in ("mit67", "cub200", "flower102", "dog120", "action40"):
        assert said.count(f"datasets.{name}: ") == 1, name
    assert "finetune_seam" not in jobs(said)


def test_without_engines_there_is_nothing_timed_but_all_else(tmp_path, colours):
    found = jobs(snakemake(tmp_path, "--dry-run", config=small_config(colours) | {"engines": []})[1])
    assert not any(rule.startswith("time_") for rule in found)
    assert found["export_onnx"] == found["count_macs"] == 3


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (["search", "lr_msk"], 0.1, "search.lr_msk is not a known key: did you mean lr_mask?"),
        (["direct_reuse", 0, "targets"], ["rad"], "direct_reuse[0].targets names 'rad', which is not a class"),
        (
            ["datasets", "colours", "root"],
            "/nowhere",
            "datasets.colours.root is '/nowhere', but there is no such folder",
        ),
        (["direct_reuse", 0, "model"], "smal", "did you mean small?"),
        (["search", "lr_mask"], -1, "search.lr_mask is -1"),
    ],
)
def test_a_mistake_in_the_config_ends_in_a_sentence_before_any_job(tmp_path, colours, path, value, sentence):
    status, said = snakemake(tmp_path, config=change(small_config(colours), path, value), check=False)
    assert status != 0
    assert sentence in said
    assert "Traceback" not in said and "Building DAG" not in said
    assert not (tmp_path / "results").exists()


def test_a_mistake_that_only_a_job_can_see_ends_in_a_sentence(tmp_path):
    images = paint(tmp_path / "images", train=4, test=2)
    (images / "train" / "red" / "broken.png").write_text("this is no picture")
    status, said = snakemake(tmp_path, config=small_config(images), check=False)
    assert status != 0
    assert "broken.png" in said and "Traceback" not in said
    log = (tmp_path / "results/logs/prepare_dataset/colours.log").read_text()
    assert "Traceback" in log and "broken.png" in log


def test_results_in_another_folder_stay_apart(run, tmp_path):
    """Two users of one clone: the same config in another working directory starts from nothing."""
    _, config, _ = run
    assert jobs(snakemake(tmp_path, "--dry-run", config=config)[1])["reengineer"] == 3


@pytest.mark.parametrize(
    ("name", "rule"),
    [("direct/small/binary/red/macs.json", "count_macs"), ("direct/small/binary/red/model.onnx", "export_onnx")],
)
def test_a_deleted_result_is_made_again(run, name, rule):
    path = run[0] / "results" / name
    kept = shutil.move(path, path.with_suffix(".kept"))
    try:
        found = planned(run)
    finally:
        shutil.move(kept, path)
    assert found[rule] == 1 and "reengineer" not in found


@pytest.mark.parametrize("name", ["small/binary/rad", "smal/binary/red", "small/multiclass/red"])
def test_a_target_that_is_not_in_the_config_is_said_in_a_sentence(run, name):
    folder, config, workflow = run
    file = f"results/direct/{name}/metrics.json"
    status, said = snakemake(folder, "--dry-run", file, config=config, check=False, workflow=workflow)
    assert status != 0 and "Traceback (most recent call last)" not in said
    assert f"{name} is not a target problem of the config" in said


@pytest.mark.parametrize(
    ("file", "sentence"),
    [("budget_latency.json", "red has no budget of time"), ("recovery.json", "red has no recovery in the config")],
)
def test_a_file_that_a_problem_does_not_have_is_said_in_a_sentence(run, file, sentence):
    folder, config, workflow = run
    file = f"results/direct/small/binary/red/{file}"
    status, said = snakemake(folder, "--dry-run", file, config=config, check=False, workflow=workflow)
    assert status != 0 and "Traceback (most recent call last)" not in said and sentence in said


def test_a_new_folder_of_a_class_is_prepared_before_problems_of_it_are_searched(run):
    new = [run[0] / "images" / split / "violet" for split in ("train", "test")]
    for place in new:
        shutil.copytree(place.with_name("red"), place)
    try:
        found = planned(run, change(run[1], ["direct_reuse", 0, "targets"], ["red", "blue", "violet"]))
    finally:
        for place in new:
            shutil.rmtree(place)
    assert found["prepare_dataset"] == 1 and found["train_source"] == 1
    assert planned(run) == {}

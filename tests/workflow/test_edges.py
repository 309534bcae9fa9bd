"""A job sees its own changes also in a run that makes one of its inputs again.

Snakemake looks at no job behind another one that runs, but follows the inputs. It does not follow those that are marked
ancient(): a job with such an input alone would keep its old results, although its own settings have changed.
"""

import os
import shutil
import time

import pytest
from colours import paint
from workflows import ROOT, change, jobs, small_config, snakemake

TARGET = "results/direct/small/binary/red"


@pytest.fixture
def clone(tmp_path):
    """Return (folder of results, config, a copy of the workflow whose files can be changed)."""
    workflow = tmp_path / "clone"
    workflow.mkdir()
    for name in ("Snakefile", "config.yaml", "workflow", "envs", "profiles"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, workflow / name)
    config = small_config(paint(tmp_path / "images", train=2, test=1)) | {"indirect_reuse": []}
    config["direct_reuse"] = [{"model": "small", "problem": "binary", "targets": ["red"]}]
    return tmp_path, config, workflow


def finished(clone, config, rules, target, *files):
    """Let Snakemake take files for made, and return a function from a config to the jobs that would run then."""
    folder, _, workflow = clone
    for file in (*files, target):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if file.endswith(("arrays", "deepsparse")) else path.write_text("{}")
    options = ["--allowed-rules", *rules, "--", target]
    snakemake(folder, "--touch", "--forcerun", *rules, *options, config=config, workflow=workflow)

    def planned(other):
        return jobs(snakemake(folder, "--dry-run", *options, config=other, workflow=workflow)[1])

    assert planned(config) == {}
    return planned


def edited(path):
    """Add a line to a file, with a date that is later than those of all results."""
    path.write_text(path.read_text() + "\n# a change\n")
    later = time.time() + 1000
    os.utime(path, (later, later))


def test_latencies_are_measured_again_with_deepsparse_s_environment(clone):
    config = clone[1] | {"engines": ["deepsparse"]}
    models = f"{TARGET}/model.onnx", "results/models/small/model.onnx"
    latency = f"{TARGET}/latency_deepsparse.json"
    planned = finished(clone, config, ["make_env", "time_deepsparse"], latency, *models, "envs/.built/deepsparse")
    slower = change(config, ["timing", "iterations"], 6)
    assert planned(slower) == {"time_deepsparse": 1}
    edited(clone[2] / "envs/deepsparse.txt")
    assert planned(slower) == planned(config) == {"make_env": 1, "time_deepsparse": 1}


def test_a_search_to_a_latency_is_repeated_with_the_costs_of_layers(clone):
    config = change(clone[1], ["search", "budget"], {"latency_ms": 1.0})
    made = "results/datasets/colours/dataset.json", "results/datasets/colours/arrays"
    made += "results/models/small/source.safetensors", "results/models/small/layer_costs_1.json"
    made += f"{TARGET}/history.csv", f"{TARGET}/metrics.json"
    rules = ["measure_layer_costs", "reengineer"]
    planned = finished(clone, config, rules, f"{TARGET}/masks.safetensors", *made)
    other = change(config, ["search", "budget", "latency_ms"], 2.0)
    assert planned(other) == {"reengineer": 1}
    edited(clone[2] / "workflow/scripts/seam/engine/kernels/kernels.c")
    assert planned(other) == planned(config) == {"measure_layer_costs": 1, "reengineer": 1}

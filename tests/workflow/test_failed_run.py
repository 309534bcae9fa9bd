"""A run in which jobs fail: tables and figures of the finished problems and students."""

import json

import pandas as pd
import pytest
from colours import ARCHITECTURE, paint
from PIL import Image
from workflows import change, small_config, snakemake

from seam.report.partial import failure_reason
from seam.report.tables import read_table


def bad_config(images):
    """One target and one student that come to nothing among others that do."""
    config = small_config(images) | {"engines": []}
    config["search"] |= {"epochs": 4}
    config["direct_reuse"] = [
        {
            "model": "small",
            "problem": "binary",
            "targets": ["red", "blue"],
            "overrides": {"red": {"alpha": 1e9, "lr_mask": 10.0}},
        },
    ]
    config["transfer"] |= {"search": {"epochs": 1, "lr_mask": 0.001}}
    config["attack"] = {"steps": 2}
    config["indirect_reuse"][0]["thresholds"] = [0.9]
    return config


def test_after_a_failed_run_tables_and_figures_are_made_of_what_is_there(tmp_path):
    bad = bad_config(paint(tmp_path / "images"))
    status, terminal = snakemake(tmp_path, "--keep-going", config=bad, check=False)
    results, partial = tmp_path / "results", tmp_path / "results/partial"
    assert status != 0 and "Traceback (most recent call last)" not in terminal
    left = "No weight was left in epoch 2: lower alpha or lr_mask."
    assert f"Error: {left}" in terminal and "At least one job did not complete successfully" in terminal
    assert "Tables and figures of the finished results (1 of 2 target problems, 1 of 2 students) are in" in terminal
    assert f"Missing: small, binary: red: {left}" in terminal
    assert not (results / "tables").exists() and not (results / "figures").exists()

    table = read_table(partial / "tables/direct_binary.csv").set_index("target")
    assert list(table.index) == ["red", "blue"] and table.columns[-1] == "missing"
    assert table.loc["red", "missing"] == left and pd.isna(table.loc["blue", "missing"])
    metrics = json.loads((results / "direct/small/binary/blue/metrics.json").read_text())
    assert table.loc["blue", "accuracy_reengineered"] == metrics["accuracy"]["reengineered"]
    assert pd.isna(table.loc["red", "retention"]) and table.loc["red", "architecture"] == ARCHITECTURE
    students = read_table(partial / "tables/indirect.csv").set_index("student")
    assert pd.isna(students.loc["standard", "missing"]) and students.loc["standard", "accuracy"] > 0.5
    reason = students.loc["seam", "missing"]
    assert reason.startswith("The search of results/indirect/small/two/search/masks.safetensors removed at most")
    assert students.loc["seam", "threshold"] == 0.9
    assert read_table(partial / "tables/thresholds.csv")["missing"].tolist() == [reason]
    assert len(read_table(partial / "tables/direct_multiclass.csv")) == 0
    summary = read_table(partial / "tables/summary.csv").set_index(["quantity", "group"])
    assert summary.loc[("weights_kept", "all"), "problems"] == 1
    assert summary.loc[("weights_kept", "all"), "missing"] == "1 of 2 target problems"
    pictures = sorted(path.stem for path in (partial / "figures").glob("*.png"))
    assert len(pictures) == 8
    for name in pictures:
        with Image.open(partial / f"figures/{name}.png") as picture:
            assert min(picture.size) > 200
        assert (partial / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")

    # A dry run changes nothing; a run in which all is there removes it.
    good = change(change(bad, ["direct_reuse", 0, "targets"], ["blue"]), ["direct_reuse", 0, "overrides"], {})
    good = change(good, ["indirect_reuse", 0, "students"], ["standard"])
    del good["indirect_reuse"][0]["thresholds"]
    snakemake(tmp_path, "--dry-run", config=good)
    assert partial.exists()
    snakemake(tmp_path, config=good)
    assert not partial.exists() and (results / "tables/summary.csv").exists()

    # Also where there is nothing to be done, since the bad target is taken out again.
    before = {path: path.read_bytes() for path in (results / "tables").iterdir()}
    worse = change(good, ["direct_reuse"], bad["direct_reuse"])
    assert snakemake(tmp_path, "--keep-going", config=worse, check=False)[0] != 0
    assert partial.exists() and before == {path: path.read_bytes() for path in (results / "tables").iterdir()}
    assert "Nothing to be done" in snakemake(tmp_path, config=good)[1]
    assert not partial.exists()


def test_a_run_that_fails_before_anything_is_there_makes_no_tables(tmp_path):
    images = paint(tmp_path / "images", train=4, test=2)
    (images / "train" / "red" / "broken.png").write_text("this is no picture")
    status, terminal = snakemake(tmp_path, config=bad_config(images), check=False)
    assert status != 0 and "broken.png" in terminal and "Tables and figures" not in terminal
    assert not (tmp_path / "results/partial").exists() and "Traceback (most recent call last)" not in terminal


@pytest.mark.parametrize("said", ["", "an operation is not supported"])
def test_an_engine_that_crashes_is_named_with_its_last_output(tmp_path, colours, said):
    config = small_config(colours) | {"engines": ["deepsparse"], "indirect_reuse": []}
    python = tmp_path / "envs/.built/deepsparse/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{f'echo {said} >&2' if said else ''}\nkill -SEGV $$\n")
    python.chmod(0o755)
    target = "results/direct/small/binary/red"
    for folder in (target, "results/models/small"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.onnx").write_bytes(b"a model")
    options = ["--allowed-rules", "time_deepsparse", "--rerun-triggers", "mtime", "--keep-going"]
    status, printed = snakemake(
        tmp_path, *options, "--", f"{target}/latency_deepsparse.json", config=config, check=False
    )
    assert status != 0 and "Traceback" not in printed
    sentence = (
        f"DeepSparse crashed on {target}/model.onnx or results/models/small/model.onnx (signal 11; its last output: "
    )
    assert f"Error: {sentence}{said or 'none'}). To run without it, set engines:" in printed
    log = tmp_path / "results/logs/time_deepsparse/small/binary/red.log"
    assert failure_reason(log).startswith(sentence)

"""Earlier results stay until new ones are complete: a run that fails leaves all as it was, dates included."""

import os

import pytest
from colours import paint
from workflows import change, jobs, small_config, snakemake

TARGET = "results/direct/small/binary/red"
FAILING = {"alpha": 1e6, "lr_mask": 10.0}
FILES = [f"{TARGET}/{name}" for name in ("macs.json", "model.onnx", "metrics.json")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, config) of a finished search, its MACs and its ONNX file."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config(paint(folder / "images", train=8, test=4)) | {"indirect_reuse": []}
    config["direct_reuse"] = [{"model": "small", "problem": "binary", "targets": ["red"]}]
    config["search"]["epochs"] = 5
    snakemake(folder, "--", *FILES, config=config)
    return folder, config


def state(folder):
    """Return {path: (content, date)} of the results; not of logs, benchmarks and checkpoints."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in (folder / "results").rglob("*")
        if path.is_file() and path.relative_to(folder).parts[1] not in ("logs", "benchmarks", "checkpoints")
    }


def test_a_run_that_fails_leaves_earlier_results(run):
    folder, config = run
    before = state(folder)
    failing = change(config, ["search"], config["search"] | FAILING)
    for _ in range(2):  # nor does it count as done
        status, said = snakemake(folder, "--", *FILES, config=failing, check=False)
        assert status != 0 and "No weight was left" in said and "Traceback" not in said
        assert state(folder) == before
    assert "Nothing to be done" in snakemake(folder, "--", *FILES, config=config)[1]


def test_a_training_that_fails_leaves_earlier_weights(run):
    folder, config = run
    before = state(folder)
    failing = change(config, ["models", "small", "training", "lr"], 1e30)
    status, said = snakemake(folder, "--", *FILES, config=failing, check=False)
    assert status != 0 and "Traceback" not in said
    assert state(folder) == before
    assert "Nothing to be done" in snakemake(folder, "--", *FILES, config=config)[1]


def test_a_file_that_is_missing_is_made_again_though_an_earlier_attempt_failed(run):
    folder, config = run
    (folder / TARGET / "history.csv").unlink()
    before = state(folder)
    failing = change(config, ["search"], config["search"] | FAILING)
    assert snakemake(folder, "--", *FILES, config=failing, check=False)[0] != 0
    assert state(folder) == before
    said = snakemake(folder, "--", *FILES, f"{TARGET}/history.csv", config=config)[1]
    assert jobs(said)["reengineer"] == 1 and set(state(folder)) == {*before, f"{TARGET}/history.csv"}


def test_images_that_cannot_be_prepared_leave_the_earlier_data_set(run):
    folder, config = run
    before, broken = state(folder), folder / "images/train/red/zzz.png"
    broken.write_bytes(b"no image")
    try:
        for _ in range(2):
            status, said = snakemake(folder, "--forcerun", "prepare_dataset", "--", *FILES, config=config, check=False)
            assert status != 0 and "zzz.png" in said and "Traceback" not in said
            assert state(folder) == before
    finally:
        broken.unlink()
    assert "Nothing to be done" in snakemake(folder, "--", *FILES, config=config)[1]


def test_tables_that_cannot_be_collected_leave_the_earlier_ones(run):
    folder, config = run
    tables = "results/tables/direct_binary.csv", "results/figures/cost.png"
    snakemake(folder, "--", *tables, config=config)
    before, macs = state(folder), folder / TARGET / "macs.json"
    content, dates = macs.read_bytes(), macs.stat()
    macs.write_bytes(content.replace(b"1", b"2", 1))  # on a damaged disk
    os.utime(macs, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    status, said = snakemake(folder, "--forcerun", "collect_direct", "--", *tables, config=config, check=False)
    assert status != 0 and "macs.json is damaged, its content does not have its digest" in said
    assert "Traceback" not in said
    macs.write_bytes(content)
    os.utime(macs, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert state(folder) == before
    assert "Nothing to be done" in snakemake(folder, "--", *tables, config=config)[1]

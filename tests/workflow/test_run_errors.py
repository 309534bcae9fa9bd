"""Mistakes that people make, seen through the workflow: a sentence on the terminal, and no earlier result is lost."""

import os
import subprocess
import sys
import time

import pytest
import torch
import yaml
from colours import ARCHITECTURE, paint
from mistakes import Harm, hashes, photograph, truncated, without_privileges
from workflows import ROOT, change, small_config, snakemake

SOURCE = "results/models/small/metrics.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, config) of a run that made a source model, from images that it could only read."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config(paint(folder / "images", train=8, test=4)) | {"indirect_reuse": []}
    for path in [folder / "images", *(folder / "images").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    snakemake(folder, "--", SOURCE, config=config)
    yield folder, config
    for path in [folder / "images", *(folder / "images").rglob("*")]:
        path.chmod(0o755)


def results(folder):
    """Return the digests of all results; the hidden folders of jobs that were killed hold none."""
    digests = {name: digest for name, digest in hashes(folder / "results").items() if "/." not in f"/{name}"}
    return {name: digest for name, digest in digests.items() if not name.startswith(("logs", "bench"))}


def test_a_mistake_in_the_config_touches_no_result(run):
    folder, config = run
    before = results(folder)
    assert {"models/small/source.safetensors", "models/small/metrics.json", "datasets/colours/dataset.json"} <= {
        *before
    }
    status, said = snakemake(folder, config=change(config, ["search", "lr_msk"], 0.1), check=False)
    assert status != 0 and "search.lr_msk is not a known key: did you mean lr_mask?" in said
    assert "Traceback" not in said and "Building DAG" not in said
    assert results(folder) == before


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (
            "indirect/small/two/seam-0.9/metrics.json",
            "0.9 is no threshold of small and two in the config: it has 0.3, 0.5",
        ),
        ("indirect/small/two/seam-0.50/student.safetensors", "0.50 is no threshold of small and two in the config"),
        ("direct/small/binary/red/baselines/finetuned/metrics.json", "whose search is one of single weights"),
        ("direct/small/binary/blue/baselines/magnitude/metrics.json", "whose search is one of channels"),
    ],
)
def test_results_that_the_config_cannot_have_are_refused_before_any_job(run, file, sentence):
    folder, config = run
    channels = {"granularity": "channel", "budget": {"macs": 0.5}}
    entry = {"model": "small", "problem": "binary", "targets": ["blue"], "search": channels}
    config = change(config, ["direct_reuse", 0, "targets"], ["red"])
    config = change(config, ["direct_reuse", 0, "overrides"], {})
    config["direct_reuse"].append(entry)
    config["indirect_reuse"] = [{"model": "small", "datasets": ["two"], "students": ["seam"], "thresholds": [0.3, 0.5]}]
    status, said = snakemake(folder, "--dry-run", "--", f"results/{file}", config=config, check=False)
    assert status != 0 and sentence in said


def test_mistakes_in_images_and_weights_touch_no_other_result(run, tmp_path):
    folder, config = run
    before = results(folder)
    images = paint(tmp_path / "images", train=2, test=1)
    truncated(photograph(images / "train/red/broken.jpg"))
    torch.save({"a": Harm()}, tmp_path / "mine.pt")
    config = change(config, ["datasets", "broken"], {"kind": "imagefolder", "root": str(images), "size": 16})
    normalization = {"mean": [0.5] * 3, "std": [0.2] * 3}
    mine = {"architecture": ARCHITECTURE, "dataset": "colours", "weights": str(tmp_path / "mine.pt")}
    config = change(config, ["models", "mine"], mine | {"normalization": normalization})
    targets = ["results/datasets/broken/dataset.json", "results/models/mine/source.safetensors"]
    status, said = snakemake(folder, "--keep-going", "--", *targets, config=config, check=False)
    assert status != 0 and "Traceback" not in said
    assert said.count("broken.jpg cannot be read as an image (image file is truncated") == 1
    assert said.count("mine.pt holds no state dictionary (names and tensors) but a dictionary with a") == 1
    for log in ("prepare_dataset/broken.log", "fetch_weights/mine.log"):
        assert "Traceback (most recent call last)" in (folder / "results/logs" / log).read_text()
    assert results(folder) == before
    assert not (folder / "harmed").exists()


def test_a_second_run_in_the_same_folder_is_told_of_the_first(run, tmp_path):
    folder, config = run
    (tmp_path / "slow.py").write_text("import time\n\ndef build(classes):\n    time.sleep(600)\n")
    slow = {"architecture": f"{tmp_path}/slow.py:build", "dataset": "colours", "weights": "train"}
    config = change(config, ["models", "slow"], slow)
    before = results(folder)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    command += ["--cores", "1", "--configfile", path, "--", "results/models/slow/metrics.json"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, start_new_session=True, **quiet)
    try:
        end = time.monotonic() + 60
        while not list((folder / ".snakemake/locks").glob("*")) and first.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        status, said = snakemake(folder, "--", "results/models/slow/metrics.json", config=config, check=False)
        assert first.poll() is None
    finally:
        os.killpg(first.pid, 9)
        first.wait()
    assert status != 0 and "Traceback" not in said
    assert "no other Snakemake process is trying to create the same files" in " ".join(said.split())
    assert "--unlock" in said and str(folder) in said
    assert results(folder) == before
    snakemake(folder, "--unlock", config=config)
    status, said = snakemake(folder, "--", SOURCE, config=run[1])
    assert "Nothing to be done" in said and results(folder) == before


def test_a_network_that_does_not_fit_its_images_is_said_before_its_training(run, tmp_path):
    folder, config = run
    code = "from torch import nn\ndef build(n): return nn.Sequential(nn.Flatten(), nn.Linear(9, n))\n"
    (tmp_path / "net.py").write_text(code)
    mine = {"architecture": f"{tmp_path}/net.py:build", "dataset": "colours", "weights": "train"}
    config = change(config, ["models", "mine"], mine)
    status, said = snakemake(folder, "--", "results/models/mine/source.safetensors", config=config, check=False)
    assert status != 0 and "Traceback" not in said
    assert "Error: The model mine does not run on images of 16 x 16 px (RuntimeError: mat1" in said


def test_mistakes_that_are_seen_before_anything_begins(run, tmp_path):
    folder, config = run
    before = results(folder)
    twice = tmp_path / "twice.yaml"
    twice.write_text(yaml.safe_dump(config) + "search: {alpha: 2.0}\n")
    status, said = snakemake(folder, "-n", "--configfile", twice, check=False)
    assert status != 0 and "Traceback" not in said and "twice.yaml has search twice (lines " in said
    status, said = snakemake(folder, "-n", "--", "results/datasets/colors/dataset.json", config=config, check=False)
    assert status != 0 and "KeyError" not in said
    assert "colors is not a data set of the config: did you mean colours?" in said
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "results").symlink_to(tmp_path / "nowhere")
    status, said = snakemake(tmp_path / "link", config=config, check=False)
    assert status != 0 and "Traceback" not in said and "link/results is neither a folder nor a link to one" in said
    (tmp_path / "a{b}").mkdir()
    status, said = snakemake(tmp_path / "a{b}", "-n", config=config, check=False)
    assert status != 0 and "Traceback" not in said and "a{b} has a brace in its path" in said
    assert results(folder) == before


def test_a_working_folder_that_must_not_be_written(tmp_path, colours):
    folder = tmp_path / "run"
    folder.mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(colours)))
    folder.chmod(0o555)
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    result = subprocess.run(
        [*command, "--cores", "1", "--configfile", path],
        capture_output=True, text=True, check=False, preexec_fn=without_privileges,
    )  # fmt: skip
    said = result.stdout + result.stderr
    assert result.returncode != 0 and "Traceback" not in said
    assert f"Cannot write in {folder}: fix its permissions" in said
    assert list(folder.iterdir()) == []

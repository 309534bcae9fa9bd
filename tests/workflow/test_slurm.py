"""The workflow on a Slurm cluster with its own profile: what jobs ask for, and how failed jobs resume."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import slurm
import yaml
from colours import paint
from contents import content
from slurm_jobs import GPU, LOCAL, Going
from workflows import ROOT, jobs, small_config, snakemake

HELPERS = ROOT / "tests/helpers"


# ---------------------------------------------------------------------- what jobs ask for


def asked(folder, config):
    """[{rule: [resources and wildcards of its jobs]}] of the first three attempts."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, HELPERS / "asked.py", ROOT / "Snakefile", "config.yaml"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def demo():
    return yaml.safe_load((ROOT / "profiles/demo/workflow.yaml").read_text()) | {"engines": ["onnxruntime"]}


@pytest.mark.parametrize(("device", "gpus"), [("auto", 1), ("cuda", 1), ("cpu", 0)])
def test_a_gpu_is_asked_for_where_one_is_used(tmp_path, device, gpus):
    found = asked(tmp_path, demo() | {"device": device})[0]
    trained = GPU | {"recover"}  # the demo removes channels, the published evaluation does not
    assert found.keys() >= trained
    for rule, resources in found.items():
        assert {one.get("gpu", 0) for one in resources} == {gpus if rule in trained else 0}, rule


def test_each_attempt_gets_more_memory_and_time_up_to_a_day(tmp_path):
    attempts = asked(tmp_path, demo())
    for rule in attempts[0].keys() - LOCAL:
        one, two, three = (found[rule][0] for found in attempts)
        assert 2000 < one["mem_mb"] < two["mem_mb"] < three["mem_mb"] < 20_000, rule
        assert 15 <= one["runtime"] < two["runtime"] <= three["runtime"] <= 24 * 60, rule


def test_large_images_get_more_memory_and_processors_to_decode_them(tmp_path):
    classes = ["n01440764", "n01443537"]
    for split in ("train", "val"):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
    config = {
        "engines": [],
        "datasets": {"imagenet": {"kind": "imagenet", "root": str(tmp_path)}},
        "direct_reuse": [
            {"model": "resnet50-imagenet", "problem": "multiclass", "targets": {"fish": classes}},
            {"model": "resnet20-cifar10", "problem": "binary", "targets": ["cat"]},
        ],
    }
    found = {one["model"]: one for one in asked(tmp_path, config)[0]["reengineer"]}
    assert [found["resnet50-imagenet"][name] for name in ("mem_mb", "_cores")] == [24_000, 8]
    assert [found["resnet20-cifar10"][name] for name in ("mem_mb", "_cores")] == [6000, 1]


# ---------------------------------------------------------------------- through a Slurm


@pytest.fixture(scope="session")
def cluster():
    """The environment in which a Slurm of one node answers."""
    if slurm.missing():
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm munge")
    with slurm.running() as environment:
        yield environment
    folder = Path(environment["SLURM_CONF"]).parent
    assert not folder.exists() and not slurm.left(folder)


NET = """
import sys
import time
from pathlib import Path

sys.path.append({tests!r})
import small

class Net(small.nn.Sequential):
    def forward(self, images):
        if Path("slow").exists():
            time.sleep(2)
        return super().forward(images)

def build(classes):
    if Path("broken").exists():
        Path("broken").unlink()
        raise RuntimeError("broken this once")
    if Path("heavy").exists():
        build.ballast = bytearray(900_000_000)
        time.sleep(4)
    return Net(*small.build(classes))
"""
SEARCH = "results/direct/net/binary/red"
CHECKPOINT = "results/checkpoints/reengineer/net/binary/red.pt"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder, config) of a run on this machine without Slurm: images, a source model, one search.

    The network is the small one of the tests, and what a file in the working directory is called befalls it.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "net.py").write_text(NET.format(tests=str(HELPERS)))
    small = small_config(paint(folder / "images"))
    config = small | {
        "models": {"net": small["models"]["small"] | {"architecture": f"{folder}/net.py:build"}},
        "direct_reuse": [{"model": "net", "problem": "binary", "targets": ["red"]}],
        "indirect_reuse": [],
    }
    snakemake(folder, "--", f"{SEARCH}/metrics.json", config=config)
    return folder, config


class Search(Going):
    """Of small images, in a folder of its own, with all that it needs."""

    def __init__(self, folder, config, cluster, *arguments):
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        own = ["--snakefile", ROOT / "Snakefile", "--configfile", "config.yaml"]
        super().__init__(folder, folder / "snakemake.txt", cluster, *own, *arguments, "--", f"{SEARCH}/metrics.json")


class Befallen(Search):
    """The search alone, what it needs being there; `what` befalls it until that file is removed."""

    def __init__(self, what, undisturbed, folder, cluster, *resources):
        source, config = undisturbed
        for name in ("results/datasets", "results/models"):
            shutil.copytree(source / name, folder / name)
        self.what = folder / what
        self.what.touch()
        more = ["--rerun-triggers", "mtime"]  # the copies have no record of what made them
        if resources:
            more += ["--set-resources", *resources]
        super().__init__(folder, config, cluster, *more)


@pytest.fixture(scope="module")
def going(undisturbed, cluster, tmp_path_factory):
    """All that these tests wait for, side by side: most of the time is Slurm's."""
    root = tmp_path_factory.mktemp("slurm")
    cases = {
        "broken": ("broken", []),
        "cancelled": ("slow", []),
        "late": ("slow", ["reengineer:runtime=attempt"]),
        "heavy": ("heavy", ["reengineer:mem_mb=1300 * attempt"]),
    }
    found = {}
    for name, (what, resources) in cases.items():
        (root / name).mkdir()
        found[name] = Befallen(what, undisturbed, root / name, cluster, *resources)
    (root / "whole").mkdir()
    found["whole"] = Search(root / "whole", undisturbed[1], cluster)
    yield found
    for one in found.values():
        one.process.kill()
        one.process.wait()


def ended_as_undisturbed(one, undisturbed):
    said = one.ends()
    assert content(one.folder / SEARCH) == content(undisturbed[0] / SEARCH)
    assert not (one.folder / CHECKPOINT).exists()
    assert "Trying to restart job" in said
    return [one.about(number) for number in one.entries()]


def resumed(one):
    return "from the checkpoint" in (one.folder / "results/logs/reengineer/net/binary/red.log").read_text()


def test_a_cancelled_job_resumes(going, undisturbed):
    one = going["cancelled"]
    one.until((one.folder / CHECKPOINT).exists)
    (number,) = one.entries()
    about = one.about(number)
    assert about["TresPerJob"] == "gres:gpu:1" and about["MinMemoryNode"] == "6000M"
    subprocess.run(["scancel", number], env=one.cluster, check=True)
    one.until(lambda: one.about(number)["JobState"] == "CANCELLED")
    one.what.unlink()
    ended_as_undisturbed(one, undisturbed)
    assert resumed(one)


def test_a_job_beyond_its_time_resumes(going, undisturbed):
    one = going["late"]
    one.until(one.entries)
    (number, *_) = one.entries()
    one.until(lambda: one.about(number)["JobState"] == "TIMEOUT")
    one.what.unlink()
    first, second, *_ = ended_as_undisturbed(one, undisturbed)
    assert (first["TimeLimit"], second["TimeLimit"]) == ("00:01:00", "00:02:00")
    assert resumed(one)


def test_a_job_that_fails_once_runs_again(going, undisturbed):
    first, second = ended_as_undisturbed(going["broken"], undisturbed)
    assert (first["JobState"], second["JobState"]) == ("FAILED", "COMPLETED")


def test_a_job_beyond_its_memory_gets_more(going, undisturbed):
    entries = ended_as_undisturbed(going["heavy"], undisturbed)
    assert [entry["JobState"] for entry in entries] == ["FAILED", "COMPLETED"]
    assert [entry["MinMemoryNode"] for entry in entries] == ["1300M", "2600M"]


def test_a_search_and_all_that_it_needs_end_as_without_slurm(going, undisturbed):
    one = going["whole"]
    made = jobs(one.ends())
    assert made == {"prepare_dataset": 1, "train_source": 1, "reengineer": 1}
    assert {one.about(number)["JobState"] for number in one.entries()} == {"COMPLETED"}
    for name in (SEARCH, "results/models/net"):
        assert content(one.folder / name) == content(undisturbed[0] / name)
    assert "Nothing to be done" in snakemake(one.folder, "--", f"{SEARCH}/metrics.json", config=undisturbed[1])[1]

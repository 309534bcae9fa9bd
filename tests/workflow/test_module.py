"""The workflow as a Snakemake module of another workflow, from another folder, and in the catalog's layout."""

import shutil
import subprocess
import sys

import pytest
import yaml
from workflows import ROOT, change, jobs, snakemake

EXAMPLE = ROOT / "docs/examples/module"


@pytest.fixture
def example(tmp_path):
    """Return a copy of the example, away from the clone."""
    return shutil.copytree(EXAMPLE, tmp_path / "example")


def run(folder, *arguments):
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, "--config", f"seam={ROOT}/Snakefile"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_three_rules_use_the_workflow_as_a_module(example):
    planned = jobs(run(example, "--dry-run"))
    assert planned["seam_reengineer"] == planned["accuracy"] == 2 and planned["smallest"] == 1
    config = yaml.safe_load((example / "config.yaml").read_text())
    for path, value in (
        (["datasets", "digits", "classes"], ["0", "3"]),
        (["models", "resnet20-digits", "training", "epochs"], 8),
        (["search"], {"epochs": 4, "batch_size": 32, "lr_mask": 0.02, "alpha": 0.1}),
    ):
        config = change(config, path, value)
    (example / "config.yaml").write_text(yaml.safe_dump(config))
    made = jobs(run(example, "accuracy_3.txt"))
    assert made == {"seam_prepare_dataset": 1, "seam_train_source": 1, "seam_reengineer": 1, "accuracy": 1}
    assert 0 < float((example / "accuracy_3.txt").read_text()) <= 1


OUTER = f"""
module seam:
    snakefile: "{ROOT}/Snakefile"
    config: config["own"]
    # prefix: "seam"

use rule * from seam as seam_*

rule all:
    default_target: True
    input: "results/partial/mine.txt"

rule mine:
    output: "results/partial/mine.txt"
    shell: "touch {{output}}"
"""


@pytest.fixture
def outer(tmp_path):
    """Return the folder of a workflow of one's own, with a config that this one would refuse."""
    (tmp_path / "Snakefile").write_text(f'configfile: "config.yaml"\n{OUTER}')
    own = yaml.safe_load((ROOT / "config.yaml").read_text()) | {"engines": ["onnxruntime"]}
    (tmp_path / "config.yaml").write_text("samples: {a: 0012}\n" + yaml.safe_dump({"own": own}))
    return tmp_path


def test_files_and_config_of_the_other_workflow_are_left_alone(outer):
    run(outer)
    assert (outer / "results/partial/mine.txt").exists()


@pytest.mark.parametrize(
    ("change", "target", "sentence"),
    [
        (("# prefix", "prefix"), "all", "SeaM's workflow works as a module only without prefix"),
        (("", ""), "seam_estimate", "estimate is for SeaM's own Snakefile, not for a module: run it there."),
    ],
)
def test_what_a_module_cannot_do_is_told(outer, change, target, sentence):
    path = outer / "Snakefile"
    path.write_text(path.read_text().replace(*change, 1))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", target]
    result = subprocess.run(command, cwd=outer, capture_output=True, text=True, check=False)
    said = result.stdout + result.stderr
    assert result.returncode != 0 and sentence in said


def test_the_catalog_finds_the_workflow_in_its_layout(tmp_path):
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    shutil.copytree(ROOT / "envs", tmp_path / "envs", ignore=shutil.ignore_patterns(".built"))
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    config = {"engines": ["onnxruntime"]}
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--dry-run"]
    result = subprocess.run(
        [*command, "--config", "engines=[onnxruntime]"], cwd=tmp_path, capture_output=True, text=True
    )
    (tmp_path / "plain").mkdir()
    assert jobs(result.stdout + result.stderr) == jobs(snakemake(tmp_path / "plain", "--dry-run", config=config)[1])
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage["software-stack-deployment"] == {"conda": True, "report": True}
    assert (ROOT / "config/README.md").exists()

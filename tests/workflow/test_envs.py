"""The environments: the same packages for pip and for conda, and the same workflow with either.

A script that answers as conda does stands in for conda. It cannot show that conda can install the packages.
"""

import json
import os
import re
import sys

import pytest
import yaml
from workflows import ENGINES, ROOT, small_config, snakemake

ENVS = ROOT / "envs"

# An environment that it makes is a folder whose python is that of the tests; it keeps what it was made from.
CONDA = """#!/bin/sh
case "$*" in
    "info --json") echo '{{"conda_prefix": "{folder}", "platform": "linux-64"}}' ;;
    "--version") echo "conda 25.1.0" ;;
    "config --get channel_priority --json") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
    "env create"*)
        while [ $# -gt 0 ]; do
            case "$1" in --file) file=$2 ;; --prefix) prefix=$2 ;; esac
            shift
        done
        mkdir -p "$prefix/bin" && cp "$file" "$prefix/made-from.yaml" && ln -s {python} "$prefix/bin/python" ;;
    "clean"*) ;;
    *) echo "conda $*: not known" >&2; exit 1 ;;
esac
"""
ACTIVATE = 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n'


@pytest.fixture
def conda(tmp_path, monkeypatch):
    """A conda on the PATH."""
    folder = tmp_path / "conda"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/conda").write_text(CONDA.format(folder=folder, python=sys.executable))
    (folder / "bin/conda").chmod(0o755)
    (folder / "bin/activate").write_text(ACTIVATE)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    return folder


# ---------------------------------------------------------------------- what is in them


def pins(name):
    """{package: version} of a requirements or conda file; each of its packages must have one."""
    text = (ENVS / name).read_text().lower()
    if name.endswith(".yaml"):
        lines = next(part["pip"] for part in yaml.safe_load(text)["dependencies"] if isinstance(part, dict))
    else:
        lines = [line for line in text.splitlines() if line and not line.startswith(("#", "-"))]
    found = [re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines]
    assert all(found), lines
    return dict(match.groups() for match in found)


def test_conda_has_the_main_packages_of_pip():
    brought = ("nvidia-", "cuda-", "triton")  # by torch, which pins them itself, on Linux alone
    pip = {**pins("constraints.txt"), **pins("seam.txt")}
    conda = pins("seam.yaml")
    assert {name: version for name, version in pip.items() if not name.startswith(brought)} == conda
    assert pins("constraints.txt").keys().isdisjoint(pins("seam.txt")) and len(conda) > 50


def test_hashes_are_of_the_pinned_versions():
    text = (ENVS / "hashes.txt").read_text()
    found = re.findall(r"^([\w.-]+)==(\S+)( ; .+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M)
    assert len(found) == text.count("==") - text.count('== "linux"') and text.count("sha256:") > 1000
    hashed = {name.lower().replace("_", "-"): version for name, version, *_ in found}
    main, brought = ({name.replace("_", "-"): version for name, version in pins(file).items()}
                     for file in ("seam.txt", "constraints.txt"))  # fmt: skip
    others = {"pytokens", "shfmt-py"}
    development = {name for name in brought if name not in hashed}  # constraints.txt has what dev.txt brings, too
    assert hashed.pop("setuptools") and hashed.items() <= {**main, **brought}.items() and main.keys() <= hashed.keys()
    assert development == {"black", "click", "iniconfig", "mypy-extensions", "pathspec", "pluggy", *others}
    linux = {name.lower() for name, _, marker, _ in found if marker == ' ; sys_platform == "linux"'}
    assert linux == {name for name in hashed if name.startswith(("nvidia-", "cuda-", "triton"))}


def test_conda_has_the_packages_of_deepsparse():
    assert pins("deepsparse.txt") == pins("deepsparse.yaml")
    assert tuple(map(int, pins("deepsparse.yaml")["onnx"].split("."))) < (1, 15)


@pytest.mark.parametrize("name", ["seam", "deepsparse"])
def test_conda_brings_a_python_that_the_packages_have(name):
    content = yaml.safe_load((ENVS / f"{name}.yaml").read_text())
    python = next(part for part in content["dependencies"] if str(part).startswith("python"))
    assert python.replace(" ", "") == "python=3.11" and "pip" in content["dependencies"]
    assert content["channels"] == ["conda-forge", "nodefaults"]


def test_pre_commit_has_the_linters_of_make_lint():
    pins = dict(line.split("==") for line in (ENVS / "dev.txt").read_text().splitlines() if "==" in line)
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    versions = {repository["repo"].rpartition("/")[2]: repository["rev"] for repository in repositories}
    assert versions == {"ruff-pre-commit": f"v{pins['ruff']}", "snakefmt": f"v{pins['snakefmt']}"}


# ---------------------------------------------------------------------- the workflow with conda


def planned(folder, config, monkeypatch, *arguments):
    """{outputs: job}, of all jobs of a dry run."""
    path = folder / "plan.json"
    monkeypatch.setenv("SEAM_PLAN", str(path))
    snakemake(folder, "--dry-run", *arguments, config=config)
    monkeypatch.delenv("SEAM_PLAN")
    jobs = json.loads(path.read_text())
    return {tuple(job["output"]): job for job in jobs}


def test_the_jobs_are_the_same_with_conda_and_without(conda, tmp_path, monkeypatch):
    config = yaml.safe_load((ROOT / "profiles/demo/workflow.yaml").read_text()) | {"engines": ENGINES}
    without = planned(tmp_path, config, monkeypatch)
    with_conda = planned(tmp_path, config, monkeypatch, "--sdm", "conda")
    assert len(with_conda) > 20
    # Conda's environments are compared by Snakemake itself; without conda, the versions are parameters.
    for job in [*with_conda.values(), *without.values()]:
        for name in ("torch", "version", "versions"):
            job["params"].pop(name, None)
    # DeepSparse's own environment is made by pip where conda does not make all.
    own = ("envs/.built/deepsparse",)
    for job in without.values():
        if job["rule"] == "time_deepsparse":
            assert job["params"].pop("python") == "envs/.built/deepsparse/bin/python"
    for job in with_conda.values():
        if job["rule"] == "time_deepsparse":
            assert job["params"].pop("python") == "python"
    if "deepsparse" in ENGINES:
        assert without.pop(own)["rule"] == "make_env"
    assert with_conda == without


def test_each_job_runs_in_the_environment_that_conda_made_for_it(conda, colours, tmp_path):
    config = small_config(colours) | {"engines": ENGINES}
    made = "results/datasets/two/dataset.json"
    snakemake(tmp_path, "--sdm", "conda", "--nocolor", made, config=config)
    environments = [path.parent for path in (tmp_path / ".snakemake/conda").glob("*/made-from.yaml")]
    assert [(path / "made-from.yaml").read_text() for path in environments] == [(ENVS / "seam.yaml").read_text()]
    assert json.loads((tmp_path / made).read_text())["classes"] == ["green", "blue"]
    # Without an environment's python there is no job.
    (environments[0] / "bin/python").unlink()
    (environments[0] / "bin/python").symlink_to("/bin/false")
    other = "results/datasets/colours/dataset.json"
    assert snakemake(tmp_path, "--sdm", "conda", "--nocolor", other, config=config, check=False)[0] != 0
    assert not (tmp_path / other).exists()


@pytest.mark.skipif("deepsparse" not in ENGINES, reason="DeepSparse does not run on this machine")
def test_every_rule_that_computes_has_an_environment(conda, colours, tmp_path):
    config = small_config(colours) | {"engines": ENGINES}
    snakemake(tmp_path, "--conda-create-envs-only", "--sdm", "conda", config=config)
    made = sorted(path.read_text() for path in (tmp_path / ".snakemake/conda").glob("*/made-from.yaml"))
    assert made == sorted((ENVS / f"{name}.yaml").read_text() for name in ("seam", "deepsparse"))


def test_every_rule_names_its_environment():
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        rules = re.split(r"^ *rule ?(\w*):$", path.read_text(), flags=re.MULTILINE)[1:]
        for name, body in zip(rules[::2], rules[1::2], strict=True):
            body = re.split(r"^\S", body, maxsplit=1, flags=re.MULTILINE)[0]
            runs = re.search(r"^ +(script|shell):\n", body, re.MULTILINE)
            wanted = "deepsparse" if name in ("make_env", "time_deepsparse") else "seam"
            named = f'"../../envs/{wanted}.yaml"' in body or "engine_environment" in body
            assert named == bool(runs), (path.name, name)

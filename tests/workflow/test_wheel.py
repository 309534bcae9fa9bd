"""The package: the wheel works without the clone, and pyproject.toml names what it imports."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from colours import ARCHITECTURE
from packaging.requirements import Requirement
from workflows import ROOT

import seam
from seam.reuse.direct import reengineer

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_NAMES = {"pillow": "pil", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def run(*command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return the Python of a new virtual environment with the wheel, which takes torch and so on from this one."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "workflow/scripts/seam", folder / "clone/workflow/scripts/seam")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "clone" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, folder / "clone")
    shutil.rmtree(folder / "clone")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    (packages / "test_environment.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_the_wheel_loads_a_result_that_was_copied_elsewhere(python, model_folder, dataset_folder, tmp_path):
    settings = {"epochs": 2, "batch_size": 16, "lr_mask": 0.1}
    names = {"model": "small", "dataset": "colours", "problem": "binary", "target": "red", "members": ["red"]}
    reengineer(
        **names, folder=tmp_path / "direct/red", model_folder=model_folder, dataset_folder=dataset_folder,
        settings=settings, seed=0, device="cpu", checkpoint=tmp_path / "red.pt", architecture=ARCHITECTURE,
    )  # fmt: skip
    away = tmp_path / "away"
    shutil.copytree(tmp_path / "direct/red", away / "red")
    shutil.copytree(model_folder, away / "small")
    code = (
        f"import seam, sys, torch; model = seam.load('red', 'small', {ARCHITECTURE!r}); print(seam.__file__);"
        "print(model.classes, tuple(model(torch.zeros(2, 3, 16, 16)).shape))"
    )
    file, shown = run(python, "-c", code, cwd=away).splitlines()
    assert Path(file).is_relative_to(python.parents[1]) and shown == "['red', 'rest'] (2, 2)"
    shown = run(python.with_name("seam"), "show", "red", cwd=away)
    assert "binary red: red, rest" in shown


def test_the_wheel_brings_its_command_and_its_data_files(python, tmp_path):
    assert run(python.with_name("seam"), "--version", cwd=tmp_path) == f"seam {seam.__version__}\n"
    code = "import os, seam; print(*sorted(os.listdir(os.path.join(os.path.dirname(seam.__file__), 'resources'))))"
    resources = sorted(path.name for path in (ROOT / "workflow/scripts/seam/resources").iterdir())
    assert run(python, "-c", code, cwd=tmp_path).split() == resources
    code = "import os, seam; print(*sorted(os.listdir(os.path.join(os.path.dirname(seam.__file__), 'engine/kernels'))))"
    kernels = sorted(path.name for path in (ROOT / "workflow/scripts/seam/engine/kernels").glob("*.[ch]"))
    assert kernels and set(kernels) <= set(run(python, "-c", code, cwd=tmp_path).split())
    code = "from seam.data.kinds.registry import class_names; print(len(class_names({'kind': 'action40'})))"
    assert run(python, "-c", code, cwd=tmp_path) == "40\n"


def requirements():
    """Return all requirements of the package, those of its extras included, without the package itself."""
    lines = [*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"]]


def test_everything_that_the_package_imports_is_a_requirement():
    """DeepSparse has an environment of its own, and urllib3 comes with requests."""
    imported = set()
    for path in (ROOT / "workflow/scripts/seam").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    wanted = {name.lower() for name in imported - sys.stdlib_module_names - {"seam", "deepsparse", "urllib3"}}
    assert wanted <= {IMPORT_NAMES.get(requirement.name, requirement.name) for requirement in requirements()}


def test_the_pinned_versions_are_in_the_ranges():
    lines = (ROOT / "envs/seam.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if re.match(r"[\w.-]+==", line))
    for requirement in requirements():
        assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert pins.keys() == {requirement.name for requirement in requirements()}

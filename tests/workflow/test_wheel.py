"""The package: the wheel works without the clone, and pyproject.toml names what it imports."""

import ast
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from colours import ARCHITECTURE
from packaging.requirements import Requirement
from random_models import SparseModel
from workflows import ROOT

import seam
from seam.engine.compiler import INSTRUCTION_SETS, find_compiler
from seam.engine.errors import EngineError
from seam.reuse.direct import reengineer

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
IMPORT_NAMES = {"pillow": "pil", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def run(*command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def has_compiler():
    """Return whether this machine has a C compiler."""
    try:
        return bool(find_compiler())
    except EngineError:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="the kernels need a C compiler")


def build_wheel(folder, *arguments, **environment):
    """Build the wheel from a copy of the sources and return its path."""
    built_already = shutil.ignore_patterns("built", "__pycache__")
    shutil.copytree(ROOT / "workflow/scripts/seam", folder / "clone/workflow/scripts/seam", ignore=built_already)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "clone" / name)
    options = ["--no-deps", "--wheel-dir", folder, *arguments]
    run(*PIP, "wheel", *options, folder / "clone", env=os.environ | environment)
    shutil.rmtree(folder / "clone")
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel, folder):
    """Return the Python of a new virtual environment with the wheel, which takes torch and so on from this one."""
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel)
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    (packages / "test_environment.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, as `make wheel` builds it where ziglang is installed, and else by this machine's compiler."""
    folder = tmp_path_factory.mktemp("package")
    if importlib.util.find_spec("ziglang") is None:
        return build_wheel(folder)
    makefile = (ROOT / "Makefile").read_text()
    target = re.search(r"^GLIBC := (.+)$", makefile, re.M).group(1)
    machine = platform.machine()
    compiler = f"{sys.executable} -I -m ziglang cc -target {machine}-linux-gnu.{target} -s"
    name = f"manylinux_{target.replace('.', '_')}_{machine}"
    return build_wheel(folder, f"--config-settings=--build-option=--plat-name={name}", CC=compiler)


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of a virtual environment with the wheel."""
    return install(wheel, tmp_path_factory.mktemp("environment"))


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


def run_engine(python, tmp_path):
    """Run a random model where there is no compiler, and return what the engine says of itself and its agreement."""
    (tmp_path / "model.onnx").write_bytes(SparseModel(3, largest=17).draw(4))
    code = (
        "import numpy as np, onnxruntime, warnings, seam.engine; warnings.simplefilter('ignore');"
        "engine = seam.engine.load('model.onnx');"
        "images = np.random.default_rng(0).standard_normal((5, *engine.input_shape)).astype(np.float32);"
        "session = onnxruntime.InferenceSession('model.onnx'); expected = session.run(None, {'images': images})[0];"
        "print(engine.backend, np.allclose(engine(images), expected, rtol=1e-4, atol=1e-4), engine.reason)"
    )
    environment = os.environ | {"PATH": str(tmp_path), "CC": "", "SEAM_ENGINE_CACHE": str(tmp_path / "cache")}
    shown = run(python, "-c", code, cwd=tmp_path, env=environment)
    assert not (tmp_path / "cache").exists()
    return shown.strip()


@needs_compiler
def test_the_wheel_runs_the_engine_without_a_compiler(wheel, python, tmp_path):
    assert re.fullmatch(r"seam_reuse-[\d.]+-py3-none-(many)?linux_.*\.whl", wheel.name), wheel.name
    assert run_engine(python, tmp_path) == "seam True"


@needs_compiler
def test_the_kernels_of_the_wheel_need_nothing_but_an_old_libc(wheel):
    """A library names the versions of the symbols that it needs, such as GLIBC_2.2.5."""
    with zipfile.ZipFile(wheel) as archive:
        libraries = [archive.read(name) for name in archive.namelist() if name.endswith(".so")]
    assert len(libraries) == sum(not s.machines or platform.machine() in s.machines for s in INSTRUCTION_SETS)
    for library in libraries:
        needed = {tuple(map(int, v.split(b"."))) for v in re.findall(rb"\0GLIBC_([\d.]+)\0", library)}
        shared = set(re.findall(rb"\0(lib[\w+-]+\.so[.\d]*)\0", library))
        assert shared <= {b"libc.so.6", b"libpthread.so.0", b"libm.so.6"}
        if "manylinux" in wheel.name:
            assert needed and max(needed) <= tuple(map(int, wheel.name.split("_")[2:4]))


def test_a_wheel_without_a_compiler(tmp_path):
    wheel = build_wheel(tmp_path, PATH=str(tmp_path), CC="")
    assert wheel.name.endswith("-py3-none-any.whl")
    shown = run_engine(install(wheel, tmp_path), tmp_path)
    assert shown == "onnxruntime True There is no C compiler: install gcc or clang, or set CC to one."


@needs_compiler
def test_libraries_of_other_sources_are_not_loaded(python, tmp_path):
    """The name of a library has the digest of the sources: after a change of the sources none has that name."""
    kernels = Path(run(python, "-c", "from seam.engine.compiler import KERNELS; print(KERNELS)", cwd=tmp_path).strip())
    source = kernels / "runtime.c"
    before = source.read_text()
    source.write_text(before + "/* another version */\n")
    try:
        assert run_engine(python, tmp_path).startswith("onnxruntime True There is no C compiler")
    finally:
        source.write_text(before)


def requirements():
    """Return all requirements of the package, those of its extras included, without the package itself."""
    lines = [*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"]]


def test_everything_that_the_package_imports_is_a_requirement():
    """DeepSparse and OpenVINO have environments of their own, and urllib3 comes with requests."""
    imported = set()
    for path in (ROOT / "workflow/scripts/seam").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    elsewhere = {"seam", "deepsparse", "openvino", "urllib3"}
    wanted = {name.lower() for name in imported - sys.stdlib_module_names - elsewhere}
    assert wanted <= {IMPORT_NAMES.get(requirement.name, requirement.name) for requirement in requirements()}


def test_the_pinned_versions_are_in_the_ranges():
    lines = (ROOT / "envs/seam.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if re.match(r"[\w.-]+==", line))
    for requirement in requirements():
        assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert pins.keys() == {requirement.name for requirement in requirements()}

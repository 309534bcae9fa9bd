"""The package `seam` as a user sees it."""

import subprocess
import sys
from pathlib import Path

import pytest

import seam
from seam.data.batches import load_image
from seam.reuse.load import load_reengineered, load_student

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"


def test_importing_the_package_loads_neither_torch_nor_numpy():
    code = "import sys, seam; print(*sys.modules.keys() & {'torch', 'numpy'})"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=SCRIPTS, text=True) == "\n"


def test_the_engine_needs_no_torch():
    code = "import sys, seam.engine; seam.engine.load; print(*sys.modules.keys() & {'torch', 'onnxruntime'})"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=SCRIPTS, text=True) == "\n"


def test_public_names_are_loaded_at_their_first_use():
    assert seam.load is load_reengineered
    assert seam.load_student is load_student
    assert seam.image is load_image
    assert set(seam.__all__) == {"load", "load_student", "image"} <= set(dir(seam))
    with pytest.raises(AttributeError, match="module 'seam' has no attribute 'nothing'"):
        seam.nothing  # noqa: B018


def test_the_version_is_a_literal():
    assert isinstance(seam.__version__, str)
    assert f'__version__ = "{seam.__version__}"\n' in Path(seam.__file__).read_text()

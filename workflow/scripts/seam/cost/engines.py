"""Which engines this machine can run, and with which Python. The workflow asks before any job starts."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import subprocess
import sys

from seam.cost.processor import describe_cpu

# DeepSparse 1.8.0 imports distutils, which 3.12 lacks; the packages that it is pinned with dropped 3.8.
DEEPSPARSE_PYTHONS = ((3, 11), (3, 10), (3, 9))


def why_no_engine(engine: str, conda: bool = False) -> str | None:
    """Return one sentence that says why the engine cannot run here and what to do instead; None if it can.

    conda: whether conda provides the Python that the engine needs.
    """
    if engine != "deepsparse":
        return None
    machine = f"{platform.system()} on {platform.machine()}"
    if machine != "Linux on x86_64":
        reason = f"it needs Linux on x86_64, and this is {machine}"
    elif "avx2" not in describe_cpu()[1]:
        reason = "it needs a processor with AVX2 instructions, and this one has none"
    elif not conda and find_python(engine) is None:
        reason = (
            "it needs Python 3.9, 3.10 or 3.11 with the module venv, and no python3.9, python3.10 or python3.11 "
            "on the PATH is one"
        )
    else:
        return None
    return f"DeepSparse cannot run here: {reason}; to continue without it, set engines: [onnxruntime] in the config."


@functools.cache
def find_python(engine: str) -> str | None:
    """Return the path of a Python that can make the engine's environment, or None if there is none.

    It is this process's Python if its version fits. Otherwise each candidate on the PATH is run once, because a pyenv
    shim may not work.
    """
    # The real path is the same whatever name or virtual environment this Python was started by.
    own = os.path.realpath(sys.executable)
    if engine != "deepsparse":
        return own
    if sys.version_info[:2] in DEEPSPARSE_PYTHONS and importlib.util.find_spec("ensurepip"):
        return own
    for version in DEEPSPARSE_PYTHONS:
        check = f"import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != {version})"
        for folder in os.get_exec_path():
            python = os.path.join(folder, "python{}.{}".format(*version))
            if not os.access(python, os.X_OK):
                continue
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                if subprocess.run([python, "-I", "-c", check], capture_output=True, timeout=10).returncode == 0:
                    return python
    return None

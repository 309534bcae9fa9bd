"""The inference engines: what they are, which of them this machine can run, and with which Python.

The workflow asks before any job starts.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import subprocess
import sys
from dataclasses import dataclass

from seam.cost.processor import describe_cpu

# DeepSparse 1.8.0 imports distutils, which 3.12 lacks; the packages that it is pinned with dropped 3.8.
DEEPSPARSE_PYTHONS = ((3, 11), (3, 10), (3, 9))


@dataclass(frozen=True)
class Engine:
    """What is known of an engine whatever the machine.

    runner: its module in `seam.cost.runners`. package: what its version is the version of. gains_from_zeros: whether it
    skips the zeros of convolutions. int8: whether it runs the quantized model, model-int8.onnx, and not model.onnx.
    """

    runner: str
    package: str
    gains_from_zeros: bool
    int8: bool = False

    @property
    def model(self) -> str:
        """The name of the file that it runs."""
        return "model-int8.onnx" if self.int8 else "model.onnx"


# Whether an engine gains from zeros is known from what it does with them: seam.engine and DeepSparse leave out their
# multiply-adds. ONNX Runtime multiplies by them. OpenVINO can skip zeros only in int8 matrix products, with a setting
# that is off by default, and never in convolutions.
ENGINES = {
    "seam": Engine("seam_engine", "seam-reuse", gains_from_zeros=True),
    "onnxruntime": Engine("onnx_runtime", "onnxruntime", gains_from_zeros=False),
    "onnxruntime-int8": Engine("onnx_runtime", "onnxruntime", gains_from_zeros=False, int8=True),
    "openvino": Engine("open_vino", "openvino", gains_from_zeros=False),
    "openvino-int8": Engine("open_vino", "openvino", gains_from_zeros=False, int8=True),
    "deepsparse": Engine("deep_sparse", "deepsparse", gains_from_zeros=True),
}
AUTO = ("deepsparse", "seam", "onnxruntime")  # the engines of `engines: auto`, without deepsparse where it cannot run
WITHOUT_DEEPSPARSE = "to continue without it, set engines: [seam, onnxruntime] in the config."


def choose_engines(wanted: str | list[str], conda: bool = False) -> tuple[list[str], list[str]]:
    """Return (the engines that a config asks for, sentences on those that cannot run here).

    wanted: a list of engines, or "auto", which leaves out those that cannot run.
    """
    engines = list(AUTO if wanted == "auto" else wanted)
    reasons = {engine: reason for engine in engines if (reason := why_no_engine(engine, conda))}
    if wanted == "auto":
        engines = [engine for engine in engines if engine not in reasons]
    return engines, list(dict.fromkeys(reasons.values()))


def why_no_engine(engine: str, conda: bool = False) -> str | None:
    """Return one sentence that says why the engine cannot run here and what to do instead; None if it can.

    conda: whether conda provides the Python that the engine needs.
    """
    if engine.startswith("openvino"):
        if conda or importlib.util.find_spec("openvino"):
            return None
        return (
            "OpenVINO cannot run here: the package openvino is not installed beside Snakemake; install it with make "
            ".venv/openvino (or pip install -r envs/openvino.txt), or take it out of engines in the config."
        )
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
    return f"DeepSparse cannot run here: {reason}; {WITHOUT_DEEPSPARSE}"


@functools.cache
def find_python(engine: str) -> str | None:
    """Return the path of a Python that can make the engine's environment, or None if there is none.

    It is this process's Python if its version fits. Otherwise each candidate on the PATH is run once, because a pyenv
    shim may not work.
    """
    # The real path is the same whatever name or virtual environment this Python was started by.
    current = os.path.realpath(sys.executable)
    if engine != "deepsparse":
        return current
    if sys.version_info[:2] in DEEPSPARSE_PYTHONS and importlib.util.find_spec("ensurepip"):
        return current
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

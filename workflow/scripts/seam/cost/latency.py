"""Latency of a source model and of the model made of it, in DeepSparse or ONNX Runtime.

This module also runs inside DeepSparse's own environment: besides the standard library it needs numpy and
the engine alone, and it keeps to Python 3.9.
"""

import contextlib
import functools
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seam.errors import UserError
from seam.log import log

# DeepSparse 1.8.0 imports distutils, gone in 3.12; the packages that it is pinned with have no 3.8 any more.
DEEPSPARSE_PYTHONS = ((3, 11), (3, 10), (3, 9))
CPUINFO = Path("/proc/cpuinfo")


def time_models(engine, models, threads, batch_size=16, warmup=20, iterations=100, runs=2):
    """Time ONNX models against each other in one process: a dictionary, as latency_{engine}.json holds it.

    engine: deepsparse or onnxruntime. models: {"source": path, "reengineered": path}. threads: at most as
    many as there are physical cores. Each run takes the models in turn, so that whatever else goes on in
    the machine meets them alike, and gives `warmup` passes before the `iterations` that count, all on one
    batch of normally distributed numbers. Times are milliseconds a batch: `{model}_ms` holds each run's mean,
    `{model}_ms_medians` and `{model}_ms_minima` are lists likewise; `{model}_ms_mean` is the mean of the runs.

    Raises UserError where the engine is missing or cannot run a model.
    """
    cores = physical_cores()
    if threads > cores:
        log.info("%d threads are asked for, and this machine has %d physical cores: using these", threads, cores)
    threads = min(threads, cores)

    with _quiet():
        about, load = ENGINES[engine](threads, batch_size)
        passes = {}
        for name, path in models.items():
            try:
                passes[name] = load(Path(path))
            except Exception as error:
                raise UserError(
                    f"{engine} cannot run {path} ({_first_line(error)}): delete it, and the workflow exports it again."
                ) from error
        times = _alternate(passes, warmup, iterations, runs)

    settings = {"batch_size": batch_size, "warmup": warmup, "iterations": iterations, "runs": runs}
    return {"engine": engine, **about, "threads": threads, "cpu": cpu()[0], **settings, **_summary(times)}


def _alternate(passes, warmup, iterations, runs):
    """{name: [runs][iterations] seconds} of calling each of `passes` in turn."""
    times = {name: [] for name in passes}
    for _ in range(runs):
        for name, run in passes.items():
            for _ in range(warmup):
                run()
            times[name].append([])
            for _ in range(iterations):
                start = time.perf_counter()
                run()
                times[name][-1].append(time.perf_counter() - start)
    return times


def _summary(times):
    import numpy as np

    summary = {}
    for name, seconds in times.items():
        milliseconds = 1000 * np.array(seconds)
        summary[f"{name}_ms"] = milliseconds.mean(1).tolist()
        summary[f"{name}_ms_medians"] = np.median(milliseconds, 1).tolist()
        summary[f"{name}_ms_minima"] = milliseconds.min(1).tolist()
        if milliseconds.mean() > 1.5 * milliseconds.min():
            log.warning("The passes of %s vary much: other work on this machine makes its times too long", name)
    for name in times:
        summary[f"{name}_ms_mean"] = float(np.mean(summary[f"{name}_ms"]))
    return summary


def _deepsparse(threads, batch_size):
    # Without this it asks two servers where this machine is, then reports each use to its maker.
    os.environ["NM_DISABLE_ANALYTICS"] = "True"
    try:
        import deepsparse
        from deepsparse.cpu import cpu_architecture
    except ImportError as error:
        raise UserError(
            f"DeepSparse cannot be imported ({_first_line(error)}): delete envs/.built/deepsparse and run again."
        ) from error

    def load(path):
        model = deepsparse.Engine(str(path), batch_size=batch_size, num_cores=threads)
        if model.fraction_of_supported_ops < 1:
            share = 100 * model.fraction_of_supported_ops
            log.warning("DeepSparse optimises only %.0f %% of the operations of %s", share, path)
        # Checking the input takes time that is no part of the model's.
        return functools.partial(model.run, [_images(model.input_shapes[0][1:], batch_size)], val_inp=False)

    return {"version": deepsparse.__version__, "instruction_set": cpu_architecture().isa}, load


def _onnxruntime(threads, batch_size):
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX Runtime cannot be imported ({_first_line(error)}): install envs/seam.txt.") from error

    def load(path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_free_dimension_override_by_name("batch", batch_size)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (images,) = session.get_inputs()
        return functools.partial(session.run, None, {images.name: _images(images.shape[1:], batch_size)})

    return {"version": onnxruntime.__version__, "instruction_set": instruction_set(cpu()[1])}, load


ENGINES = {"deepsparse": _deepsparse, "onnxruntime": _onnxruntime}


def _images(shape, batch_size):
    import numpy as np

    return np.random.default_rng(0).standard_normal((batch_size, *shape), np.float32)


@contextlib.contextmanager
def _quiet():
    """What the engines write past Python's own output (banners, warnings of native code) goes to the log."""
    with tempfile.TemporaryFile() as said:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        kept = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in kept:
                os.dup2(said.fileno(), number)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, terminal in kept.items():
                os.dup2(terminal, number)
                os.close(terminal)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines():
                log.info("%s", line)


def _first_line(error):
    return next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(" .")


def cpu():
    """(model name, set of the instruction sets it knows, as Linux calls them)."""
    about = {}
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            about.setdefault(key.strip(), value.strip())
    name = about.get("model name") or platform.processor() or platform.machine()
    return name, set(about.get("flags", about.get("Features", "")).split())


def instruction_set(flags):
    """The widest vector instructions among `flags`, in DeepSparse's words."""
    known = {"avx512f": "avx512", "avx2": "avx2", "avx": "avx", "sse4_1": "sse4", "asimd": "neon"}
    return next((name for flag, name in known.items() if flag in flags), platform.machine())


def physical_cores():
    """Physical cores that this process may use: a second thread on a core slows these engines down."""
    try:
        siblings = {
            Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text()
            for number in os.sched_getaffinity(0)
        }
    except (OSError, AttributeError):  # not Linux, or a container that hides it
        return os.cpu_count() or 1
    return len(siblings)


def unavailable(engine, conda=False):
    """Why the engine cannot be had on this machine and how to go on without it, in one sentence; else None.

    conda: whether conda brings the Python that the engine needs.
    """
    if engine != "deepsparse":
        return None
    machine = f"{platform.system()} on {platform.machine()}"
    if machine != "Linux on x86_64":
        reason = f"it needs Linux on x86_64, and this is {machine}"
    elif "avx2" not in cpu()[1]:
        reason = "it needs a processor with AVX2 instructions, and this one has none"
    elif not conda and interpreter(engine) is None:
        reason = (
            "it needs Python 3.9, 3.10 or 3.11 with the module venv, and no python3.9, python3.10 or python3.11 "
            "on the PATH is one"
        )
    else:
        return None
    return f"DeepSparse cannot be had here: {reason}; to go on without it, set engines: [onnxruntime] in the config."


@functools.cache
def interpreter(engine):
    """The Python, found on the PATH, that can make the engine's environment, or None.

    It is the one that runs this if that fits. Others are run once to see whether they work: a pyenv shim
    may not.
    """
    # The same whatever name or virtual environment this Python was started by.
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

"""Latency of a source model and of the re-engineered model, in DeepSparse or ONNX Runtime.

This module also runs in DeepSparse's own environment. So it keeps to Python 3.9, and needs only the standard library,
numpy and the engine.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.cost.processor import describe_cpu, physical_cores, widest_instructions
from seam.errors import UserError
from seam.log import log

if TYPE_CHECKING:
    import numpy as np

# An engine is a function of (threads, batch_size). It returns its description and a function that loads a model from
# a path; the loaded model is a function that computes one pass.
Pass = Callable[[], Any]
Engine = Callable[[int, int], "tuple[dict[str, Any], Callable[[Path], Pass]]"]


def time_models(
    engine: str,
    models: Mapping[str, str | os.PathLike[str]],
    threads: int,
    batch_size: int = 16,
    warmup: int = 20,
    iterations: int = 100,
    runs: int = 2,
) -> dict[str, Any]:
    """Time ONNX models against each other in one process. Returns the content of latency_{engine}.json.

    engine: deepsparse or onnxruntime; models: {"source": path, "reengineered": path}; threads: limited to the number
    of physical cores.

    Each run takes the models in turn, so that other work on the machine affects them alike. It makes `warmup` passes
    before the `iterations` that count, all on one batch of normally distributed numbers. Times are in milliseconds per
    batch: `{model}_ms`, `{model}_ms_medians` and `{model}_ms_minima` have a value for each run, and `{model}_ms_mean`
    is the mean of the runs.

    Raises UserError if the engine is missing or cannot run a model.
    """
    cores = physical_cores()
    if threads > cores:
        log.info("%d threads are asked for, and this machine has %d physical cores: using these", threads, cores)
    threads = min(threads, cores)

    with _output_to_log():
        description, load = ENGINES[engine](threads, batch_size)
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
    cpu = describe_cpu()[0]
    return {"engine": engine, **description, "threads": threads, "cpu": cpu, **settings, **_summarise(times)}


def _alternate(passes: Mapping[str, Pass], warmup: int, iterations: int, runs: int) -> dict[str, list[list[float]]]:
    """Return {name: [runs][iterations] seconds} of calling each of `passes` in turn."""
    times: dict[str, list[list[float]]] = {name: [] for name in passes}
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


def _summarise(times: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    """Return the statistics of {name: [runs][iterations] seconds} in milliseconds."""
    import numpy as np

    summary: dict[str, Any] = {}
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


def _deepsparse(threads: int, batch_size: int) -> tuple[dict[str, Any], Callable[[Path], Pass]]:
    # Without this, DeepSparse asks two servers where this machine is, and reports each use to its maker.
    os.environ["NM_DISABLE_ANALYTICS"] = "True"
    try:
        import deepsparse  # pyright: ignore[reportMissingImports]
        from deepsparse.cpu import cpu_architecture  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"DeepSparse cannot be imported ({_first_line(error)}): delete envs/.built/deepsparse and run again."
        ) from error

    def load(path: Path) -> Pass:
        model = deepsparse.Engine(str(path), batch_size=batch_size, num_cores=threads)
        if model.fraction_of_supported_ops < 1:
            percent = 100 * model.fraction_of_supported_ops
            log.warning("DeepSparse optimises only %.0f %% of the operations of %s", percent, path)
        # val_inp=False: checking the input takes time that is not the model's.
        return functools.partial(model.run, [_random_images(model.input_shapes[0][1:], batch_size)], val_inp=False)

    return {"version": deepsparse.__version__, "instruction_set": cpu_architecture().isa}, load


def _onnxruntime(threads: int, batch_size: int) -> tuple[dict[str, Any], Callable[[Path], Pass]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX Runtime cannot be imported ({_first_line(error)}): install envs/seam.txt.") from error

    def load(path: Path) -> Pass:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_free_dimension_override_by_name("batch", batch_size)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (images,) = session.get_inputs()
        return functools.partial(session.run, None, {images.name: _random_images(images.shape[1:], batch_size)})

    instructions = widest_instructions(describe_cpu()[1])
    return {"version": onnxruntime.__version__, "instruction_set": instructions}, load


ENGINES: dict[str, Engine] = {"deepsparse": _deepsparse, "onnxruntime": _onnxruntime}


def _random_images(shape: Sequence[int], batch_size: int) -> np.ndarray:
    import numpy as np

    return np.random.default_rng(0).standard_normal((batch_size, *shape), np.float32)


@contextlib.contextmanager
def _output_to_log() -> Iterator[None]:
    """Send to the log what native code of the engines writes to the terminal: banners and warnings.

    It goes into the log file directly, if there is one, so that it is there if the engine crashes.
    """
    logs = [handler.stream for handler in logging.getLogger().handlers if type(handler) is logging.FileHandler]
    with tempfile.TemporaryFile() as memory:
        output = next((stream for stream in logs if stream is not None), memory)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        terminals = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in terminals:
                os.dup2(output.fileno(), number)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for number, terminal in terminals.items():
                os.dup2(terminal, number)
                os.close(terminal)
            memory.seek(0)
            for line in memory.read().decode(errors="replace").splitlines():
                log.info("%s", line)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(" .")

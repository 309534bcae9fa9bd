"""Latency of a source model and of the re-engineered model in an inference engine.

This module also runs in DeepSparse's own environment. So it keeps to Python 3.9, and needs only the standard library,
numpy, ONNX Runtime and the engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.cost.processor import describe_cpu, physical_cores
from seam.cost.runners import onnx_runtime
from seam.errors import UserError, first_line
from seam.files import sha256
from seam.log import log

if TYPE_CHECKING:
    import numpy as np

Run = Callable[["np.ndarray"], "np.ndarray"]  # float32 images [batch size, 3, H, W] to outputs
Load = Callable[[Path], "tuple[Run, str]"]
OpenEngine = Callable[[int, int], "tuple[dict[str, Any], Load]"]  # as seam.cost.runners describes it

AGREEMENT = 1e-4  # of the largest output: the most by which an engine may differ from ONNX Runtime in float32
DISTURBED = 1.5  # the log warns if the mean of the passes is more than so many times their minimum


def time_models(
    engine: str,
    open_engine: OpenEngine,
    models: Mapping[str, str | os.PathLike[str]],
    cores: int,
    batch_size: Sequence[int] = (16,),
    threads: Sequence[int | str] = ("all",),
    warmup: int = 20,
    iterations: int = 100,
    runs: int = 2,
    statistic: str = "mean",
    gains_from_zeros: bool = False,
    exact: bool = True,
) -> dict[str, Any]:
    """Time ONNX models against each other in one process. Returns the content of latency_{engine}.json.

    engine: its name; open_engine: its function of `seam.cost.runners`. models: {"source": path, "reengineered": path}.
    cores: what "all" in `threads` means. Each batch size is measured with each number of threads, in this order; both
    are limited to what the machine has. gains_from_zeros: whether the engine skips zeros. exact: whether it computes in
    float32, so that its outputs must be those of ONNX Runtime.

    Each run takes the models in turn, so that other work on the machine affects them alike. It makes `warmup` passes
    before the `iterations` that count, all on one batch of normally distributed numbers. statistic: "mean", as
    published, or "median"; the tables take this one. Times are in milliseconds per batch.

    Raises UserError if the engine is missing, cannot run a model, or computes something else than ONNX Runtime.
    """
    description: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    measurements = []
    with _output_to_log():
        for size in batch_size:
            images, expected = _reference(models, size, exact)
            for count in _thread_counts(threads, cores):
                description, load = open_engine(count, size)
                passes: dict[str, Callable[[], Any]] = {}
                differences = {}
                for name, path in models.items():
                    try:
                        run, reasons[name] = load(Path(path))
                        outputs = run(images[name])
                    except UserError:
                        raise
                    except Exception as error:  # engines' errors have no common class
                        raise UserError(
                            f"{engine} cannot run {path} ({first_line(error)}): delete it, and the workflow exports "
                            "it again."
                        ) from error
                    if exact:
                        differences[name] = _check(engine, path, outputs, expected[name])
                    passes[name] = _bound(run, images[name])
                times = _alternate(passes, warmup, iterations, runs)
                measured = {name: _summarise(name, seconds) for name, seconds in times.items()}
                for name, difference in differences.items():
                    measured[name]["difference"] = difference
                measurements.append({"batch_size": size, "threads": count, **measured})
    settings = {"warmup": warmup, "iterations": iterations, "runs": runs, "statistic": statistic}
    return {
        "engine": engine,
        **description,
        "gains_from_zeros": gains_from_zeros and not any(reasons.values()),
        "fallback": {name: reason for name, reason in reasons.items() if reason},
        "cpu": describe_cpu()[0],
        **settings,
        "bytes": {name: os.path.getsize(path) for name, path in models.items()},
        "model_digests": {name: sha256(path) for name, path in models.items()},
        "measurements": measurements,
    }


def _bound(run: Run, images: np.ndarray) -> Callable[[], Any]:
    return lambda: run(images)


def _thread_counts(threads: Sequence[int | str], cores: int) -> list[int]:
    """Return the numbers of threads to measure, each once; none is above the number of physical cores."""
    most = physical_cores()
    counts = [cores if count == "all" else int(count) for count in threads]
    if max(counts) > most:
        log.info("%d threads are asked for, and this machine has %d physical cores: using these", max(counts), most)
    return list(dict.fromkeys(min(count, most) for count in counts))


def _reference(
    models: Mapping[str, str | os.PathLike[str]], batch_size: int, exact: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return ({name: random images}, {name: ONNX Runtime's outputs for them}), with empty outputs unless `exact`."""
    images, outputs = {}, {}
    for name, path in models.items():
        try:
            images[name] = _random_images(onnx_runtime.image_shape(Path(path)), batch_size)
            if exact:
                outputs[name] = onnx_runtime.open_engine(1, batch_size)[1](Path(path))[0](images[name])
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"onnxruntime cannot run {path} ({first_line(error)}): delete it, and the workflow exports it again."
            ) from error
    return images, outputs


def _check(engine: str, path: str | os.PathLike[str], outputs: np.ndarray, expected: np.ndarray) -> float:
    """Return by how much the outputs differ, as a share of the largest; raise UserError if that is too much."""
    import numpy as np

    largest = max(float(np.abs(expected).max()), 1e-12)
    difference = float(np.abs(np.asarray(outputs) - expected).max()) / largest
    log.info("%s: %s differs from ONNX Runtime by %.1e of the largest output", path, engine, difference)
    if not difference <= AGREEMENT:  # also for NaN
        raise UserError(
            f"{engine} does not compute what ONNX Runtime does from {path} (its outputs differ by {difference:.1e} of "
            f"the largest, and {AGREEMENT:.0e} is allowed): its times say nothing. Take {engine} out of engines in the "
            "config."
        )
    return difference


def _alternate(
    passes: Mapping[str, Callable[[], Any]], warmup: int, iterations: int, runs: int
) -> dict[str, list[list[float]]]:
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


def _summarise(name: str, seconds: list[list[float]]) -> dict[str, Any]:
    """Return the statistics of [runs][iterations] seconds in milliseconds, over all passes and over each run's."""
    import numpy as np

    milliseconds = 1000 * np.array(seconds)
    quartiles = np.percentile(milliseconds, (25, 50, 75)).tolist()
    statistics = {
        "mean_ms": float(milliseconds.mean()),
        "median_ms": quartiles[1],
        "quartiles_ms": [quartiles[0], quartiles[2]],
        "minimum_ms": float(milliseconds.min()),
        "run_means_ms": milliseconds.mean(1).tolist(),
    }
    if is_disturbed(statistics):
        log.warning("The passes of %s vary much: other work on this machine makes its times too long", name)
    return statistics


def is_disturbed(statistics: Mapping[str, Any]) -> bool:
    """Return whether other work on the machine made measured times too long."""
    return statistics["mean_ms"] > DISTURBED * statistics["minimum_ms"]


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

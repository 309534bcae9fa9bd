"""Measure the seconds that steps take on this machine, on random images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

import torch

from seam.bench.network import Bench
from seam.data.decoding import LARGE
from seam.errors import UserError, one_line
from seam.log import log
from seam.memory import use_threads
from seam.planning.work import Step
from seam.training.graphs import WARM_UP_STEPS

ENOUGH = 2.0  # seconds for which a step is repeated
FEW = 8  # images of a batch on a CPU, where images are large


def measure(steps: Iterable[Step], device: torch.device) -> dict[Step, float]:
    """Return the seconds an image of each step: of processor time on a CPU, of the clock elsewhere.

    Processor time hardly depends on what else runs on the machine, which can more than double the time of the clock.
    Threads, allocator, memory format and folded batch norm are those of a job.
    """
    use_threads(1)
    times = {}
    for step in steps:
        times[step] = seconds(step, device)
        log.info("%s: %.3g s an image", step, times[step])
    return times


def seconds(step: Step, device: torch.device) -> float:
    """Return the seconds an image of one step. Raises UserError if the model cannot be built or run."""
    batch = min(step.batch_size, FEW) if device.type == "cpu" and step.size >= LARGE else step.batch_size
    try:
        bench = Bench(step.architecture, device, batch=batch, size=step.size)
        times: list[float] = []
        while len(times) < 2 + WARM_UP_STEPS or sum(times) < ENOUGH:
            begin = _now(device)
            if step.kind == "train":
                bench.step()
            else:
                with torch.inference_mode():
                    bench.model(bench.images)
            times.append(_now(device) - begin)
    except UserError:
        raise
    except Exception as error:  # a user's own architecture can raise anything
        raise UserError(
            f"{step.architecture} does not run on {step.size} px images in batches of {batch} ({one_line(error)}): "
            "correct it, its data set's size or the batch size."
        ) from error
    return statistics.median(times[WARM_UP_STEPS:]) / batch


def _now(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    getattr(torch, device.type).synchronize()
    return time.perf_counter()

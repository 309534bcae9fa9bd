"""Time functions in turn, and turn their times into rows of a result."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from seam.training.graphs import WARM_UP_STEPS

LIMIT = 60.0  # seconds of a comparison, after each function was timed three times
Row = dict[str, Any]
Times = dict[str, list[float]]  # seconds of each call, by the function's name


@dataclass(frozen=True)
class Options:
    """What is measured, and how often.

    device: where. requested_device: the same as the command line names it, for the processes of jobs. architectures:
    of the networks that are searched. repeats: pairs of each comparison.
    """

    device: torch.device
    requested_device: str
    architectures: list[str]
    repeats: int

    @property
    def job_repeats(self) -> int:
        """How often a comparison that starts jobs is repeated."""
        return max(1, self.repeats // 3)


def in_turn(functions: dict[str, Callable[[], Any]], device: torch.device, repeats: int, limit: float = LIMIT) -> Times:
    """Return {name: seconds of each call} of {name: function}, called in turn after one round that does not count.

    On a GPU each time is the mean of as many calls as take 20 ms, after the calls in which a step becomes a graph.
    """
    calls = dict.fromkeys(functions, 1)
    for name, function in functions.items():
        seconds(function, device, WARM_UP_STEPS + 1 if device.type == "cuda" else 1)
        if device.type == "cuda":
            calls[name] = max(1, round(0.02 / seconds(function, device, 3)))
    times: Times = {name: [] for name in functions}
    start = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - start > limit:
            break
        for name, function in functions.items():
            times[name].append(seconds(function, device, calls[name]))
    return times


def seconds(function: Callable[[], Any], device: torch.device, calls: int = 1) -> float:
    """Return the mean seconds of a call; on a CUDA GPU the GPU's own, by its events."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "mps":
        torch.mps.synchronize()
    return (time.perf_counter() - begin) / calls


def row(item: str, quantity: str, subject: str, values: list[float], goal: float | None = None, **more: Any) -> Row:
    """Return a row of the result: the median of `values` and their quartiles.

    quantity: what is measured; subject: the network it belongs to. A goal is reached if the median is at most as large.
    """
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    measured = {"value": middle, "low": low, "high": high, "goal": goal}
    return {"item": item, "what": quantity, "of": subject, **measured, **more}


def ratios(times: Times, name: str, other: str, factor: float = 1.0) -> list[float]:
    """Return the ratio of each pair of times, multiplied by `factor`."""
    return [factor * a / b for a, b in zip(times[name], times[other], strict=True)]


def medians(times: Times) -> dict[str, Any]:
    """Return the median seconds of each function, as a row has them."""
    return {"seconds": {name: statistics.median(values) for name, values in times.items()}}


def thread_counts(device: torch.device) -> list[int]:
    """Return the numbers of torch's threads to measure: 1, as jobs have it, and on a CPU 2 if there are two cores."""
    return [1] if device.type != "cpu" else sorted({1, min(2, os.cpu_count() or 1)})


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch compute with `number` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def subject_name(architecture: str, number: int, device: torch.device) -> str:
    """Return how a row names a network, with the number of threads on a CPU."""
    return f"{architecture}, {number} thread{'s'[: number != 1]}" if device.type == "cpu" else architecture

"""Items `step` and `stack`: a step of one search, and a step of several searches in a stack."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from seam.bench.network import BATCH, SIZE, Bench
from seam.bench.timing import Options, Row, in_turn, medians, ratios, row, subject_name, thread_counts, threads
from seam.models.surgery import set_training_mode
from seam.search.stack import Stack, stack_batches
from seam.settings import SearchSettings

STEP_GOALS = {"resnet20": 1.08, "vgg16_bn": 1.12}


def step(options: Options) -> Iterator[Row]:
    """Compare a step of the search with the bare pass."""
    for architecture in options.architectures:
        for number in thread_counts(options.device):
            with threads(number):
                yield from step_rows(architecture, options.device, options.repeats, number)


def step_rows(
    architecture: str, device: torch.device, repeats: int, number: int = 1, batch: int = BATCH, size: int = SIZE
) -> Iterator[Row]:
    """Yield rows that compare a step on `batch` images of `size` px with the bare pass, by `number` threads."""
    bench = Bench(architecture, device, batch=batch, size=size)
    folded = Bench(architecture, device, folded=True, batch=batch, size=size)
    functions = {"step": bench.step, "bare": bench.bare, "bare, folded": folded.bare}
    if device.type == "cuda":
        functions |= {"step, no graph": bench.step_eager, "bare, no graph": bench.bare_eager}
    times = in_turn(functions, device, repeats)
    subject, goal = subject_name(architecture, number, device), STEP_GOALS.get(architecture)
    yield row("step", "a step / the bare pass", subject, ratios(times, "step", "bare"), goal, **medians(times))
    quantity = "a step / the bare pass with batch norm folded, as in the step"
    yield row("step", quantity, subject, ratios(times, "step", "bare, folded"), goal, **medians(times))
    if device.type == "cuda":
        eager = ratios(times, "step, no graph", "bare, no graph")
        yield row("step", "a step / the bare pass, neither as a graph", subject, eager, **medians(times))
        gain = ratios(times, "step", "step, no graph")
        yield row("step", "a step / the same without a graph", subject, gain, 1.0, **medians(times))
        yield row("step", "synchronisations in a step", subject, [synchronisations(bench.step_eager)], 0)
        yield row("step", "synchronisations in a step as a graph", subject, [synchronisations(bench.step)], 0)


def synchronisations(function: Callable[[], Any]) -> int:
    """Return how often the host waits for the GPU in a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)


def stack(options: Options) -> Iterator[Row]:
    """Compare a step of a stack of searches with a step of each search."""
    count = 4 if options.device.type == "cpu" else 20
    for architecture in options.architectures:
        bench = Bench(architecture, options.device)
        searches = Stack([copy.deepcopy(bench.model)] * count, SearchSettings(lr_mask=1e-4), 1)
        set_training_mode(searches.model)
        searches.masks.train()
        images, labels = stack_batches([(bench.images, bench.labels)] * count)

        def stacked(step=searches.training.steps["masks"], images=images, labels=labels):
            step(images, labels)

        def each(bench=bench):
            for _ in range(count):
                bench.step()

        try:
            with threads(1):
                times = in_turn({"stack": stacked, "each": each}, options.device, options.repeats)
        except RuntimeError as error:
            print(f"  {architecture} left out: {str(error).partition('. ')[0]}", file=sys.stderr)
            continue
        goal = None if options.device.type == "cpu" else 1.0  # a CPU searches one after the other
        quantity = f"a step of a stack of {count} searches / {count} steps"
        yield row("stack", quantity, architecture, ratios(times, "stack", "each"), goal, **medians(times))

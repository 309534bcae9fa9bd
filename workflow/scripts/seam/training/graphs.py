"""Training steps as CUDA graphs, which the host launches at once instead of kernel by kernel.

A step of a small network is some hundred kernels of a few microseconds each, and launching a kernel takes the host
longer than that. A graph replays kernels that were captured once, at the same addresses. So all that a step changes
must lie on the device and be changed in place, as masks, heads and `seam.training.adam` do.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from seam.log import log
from seam.training.run import Batch, Stateful, Step

SWITCH = "SEAM_CUDA_GRAPHS"  # environment variable: 0 turns graphs off
WARM_UP_STEPS = 3  # before a step is captured: libraries choose their kernels and allocate their workspaces
MAX_DIFFERENCE = 0.2  # share of a step's changes that may differ: in bfloat16 the smallest gradients are noise


def with_cuda_graph(step: Step, parts: Iterable[Stateful], device: torch.device) -> Step:
    """Return the step; on a CUDA GPU as one that is replayed as a CUDA graph, if that is possible.

    parts: all that a step changes, except random numbers.
    """
    return GraphStep(step, parts) if device.type == "cuda" and os.environ.get(SWITCH) != "0" else step


class GraphStep:
    """A training step that is captured as a CUDA graph once it is warm.

    The first captured step runs twice: kernel by kernel and, from the same state, as a graph. If the results differ, or
    if the step cannot be captured, all steps are launched kernel by kernel, and the log says so. Steps on a batch of
    another shape, such as the last of an epoch, are launched kernel by kernel, too. The next step overwrites the
    tensors that a step returns.
    """

    def __init__(self, step: Step, parts: Iterable[Stateful]) -> None:
        self.step, self.parts = step, list(parts)
        self.shape: torch.Size | None = None
        self.previous_shape: torch.Size | None = None
        self._forget()

    def _forget(self) -> None:
        self.steps = 0
        self.batch: list[torch.Tensor] | None = None  # what the graph reads
        self.outputs: Batch | None = None  # what the graph writes
        self.replay: Callable[[], None] | None = None

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        """Train on a batch; return its logits and its mean loss."""
        if self.shape is None or images.shape == self.previous_shape != self.shape:
            self.shape = images.shape  # the first batch was an odd one
            self._forget()
        self.previous_shape = images.shape
        if images.shape != self.shape:
            return self.step(images, labels)
        self.steps += 1
        if self.steps <= WARM_UP_STEPS:
            with on_stream(capture_stream()):
                return self.step(images, labels)
        if self.steps == WARM_UP_STEPS + 1:
            return self._capture_and_compare(images, labels)
        if self.replay is None or self.outputs is None:
            return self.step(images, labels)
        self._replay_on(images, labels)
        return self.outputs

    def _step_on_batch(self) -> Batch:
        assert self.batch is not None
        logits, loss = self.step(*self.batch)
        return logits.detach(), loss.detach()  # without what a backward pass would need

    def _replay_on(self, *batch: torch.Tensor) -> None:
        assert self.batch is not None and self.replay is not None
        for place, value in zip(self.batch, batch, strict=True):
            place.copy_(value)
        self.replay()

    def _capture_and_compare(self, *batch: torch.Tensor) -> Batch:
        """Do a step kernel by kernel, in which nothing may wait for the GPU; then the same step as a graph."""
        self.batch = [torch.empty_like(value).copy_(value) for value in batch]
        before, drawn, reason = self._state(), host_random_state(), None
        try:
            with on_stream(capture_stream()), synchronization_forbidden():
                outputs = self._step_on_batch()
        except RuntimeError as error:
            self._restore(before)
            self._give_up(error)
            return self.step(*batch)
        if host_random_state() != drawn:
            self._give_up("it draws random numbers on the host, and a graph would repeat their consequences")
            return outputs
        after = self._state()
        self._restore(before)
        try:
            self.outputs, self.replay = capture(self._step_on_batch)
            self._restore(before)  # of work on another GPU, which is done at once and is not in the graph
            self._replay_on(*batch)
            difference = largest_difference(self._state()[0], after[0], before[0])
            if difference > MAX_DIFFERENCE:
                reason = f"it gives other values for {difference:.2%} of what a step changes"
        except RuntimeError as error:
            reason = error.__context__ or error  # the last of two errors only says that capturing has ended early
        if reason is None:
            log.info("steps are launched as a CUDA graph")
        else:
            self._restore(after)
            self._give_up(reason)
        return outputs

    def _give_up(self, reason: object) -> None:
        sentence = str(reason).partition("\n")[0]
        log.warning("steps are launched kernel by kernel, as a CUDA graph cannot be: %s", sentence)
        self.batch = self.outputs = self.replay = None

    def _state(self) -> tuple[list[Any], torch.Tensor]:
        """Return what a step changes and the state of the random numbers, on the CPU to spare the GPU's memory."""
        states = [dict(part.state_dict()) for part in self.parts]
        states = tree_map(lambda value: value.to("cpu", copy=True) if torch.is_tensor(value) else value, states)
        return states, torch.cuda.get_rng_state()

    def _restore(self, state: tuple[list[Any], torch.Tensor]) -> None:
        for part, stored in zip(self.parts, state[0], strict=True):
            part.load_state_dict(stored)
        torch.cuda.set_rng_state(state[1])


def host_random_state() -> tuple[bytes, tuple[Any, ...]]:
    """Return the state of the generators from which a model's own code may draw on the host."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate()


@cache
def capture_stream() -> torch.cuda.Stream:
    """Return the stream of all captures and warm-up steps: autograd stays on the stream where it began."""
    return torch.cuda.Stream()


@contextlib.contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on another stream, in order with the work on the current one."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        try:
            yield
        finally:
            current.wait_stream(stream)


@contextlib.contextmanager
def synchronization_forbidden() -> Iterator[None]:
    """Raise RuntimeError if the host waits for the GPU: during a capture, that would break more than the step."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Return (the function's tensors, a function that computes them anew in place) without running the function."""
    graph = torch.cuda.CUDAGraph()
    # A graph that ends frees the workspace of its stream's matrix products. So each graph gets its own, in its memory.
    torch._C._cuda_clearCublasWorkspaces()
    try:
        # The outer context is needed because after a failure torch would stay on the other stream. The mode lets other
        # threads, such as the one that pins batches, use CUDA meanwhile.
        original_stream = torch.cuda.stream(torch.cuda.current_stream())
        with original_stream, torch.cuda.graph(graph, stream=capture_stream(), capture_error_mode="thread_local"):
            outputs = function()
    finally:
        torch._C._cuda_clearCublasWorkspaces()
    return outputs, graph.replay


def largest_difference(states: Iterable[Any], others: Iterable[Any], before: Iterable[Any]) -> float:
    """Return how much two steps from the state `before` differ, in the part where they differ most.

    It is the share of the changed numbers that the two steps changed differently, by more than a tenth.
    """
    return max(_difference(*map(tree_leaves, each)) for each in zip(states, others, before, strict=True))


def _difference(values: list[Any], others: list[Any], before: list[Any]) -> float:
    changed = different = 0
    for numbers in zip(values, others, before, strict=True):
        value, other, old = (torch.as_tensor(number, dtype=torch.float32) for number in numbers)
        changed += int(((value != old) | (other != old)).sum().item())
        same = (value - other).abs() <= 0.1 * (other - old).abs() + 1e-6 * other.abs()
        different += int((~same).sum().item())
    return different / max(changed, 1)

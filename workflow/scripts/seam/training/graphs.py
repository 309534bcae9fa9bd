"""A training step as a CUDA graph: launched at once, without what each of its many small kernels costs the host.

A step of a small network is some hundred kernels of a few microseconds each, and launching one takes the host longer. A
graph repeats what was launched once, at the same addresses: so all that a step changes has to lie on the device and be
changed in place, as masks, heads and `seam.adam` do.
"""

import contextlib
import os
import random
from functools import cache

import torch
from torch.utils._pytree import tree_leaves, tree_map

from seam.log import log

SWITCH = "SEAM_CUDA_GRAPHS"  # in the environment: 0 for none
WARM = 3  # steps before one is captured, in which libraries choose their kernels and take their workspaces
MOST_APART = 0.2  # of the numbers that a step changes: in bfloat16 the least gradients are noise


def graphed(step, parts, device):
    """The step, (images, labels) -> (logits, loss); on a CUDA GPU by a graph, where it can be.

    parts: objects with `state_dict` and `load_state_dict`: all that a step changes, random numbers aside.
    """
    return Graphed(step, parts) if device.type == "cuda" and os.environ.get(SWITCH) != "0" else step


class Graphed:
    """A step that is captured once it is warm.

    The step before is undone and done again by the graph: where that changes other things, or where a step cannot be
    captured, all steps are launched kernel by kernel, and the log says so. So is a step on a batch of another shape,
    such as an epoch's last. What it gives is overwritten by the next step.
    """

    def __init__(self, step, parts):
        self.step, self.parts = step, list(parts)
        self.shape = self.shape_before = None
        self._forget()

    def _forget(self):
        self.steps, self.batch, self.found, self.replay = 0, None, None, None

    def __call__(self, images, labels):
        if self.shape is None or images.shape == self.shape_before != self.shape:
            self.shape = images.shape  # it began with an odd one
            self._forget()
        self.shape_before = images.shape
        if images.shape != self.shape:
            return self.step(images, labels)
        self.steps += 1
        if self.steps <= WARM:
            with beside(stream()):
                return self.step(images, labels)
        if self.steps == WARM + 1:
            return self._first(images, labels)
        if self.replay is None:
            return self.step(images, labels)
        self._repeat(images, labels)
        return self.found

    def _step_on_batch(self):
        return [value.detach() for value in self.step(*self.batch)]  # not what it keeps for a backward pass

    def _repeat(self, *batch):
        for place, value in zip(self.batch, batch, strict=True):
            place.copy_(value)
        self.replay()

    def _first(self, *batch):
        """A step kernel by kernel, in which nothing may wait for the GPU; then the same by a graph."""
        self.batch = [torch.empty_like(value).copy_(value) for value in batch]
        before, drawn, reason = self._state(), host_random(), None
        try:
            with beside(stream()), no_waiting():
                given = self._step_on_batch()
        except RuntimeError as error:
            self._restore(before)
            self._never(error)
            return self.step(*batch)
        if host_random() != drawn:
            self._never("it draws random numbers on the host, and a graph would repeat what they led to")
            return given
        after = self._state()
        self._restore(before)
        try:
            self.found, self.replay = captured(self._step_on_batch)
            self._repeat(*batch)
            share = apart(self._state()[0], after[0], before[0])
            if share > MOST_APART:
                reason = f"it gives other values for {share:.2%} of what a step changes"
        except RuntimeError as error:
            reason = error.__context__ or error  # where capturing ends early, the last one says no more than that
        if reason is None:
            log.info("steps are launched as a CUDA graph")
        else:
            self._restore(after)
            self._never(reason)
        return given

    def _never(self, reason):
        said = str(reason).partition("\n")[0]
        log.warning("steps are launched kernel by kernel, as a CUDA graph cannot be: %s", said)
        self.batch = self.found = self.replay = None

    def _state(self):
        """What a step changes, and the random numbers' state; on the CPU: the GPU's memory is left to the search."""
        states = [dict(part.state_dict()) for part in self.parts]
        states = tree_map(lambda value: value.to("cpu", copy=True) if torch.is_tensor(value) else value, states)
        return states, torch.cuda.get_rng_state()

    def _restore(self, state):
        for part, one in zip(self.parts, state[0], strict=True):
            part.load_state_dict(one)
        torch.cuda.set_rng_state(state[1])


def host_random():
    """The state of what a model's own code may draw from."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate()


@cache
def stream():
    """Of all that is captured and of its warming up: autograd goes on where it has used a parameter before."""
    return torch.cuda.Stream()


@contextlib.contextmanager
def beside(other):
    """Work on another stream, in order with the current one's."""
    current = torch.cuda.current_stream()
    other.wait_stream(current)
    with torch.cuda.stream(other):
        try:
            yield
        finally:
            current.wait_stream(other)


@contextlib.contextmanager
def no_waiting():
    """A RuntimeError where the host waits for the GPU, which within capturing would leave more broken than that."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(function):
    """(what the function gives, a function that computes it anew into the same tensors). It is not run by that."""
    graph = torch.cuda.CUDAGraph()
    # A graph that ends frees the products' workspace of its stream: each gets one of its own, in its own memory.
    torch._C._cuda_clearCublasWorkspaces()
    try:
        # The outer context since after a failure torch would stay on the other stream; the mode so that other threads,
        # such as that which pins batches, may do as they like.
        back = torch.cuda.stream(torch.cuda.current_stream())
        with back, torch.cuda.graph(graph, stream=stream(), capture_error_mode="thread_local"):
            found = function()
    finally:
        torch._C._cuda_clearCublasWorkspaces()
    return found, graph.replay


def apart(states, others, before):
    """Of the part where it is the most: the share of the numbers changed since `before` that two steps changed
    differently, by more than a tenth."""
    return max(_apart(*map(tree_leaves, each)) for each in zip(states, others, before, strict=True))


def _apart(numbers, others, before):
    changed = different = 0
    for one, other, old in zip(numbers, others, before, strict=True):
        one, other, old = (torch.as_tensor(value, dtype=torch.float32) for value in (one, other, old))
        changed += ((one != old) | (other != old)).sum().item()
        same = (one - other).abs() <= 0.1 * (other - old).abs() + 1e-6 * other.abs()
        different += (~same).sum().item()
    return different / max(changed, 1)

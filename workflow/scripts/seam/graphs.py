"""A training step as a CUDA graph: launched at once, without what each of its many small kernels costs the host.

A step of a small network is some hundred kernels of a few microseconds each, and launching one takes the host longer. A
graph repeats what was launched once, at the same addresses: so all that a step changes has to lie on the device and be
changed in place, as masks, heads and `seam.adam` do.
"""

import contextlib
import os
from functools import cache

import torch
from torch.utils._pytree import tree_leaves, tree_map

from seam.progress import log

SWITCH = "SEAM_CUDA_GRAPHS"  # in the environment: 0 for none
WARM = 3  # steps before one is captured, in which libraries choose their kernels and take their workspaces
MOST_APART = 0.05  # of the numbers that a step changes: in bfloat16 the least gradients are noise


def graphed(step, parts, device):
    """The step, (images, labels) -> (logits, loss); on a CUDA GPU by a graph, where it can be.

    parts: objects with `state_dict` and `load_state_dict`: all that a step changes, random numbers aside.
    """
    return Graphed(step, parts) if device.type == "cuda" and os.environ.get(SWITCH) != "0" else step


class Graphed:
    """A step that is captured once it is warm.

    The first step by the graph is undone, done again without it and compared: where it changes other things, or where a
    step cannot be captured, all steps are launched kernel by kernel, and the log says so. So is a step on a batch of
    another shape. What it gives is overwritten by the next step.
    """

    def __init__(self, step, parts):
        self.step, self.parts = step, list(parts)
        self.steps, self.shape = 0, None
        self.batch, self.found, self.replay = None, None, None

    def __call__(self, images, labels):
        self.shape = self.shape or images.shape
        if images.shape != self.shape:
            return self.step(images, labels)
        self.steps += 1
        if self.steps <= WARM:
            with beside(stream()):
                return self.step(images, labels)
        if self.steps == WARM + 1:
            return self._first(images, labels)
        return self.step(images, labels) if self.replay is None else self._repeated(images, labels)

    def _step_on_batch(self):
        return [value.detach() for value in self.step(*self.batch)]  # not what it keeps for a backward pass

    def _repeated(self, *batch):
        for place, value in zip(self.batch, batch, strict=True):
            place.copy_(value)
        self.replay()
        return self.found

    def _first(self, *batch):
        """A step without the graph, after one was captured and tried."""
        before, random, reason = self._state(), torch.cuda.get_rng_state(), None
        self.batch = [torch.empty_like(value).copy_(value) for value in batch]
        try:
            with beside(stream()), no_waiting():
                self.step(*batch)
            self._restore(before, random)
            self.found, self.replay = captured(self._step_on_batch)
            self._repeated(*batch)
            tried = self._state()
        except RuntimeError as error:
            # Where capturing ends early, what is raised in the end says no more than that.
            reason = str(error.__context__ or error).partition("\n")[0]
        self._restore(before, random)
        result = self.step(*batch)
        if reason is None and (share := apart(tried, self._state(), before)) > MOST_APART:
            reason = f"it gives other values for {share:.2%} of what a step changes"
        if reason is None:
            log.info("steps are launched as a CUDA graph")
        else:
            log.warning("steps are launched kernel by kernel, as a CUDA graph cannot be: %s", reason)
            self.batch = self.found = self.replay = None
        return result

    def _state(self):
        """Copies on the CPU: the GPU's memory is left to the search."""
        states = [dict(part.state_dict()) for part in self.parts]
        return tree_map(lambda value: value.to("cpu", copy=True) if torch.is_tensor(value) else value, states)

    def _restore(self, states, random):
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
        torch.cuda.set_rng_state(random)


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
    # Other threads may do as they like, such as that which pins batches.
    with torch.cuda.graph(graph, stream=stream(), capture_error_mode="thread_local"):
        found = function()
    return found, graph.replay


def apart(states, others, before):
    """The share of the numbers changed since `before` that two steps changed differently, by more than a tenth."""
    changed = different = 0
    for one, other, old in zip(*(tree_leaves(each) for each in (states, others, before)), strict=True):
        one, other, old = (torch.as_tensor(value, dtype=torch.float32) for value in (one, other, old))
        changed += ((one != old) | (other != old)).sum().item()
        same = (one - other).abs() <= 0.1 * (other - old).abs() + 1e-6 * other.abs()
        different += (~same).sum().item()
    return different / max(changed, 1)

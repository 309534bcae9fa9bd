"""The search that is benchmarked: a network with masks, and the same network without them."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from seam.data.batches import batches
from seam.data.storage import Split
from seam.masks.layers import maskable, unused_parameters
from seam.masks.masks import Masks
from seam.models.architectures import build_model
from seam.models.folding import fold
from seam.models.surgery import set_training_mode, with_head
from seam.precision import forward
from seam.search.training import mask_step
from seam.training.adam import Adam
from seam.training.graphs import WARM_UP_STEPS, capture, capture_stream, on_stream, with_cuda_graph

BATCH, SIZE, CLASSES = 64, 32, 10
NORMALIZATION = (0.5,) * 3, (0.25,) * 3


class Bench:
    """A source model with a head, its masks and their optimizer, as `seam.search.plain.search` has them.

    step: a step of masks and head on a batch that lies on the device. bare: forward and backward pass of an equal
    network with the same frozen layers, without masks; with `folded` its batch norm is part of its convolutions, as
    the step has it. On a GPU both are CUDA graphs; step_eager and bare_eager launch kernel by kernel. batch, size: of
    the images.
    """

    def __init__(
        self,
        architecture: str,
        device: torch.device,
        memory_format: torch.memory_format = torch.channels_last,
        folded: bool = False,
        batch: int = BATCH,
        size: int = SIZE,
    ) -> None:
        torch.manual_seed(0)
        self.architecture, self.device = architecture, device
        network: Any = build_model(architecture, CLASSES)
        network = network.eval().to(device, memory_format=memory_format)
        twin = copy.deepcopy(network)
        self.twin: Any = with_head((fold(twin) if folded else twin).requires_grad_(False), CLASSES, 2).to(device)
        self.model: Any = with_head(fold(network).requires_grad_(False), CLASSES, 2).to(device)
        self.model.head.load_state_dict(self.twin.head.state_dict())
        self.images = torch.randn(batch, 3, size, size).to(device, memory_format=memory_format)
        self.labels = torch.randint(2, (batch,)).to(device)
        for parameter in maskable(self.twin.source).values():
            parameter.requires_grad_(True)
        self.masks = Masks(network, unused_parameters(network, self.images[:2]))
        self.masks.train()
        groups = (self.masks.values.values(), 1e-4), (self.model.head.parameters(), 0.1)
        self.optimizer = Adam(groups)
        self.eager = mask_step(self.model, self.model.head, self.masks, self.optimizer, alpha=1.0)
        self.step_on = with_cuda_graph(self.eager, [self.masks, self.model.head, self.optimizer], device)
        set_training_mode(self.model)
        set_training_mode(self.twin)

    @cached_property
    def bare(self) -> Callable[[], Any]:
        """What computes the gradients of the network without masks, on a CUDA GPU as a graph."""
        return as_graph(self.bare_eager) if self.device.type == "cuda" else self.bare_eager

    def step(self) -> Any:
        """Train masks and head on the batch, as a job does."""
        return self.step_on(self.images, self.labels)

    def step_eager(self) -> Any:
        """Train masks and head on the batch, never as a graph."""
        return self.eager(self.images, self.labels)

    def bare_eager(self) -> None:
        """Compute the gradients of the network without masks, never as a graph."""
        self.twin.zero_grad()
        cross_entropy(forward(self.twin, self.images), self.labels).backward()

    def loader(self, count: int, **options: Any) -> Any:
        """Return batches of `count` random images of CIFAR's size."""
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        labels = random.integers(0, 2, count)
        split = Split(labels, (SIZE, SIZE), images)
        common = {"normalization": NORMALIZATION, "device": self.device} | options
        return batches(split, np.arange(count), labels, BATCH, **common)

    def training_loader(self, count: int) -> Any:
        """Return batches of `count` random images, shuffled and augmented as those of a search."""
        generator = torch.Generator().manual_seed(0)
        return self.loader(count, augmentation=("crop", "flip"), generator=generator, shuffle=True)


def as_graph(function: Callable[[], Any]) -> Callable[[], Any]:
    """Return the function as a CUDA graph."""
    with on_stream(capture_stream()):
        for _ in range(WARM_UP_STEPS):
            function()
    return capture(function)[1]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what libraries below Python print on the standard error within the block."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)

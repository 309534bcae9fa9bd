"""What a mask search trains: masks on a model, its head, their optimizers, and the step of each phase."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from seam.masks.biases import Biases
from seam.masks.masks import Masks
from seam.memory import own_mappings
from seam.models.surgery import set_training_mode
from seam.precision import forward
from seam.settings import SearchSettings
from seam.training.adam import Adam, RateFactor
from seam.training.graphs import with_cuda_graph
from seam.training.losses import Loss
from seam.training.run import Stateful, Step


class Constraint(Stateful, Protocol):
    """What masks must meet after each step, such as a budget."""

    def step(self) -> None:
        """Change the masks so that they meet it, and apply them."""
        ...


class MaskTraining:
    """Masks on a model and its head, ready to be trained.

    model: the masked network with the head. parts: {name: what a checkpoint holds}. steps: {phase: its step}. The
    phase `masks` trains the masks and the head, the phase `head` the head alone, by an optimizer of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module,
        masks: Masks,
        *,
        lr_mask: float,
        lr_head: float,
        alpha: float | torch.Tensor,
        rate_factor: RateFactor | None = None,
        head_phase: bool = True,
        loss: Loss = cross_entropy,
        constraint: Constraint | None = None,
        head_step: Callable[[Adam], Step] | None = None,
        wrap: Callable[[Step], Step] | None = None,
        biases: Biases | None = None,
        lr_bias: float = 0.0,
    ) -> None:
        """head: the layer of `model` that is trained and has no masks. head_phase: whether there is such a phase.

        alpha: the weight of the retention in the loss. To change it from step to step, give a tensor [] on the masks'
        device and change it in place. rate_factor: multiplies the rates of the phase `masks`. constraint: what the
        masks meet after each step. head_step: makes the step of the phase `head` from its optimizer, if it is another.
        wrap: is applied to each step. biases: are trained in the phase `masks`, too.
        """
        self.model, self.head, self.masks, self.biases = model, head, masks, biases
        self.parts: dict[str, Stateful] = {"masks": masks, "head": head}
        steps: dict[str, Step] = {}
        with own_mappings():
            if head_phase:
                head_only = Adam([(head.parameters(), lr_head)])
                self.parts["head_only"] = head_only
                steps["head"] = train_head(model, head_only, loss) if head_step is None else head_step(head_only)
            groups = [(masks.values.values(), lr_mask), (head.parameters(), lr_head)]
            if biases is not None:
                self.parts["biases"] = biases
                groups.append((biases.values.values(), lr_bias))
            both = Adam(groups, rate_factor)
            self.parts["both"] = both
            steps["masks"] = mask_step(model, head, masks, both, alpha, loss, constraint, biases)
            if constraint is not None:
                self.parts["constraint"] = constraint
        device = next(head.parameters()).device
        if wrap is not None:
            steps = {phase: wrap(step) for phase, step in steps.items()}
        self.steps = {phase: with_cuda_graph(step, self.parts.values(), device) for phase, step in steps.items()}

    def begin_epoch(self, phase: str) -> Step:
        """Put the model into training mode for an epoch of this phase; return the phase's step."""
        set_training_mode(self.model)
        if self.biases is not None:  # first, because some biases have masks
            self.biases.train(phase == "masks")
        self.masks.train(phase == "masks")
        return self.steps[phase]


def prepare_training(
    model: nn.Module,
    head: nn.Module,
    masks: Masks,
    settings: SearchSettings,
    batches: int,
    loss: Loss = cross_entropy,
) -> MaskTraining:
    """Return the training of direct reuse, for epochs of so many `batches`.

    With the schedule `fast`, masks begin in the order of the weights' magnitudes, and the rates of the phase `masks`
    fall to zero along a cosine.
    """
    rate_factor = None
    if settings.schedule == "fast":
        rate_factor = cosine((settings.epochs - 1) * batches)
        masks.order_by_magnitude()
    return MaskTraining(
        model, head, masks, lr_mask=settings.lr_mask, lr_head=settings.lr_head, alpha=settings.alpha,
        rate_factor=rate_factor, loss=loss,
    )  # fmt: skip


def cosine(steps: int) -> RateFactor:
    """Return the factor on the rates at each of `steps`, from 1 to 0 (Loshchilov and Hutter, "SGDR", 2017)."""
    return lambda step: (1 + torch.cos(math.pi * (step / max(steps, 1)).clamp(max=1))) / 2


def train_head(model: nn.Module, optimizer: Adam, loss: Loss = cross_entropy) -> Step:
    """Return a training step of the head alone; `model` has `source`, `relu` and `head`, as `with_head` makes it."""

    source, relu, head = (model.get_submodule(name) for name in ("source", "relu", "head"))

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            features = relu(forward(source, images))
        logits = head(features)
        value = loss(logits, labels)
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.step()
        return logits, value

    return step


def mask_step(
    model: nn.Module,
    head: nn.Module,
    masks: Masks,
    optimizer: Adam,
    alpha: float | torch.Tensor,
    loss: Loss = cross_entropy,
    constraint: Constraint | None = None,
    biases: Biases | None = None,
) -> Step:
    """Return a training step of the masks, of `head`, a layer of `model` that has no masks, and of `biases`."""

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = forward(model, images)
        value = loss(logits, labels)
        head.zero_grad()
        if biases is not None:
            biases.zero_grad()
        with masks.updated(optimizer, alpha):
            value.sum().backward()
        if biases is not None:
            biases.clear_removed()
        optimizer.step()
        if constraint is not None:
            constraint.step()
        return logits, value

    return step

"""Distillation from the source model: a search learns from what the source model says of each image, beside the label.

A label of a binary problem says one bit of an image, and the source model has learned more: how much an image looks
like the target's classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from seam.data.problems import TargetProblem
from seam.models.surgery import copy_module
from seam.precision import forward
from seam.training.run import Step


class Distillation:
    """The loss `(1 - share) * loss + share * cross entropy to the source model's probabilities`.

    A step must `observe` its images before the loss is computed.
    """

    def __init__(
        self, source: nn.Module, outputs: Sequence[Sequence[int]], frequencies: Sequence[float], share: float
    ) -> None:
        """source: the source model, of which a copy is made. outputs: of each class, the source model's own outputs
        that stand for it. frequencies: of the classes in the problem. share: of the source model in the loss.

        The source model has seen all its classes equally often. So the probability of a class is the mean of its
        outputs' probabilities times its frequency, normalised.
        """
        self.source = copy_module(source).eval().requires_grad_(False)
        device = next(source.parameters()).device
        self.outputs = [torch.tensor(list(numbers), device=device) for numbers in outputs]
        total = sum(frequencies)
        priors = [
            math.log(max(count, 1e-9) / total / len(numbers))
            for count, numbers in zip(frequencies, outputs, strict=True)
        ]
        self.log_prior = torch.tensor(priors, device=device)
        self.share = share
        self.label_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None  # None: cross entropy
        self.targets = torch.empty(0)

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Return the source model's probabilities [B, n] of the problem's classes for images [B, 3, H, W]."""
        logits = forward(self.source, images)
        groups = [logits.index_select(1, numbers).logsumexp(1) for numbers in self.outputs]
        return (torch.stack(groups, 1) + self.log_prior).softmax(1)

    def observe(self, images: torch.Tensor) -> None:
        """Keep the probabilities of a batch for its loss."""
        self.targets = self.probabilities(images)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of the batch that was observed last: [], from logits [B, n] and labels [B]."""
        log_probabilities = logits.log_softmax(1)
        if self.label_loss is None:
            label_loss = nn.functional.nll_loss(log_probabilities, labels)
        else:
            label_loss = self.label_loss(logits, labels)
        return (1 - self.share) * label_loss - self.share * (self.targets * log_probabilities).sum(1).mean()

    def observed(self, step: Step) -> Step:
        """Return the step with an observation of its images before it."""

        def observing(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.observe(images)
            return step(images, labels)

        return observing


def source_outputs(
    problem: TargetProblem, source_classes: Sequence[str], data_classes: Sequence[str]
) -> list[list[int]]:
    """Return the source model's outputs that stand for each class of a problem.

    data_classes: those of the data set, all of them classes of the source model. The rest are those that are no
    members. No image shows another class of the source model: with 995 more outputs in its mean, `rest` would be too
    improbable for every image.
    """
    members = [source_classes.index(name) for name in problem.members]
    others = sorted(source_classes.index(name) for name in data_classes if name not in problem.members)
    if problem.kind in ("binary", "group"):
        return [members, others]
    each = [[number] for number in members]
    return [*each, others] if problem.kind == "multiclass_rest" else each

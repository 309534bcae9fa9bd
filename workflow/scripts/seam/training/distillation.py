"""Distillation: a network learns what another one answers, beside the labels.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. The teacher sees the images as the student does, in
the same augmentation.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax, softmax

from seam.precision import forward


class Teacher:
    """A frozen network whose logits another one learns."""

    def __init__(self, model: nn.Module, weight: float, temperature: float) -> None:
        """weight: of this loss beside the cross entropy. temperature: divides the logits of both networks."""
        self.model, self.weight, self.temperature = model.eval().requires_grad_(False), weight, temperature

    def loss(self, logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return weight x temperature^2 x the divergence of `logits` [B, K] from the teacher's for these images."""
        with torch.no_grad():
            answers = forward(self.model, images)
        answered, wanted = log_softmax(logits / self.temperature, 1), softmax(answers / self.temperature, 1)
        return self.weight * self.temperature**2 * kl_div(answered, wanted, reduction="batchmean")

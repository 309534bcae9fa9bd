"""The loss of a classifier, in which classes may count differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.nn.functional import cross_entropy

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits, labels -> the mean loss


def class_loss(weights: Sequence[float] | None, device: torch.device, label_smoothing: float = 0.0) -> Loss:
    """Return the cross entropy in which an image of class c counts `weights[c]` times, or once without weights.

    It is the mean over all images, and not over their weights. Labels are int64 [N], or probabilities [N, classes].
    """
    if weights is None:
        return partial(cross_entropy, label_smoothing=label_smoothing)
    weight = torch.as_tensor(weights, dtype=torch.float32, device=device)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, labels, weight, reduction="none", label_smoothing=label_smoothing).mean()

    return loss

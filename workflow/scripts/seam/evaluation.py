"""Predictions and accuracy of any model on any images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from seam.errors import UserError
from seam.log import log
from seam.precision import exact

if TYPE_CHECKING:
    from seam.data.problems import TargetProblem


@exact()
@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the model's (logits float32 [N, K], labels int64 [N]) over all batches, in eval mode, on the CPU.

    Raises UserError if a logit is not finite.
    """
    training = model.training
    model.eval()
    logits, labels = zip(*((model(images), labels) for images, labels in batches), strict=True)
    model.train(training)
    logits = torch.cat(logits).float().cpu()
    if not logits.isfinite().all():
        raise UserError("The outputs of a model became NaN or infinite: lower its learning rates.")
    return logits, torch.cat(labels).cpu()


def share(correct: torch.Tensor) -> float:
    """Return the share of the values [N] that are True."""
    return correct.double().mean().item()


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of images whose largest logit [N, K] is that of their label [N]."""
    return share(logits.argmax(1) == labels)


def source_accuracy(
    logits: torch.Tensor, labels: torch.Tensor, problem: TargetProblem, source_classes: Sequence[str]
) -> tuple[float, float]:
    """Return the source model's (accuracy, accuracy restricted to the target's classes) on a target problem.

    logits: the source model's own [N, len(source_classes)]. labels: the problem's [N].
    On a binary problem, the arg-max answers "is it the target class?", and both values are the same. On a multi-class
    problem, the first value takes the arg-max over all classes of the source model, which flatters a re-engineered
    model. The second takes it over the target's classes, which is the fair comparison.
    """
    members = torch.tensor([source_classes.index(name) for name in problem.members])
    prediction = logits.argmax(1)
    if problem.kind == "binary":
        value = share((prediction == members[0]) == (labels == 0))
        return value, value
    return share(prediction == members[labels]), share(logits[:, members].argmax(1) == labels)


def require_better_than_guessing(accuracy: float, classes: int, images: int, what: str) -> None:
    """Raise UserError if an accuracy is below that of guessing by more than chance explains for so many images.

    The limit is three standard errors, because a small model on few images may well be no better than guessing; the
    log then has a warning. what: the model as the sentence names it, such as "The source model vgg16".
    """
    guessing = 1 / classes
    error = math.sqrt(guessing * (1 - guessing) / images)
    comparison = f"{what} gets {accuracy:.4f} of {images} test images right, and guessing {guessing:.4f}"
    if accuracy < guessing - 3 * error:
        raise UserError(
            f"{comparison}: check that its classes are in the order in which it was trained, and its normalization."
        )
    if accuracy <= guessing:
        log.warning("%s: it is no better than that", comparison)

"""Predictions and accuracy of any model on any images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from seam.errors import UserError
from seam.log import log
from seam.models.surgery import evaluating
from seam.precision import exact

if TYPE_CHECKING:
    from seam.data.problems import TargetProblem

FEWEST_OTHERS = 10  # images that a model which tells classes apart does not all mistake by chance


@exact()
@torch.no_grad()  # and not in inference mode: what a model keeps of its first pass must serve a search, too
def predict(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the model's (logits float32 [N, K], labels int64 [N]) over all batches, in eval mode, on the CPU.

    The modes of the model's layers are then as before. Raises UserError if there is no batch, if the labels are not
    one whole number from 0 to K - 1 for each image, if the model returns something else than a tensor, or if a logit is
    not finite.
    """
    with evaluating(model):
        pairs = [(_logits(model, images), labels) for images, labels in map(require_pair, batches)]
    if not pairs:
        raise UserError("There are no images to evaluate a model on: the batches are empty.")
    logits, labels = torch.cat([pair[0] for pair in pairs]).float().cpu(), torch.cat([pair[1] for pair in pairs]).cpu()
    require_labels(labels, logits.shape[:-1], logits.shape[-1])
    if not logits.isfinite().all():
        raise UserError("The outputs of a model became NaN or infinite: lower its learning rates.")
    return logits, labels


def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    outputs = model(images)
    if not isinstance(outputs, torch.Tensor):
        raise UserError(f"The model gives a {type(outputs).__name__} for images: let it return its logits alone.")
    return outputs


def require_pair(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch. Raises UserError unless it is a pair (images, labels) of tensors."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, torch.Tensor) for part in batch):
        return batch[0], batch[1]
    raise UserError(f"A batch is of the type {type(batch).__name__}: give pairs (images, labels) of tensors.")


def require_labels(labels: torch.Tensor, shape: Sequence[int], outputs: int | None = None) -> None:
    """Raise UserError unless the labels are whole numbers of this shape from 0 to `outputs` - 1.

    shape: [N], or [N, T] for the labels of T models. outputs: None does not check how large the labels are.
    """
    if labels.shape != tuple(shape) or labels.is_floating_point():
        raise UserError(
            f"The labels of {shape[0]} images have the shape {tuple(labels.shape)} and the type {labels.dtype}: "
            "give one whole number for each image, [N]."
        )
    if labels.min() < 0 or (outputs is not None and labels.max() >= outputs):
        has = "" if outputs is None else f", and the model has {outputs} outputs"
        raise UserError(
            f"The labels go from {labels.min()} to {labels.max()}{has}: labels are the numbers of outputs, from 0."
        )


def share(correct: torch.Tensor) -> float:
    """Return the share of the values [N] that are True."""
    return correct.double().mean().item()


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of images whose largest logit [N, K] is that of their label [N]."""
    return share(logits.argmax(1) == labels)


def balanced_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean, over the classes among the labels [N], of the share of their images that is right."""
    return mean_recall(logits.argmax(1), labels)


def mean_recall(predictions: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean, over the classes among the labels [N], of the share of their images that is predicted right."""
    recalls = [share(predictions[labels == label] == label) for label in labels.unique()]
    return sum(recalls) / len(recalls)


def confusion_matrix(predictions: torch.Tensor, labels: torch.Tensor, classes: int) -> list[list[int]]:
    """Return the number of images of each class (rows) for which each class is predicted (columns)."""
    cells = (labels * classes + predictions).bincount(minlength=classes * classes)
    return cells.view(classes, classes).tolist()


def class_metrics(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return {class: {"recall", "precision"}} from a confusion matrix; None where no image is behind the share."""
    metrics: dict[str, dict[str, float | None]] = {}
    for place, name in enumerate(classes):
        images, predicted, right = sum(matrix[place]), sum(row[place] for row in matrix), matrix[place][place]
        metrics[name] = {
            "recall": right / images if images else None,
            "precision": right / predicted if predicted else None,
        }
    return metrics


def source_predictions(
    logits: torch.Tensor, problem: TargetProblem, source_classes: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of the head that a source model's arg-max stands for, over (all its classes, the target's).

    logits: the source model's own [N, len(source_classes)]. Each is int64 [N]. If the problem has a rest, a class that
    is not of the target stands for it, and both are the same. On a multi-class problem without a rest, such a class
    gives -1. That makes the first flatter a re-engineered model. The second takes the arg-max over the target's classes
    alone, which is the fair comparison.
    """
    prediction = outputs_of_classes(problem, source_classes)[logits.argmax(1)]
    if problem.kind != "multiclass":
        return prediction, prediction
    members = [source_classes.index(name) for name in problem.members]
    return prediction, logits[:, members].argmax(1)


def outputs_of_classes(problem: TargetProblem, source_classes: Sequence[str]) -> torch.Tensor:
    """Return the output of the head that each class of the source model stands for [K]; -1 for none."""
    members = torch.tensor([source_classes.index(name) for name in problem.members])
    if problem.kind in ("binary", "group"):
        outputs, others = torch.zeros_like(members), 1
    else:
        outputs, others = torch.arange(len(members)), len(members) if problem.kind == "multiclass_rest" else -1
    output = torch.full((len(source_classes),), others)
    output[members] = outputs
    return output


def source_accuracy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem: TargetProblem,
    source_classes: Sequence[str],
    *,
    balanced: bool = False,
) -> tuple[float, float]:
    """Return the source model's (accuracy, accuracy restricted to the target's classes) on a target problem.

    labels: the problem's [N]. balanced: whether to return balanced accuracies. The rest is as in `source_predictions`.
    """
    every, restricted = source_predictions(logits, problem, source_classes)
    if balanced:
        return mean_recall(every, labels), mean_recall(restricted, labels)
    return share(every == labels), share(restricted == labels)


def require_better_than_guessing(
    accuracy: float, classes: int, images: int, subject: str, counts: Sequence[int] | None = None
) -> None:
    """Raise UserError if an accuracy is below that of guessing by more than chance explains for so many images.

    The limit is three standard errors, because a small model on few images may well be no better than guessing; the
    log then has a warning. subject: the model as the sentence names it, such as "The source model vgg16". counts: the
    images of each class if the accuracy is a balanced one, whose error the small classes decide.
    """
    guessing = 1 / classes
    effective = images if counts is None else classes**2 / sum(1 / count for count in counts)
    error = math.sqrt(guessing * (1 - guessing) / effective)
    chance = f"{100 * guessing:.1f} %"
    if counts is None:
        comparison = f"{subject} gets {100 * accuracy:.1f} % of {images} test images right, and guessing {chance}"
    else:
        comparison = (
            f"{subject} has a balanced accuracy of {100 * accuracy:.1f} % on {images} test images, "
            f"and guessing {chance}"
        )
    if accuracy < guessing - 3 * error:
        raise UserError(
            f"{comparison}: check that its classes are in the order in which it was trained, and its normalization."
        )
    if accuracy <= guessing:
        log.warning("%s: it is no better than that", comparison)


def mistaken_by_one_answer(confusion: Sequence[Sequence[int]]) -> int:
    """Return how many images a model gets wrong that has the same answer for all; 0 if it has several answers.

    confusion: the number of images, with a row for each true class and a column for each answer.

    >>> mistaken_by_one_answer([[30, 0], [70, 0]]), mistaken_by_one_answer([[30, 0], [69, 1]])
    (70, 0)
    """
    matrix = torch.tensor(confusion)
    return int(matrix.sum() - matrix.trace()) if torch.count_nonzero(matrix.sum(0)) == 1 else 0


def require_several_answers(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], subject: str, advice: str, *, allowed: bool = False
) -> None:
    """Raise UserError if a model gives the same answer for all images, though several have another label.

    confusion: as `mistaken_by_one_answer` takes it. subject, advice: begin and end the sentence. Fewer than ten
    images of other classes may all be mistaken by chance: then the log has a warning, as it has if this is `allowed`.
    """
    others = mistaken_by_one_answer(confusion)
    if not others:
        return
    answers = torch.tensor(confusion).sum(0)
    sentence = (
        f"{subject} says {classes[int(answers.argmax())]} for each of the {int(answers.sum())} test images, of which "
        f"{others} are of other classes: {advice}"
    )
    if others >= FEWEST_OTHERS and not allowed:
        raise UserError(sentence)
    log.warning("%s", sentence)

"""Predictions and accuracy of any model on any images."""

import math

import torch

from seam.errors import UserError
from seam.log import log
from seam.precision import exact


@exact()
@torch.inference_mode()
def predict(model, batches):
    """(logits float32 [N, K], labels int64 [N]) of the model in eval mode over all batches, on the CPU.

    Raises UserError where a logit is not a finite number.
    """
    training = model.training
    model.eval()
    logits, labels = zip(*((model(images), labels) for images, labels in batches), strict=True)
    model.train(training)
    logits = torch.cat(logits).float().cpu()
    if not logits.isfinite().all():
        raise UserError("What a model gives for its images became NaN or infinite: lower its learning rates.")
    return logits, torch.cat(labels).cpu()


def share(right):
    return right.double().mean().item()


def accuracy(logits, labels):
    """The share of images [N] whose largest logit [N, K] is their label's [N]."""
    return share(logits.argmax(1) == labels)


def source_accuracy(logits, labels, problem, source_classes):
    """(accuracy, accuracy restricted to the target's classes) of the source model on a target problem.

    logits: [N, len(source_classes)], the source model's own; labels: [N], the problem's.
    Binary: the arg-max is read as "is it the target class", and there is nothing to restrict.
    Multi-class: the arg-max over all the source's classes, which flatters a re-engineered model, and
    over the target's classes only, the fair comparison.
    """
    members = torch.tensor([source_classes.index(name) for name in problem.members])
    prediction = logits.argmax(1)
    if problem.kind == "binary":
        value = share((prediction == members[0]) == (labels == 0))
        return value, value
    return share(prediction == members[labels]), share(logits[:, members].argmax(1) == labels)


def require_better_than_guessing(accuracy, classes, images, what):
    """Raises UserError where an accuracy is below that of guessing, by more than the chance of so few images explains.

    Three standard errors, since a small model on few images may well be no better than guessing; that is a line in the
    log. `what` has the accuracy: "The source model vgg16".
    """
    guessing = 1 / classes
    error = math.sqrt(guessing * (1 - guessing) / images)
    about = f"{what} gets {accuracy:.4f} of {images} test images right, and guessing {guessing:.4f}"
    if accuracy < guessing - 3 * error:
        raise UserError(
            f"{about}: check that its classes are in the order in which it was trained, and its normalization."
        )
    if accuracy <= guessing:
        log.warning("%s: it is no better than that", about)

"""A model as the command line names it, with its weights or random ones."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torch import nn

from seam.delivery.choices import default_size, option_words, resolve_architecture
from seam.errors import UserError
from seam.models.architectures import build_model
from seam.models.classes import read_class_file
from seam.models.fitting import differing_outputs
from seam.models.published import read_weights
from seam.models.weights import MOST_OUTPUTS, is_weights_file, load_state

OUTPUTS = 1000  # of torchvision's classifiers


@dataclass
class Built:
    """A model, its number of outputs, the size of its images, and how it was built, in words."""

    module: nn.Module
    outputs: int
    size: int
    words: str


def build_from_options(
    model: str,
    weights: str | None = None,
    weights_key: str | None = None,
    classes: str | None = None,
    size: int | None = None,
    outputs: int | None = None,
) -> Built:
    """Return the model that the arguments name. Raises UserError if it cannot be built or the weights do not fit.

    outputs: without it and `classes`, as many as the weights have, if the model differs from them in that alone.
    """
    architecture = resolve_architecture(model)
    weights = os.path.expanduser(weights) if weights else None
    if classes and classes != "weights":
        given, outputs = outputs, {"cifar10": 10, "cifar100": 100, "imagenet": 1000}.get(classes)
        if outputs is None and "," not in classes and not os.path.isfile(classes):
            raise UserError(
                f"--classes is {classes}, but there is no such file: name one, or write cifar10, cifar100, imagenet, "
                "weights, or names with commas."
            )
        if outputs is None:
            outputs = len(read_class_file(classes) if os.path.isfile(classes) else classes.split(","))
        if given not in (None, outputs):
            raise UserError(f"--outputs is {given}, but --classes names {outputs}: leave one of them out.")
    words = f"{architecture}, random weights"
    if weights is not None and not is_weights_file(weights):
        raise UserError(
            f"--weights is {weights}, but check takes a file: leave it out to check the architecture alone."
        )
    count = outputs or (OUTPUTS if architecture.startswith("torchvision:") else 10)
    module = build_model(architecture, count)
    if weights is not None:
        try:
            state = read_weights(weights, architecture, module, weights_key)
            number = differing_outputs(module, state, count)
            if number and outputs is not None:
                raise UserError(f"{weights} has {number} outputs, not {count}: correct --outputs or --classes.")
            if number is not None and number > MOST_OUTPUTS:
                raise UserError(f"{weights} has {number} outputs, more than the {MOST_OUTPUTS:,} that seam takes.")
            if number:
                count, module = number, build_model(architecture, number)
                state = read_weights(weights, architecture, module, weights_key)
        except UserError as error:
            raise option_words(error) from error
        if problem := load_state(module, state, weights):
            guessed = f" The model was built with {count} outputs: --outputs sets another number."
            raise UserError(problem + (guessed if outputs is None else ""))
        words = f"{architecture}, weights {weights}"
    return Built(module.eval(), count, size or default_size(architecture, weights or ""), words)

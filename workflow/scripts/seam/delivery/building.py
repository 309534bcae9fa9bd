"""A model as the command line names it, with its weights or random ones."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torch import nn

from seam.delivery.choices import default_size, resolve_architecture
from seam.errors import UserError
from seam.models.architectures import build_model
from seam.models.classes import read_class_file
from seam.models.fitting import find_candidates
from seam.models.published import read_content, read_weights
from seam.models.weights import is_weights_file, load_state

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
    """Return the model that the arguments name. Raises UserError if it cannot be built or the weights do not fit."""
    architecture = resolve_architecture(model)
    weights = os.path.expanduser(weights) if weights else None
    if outputs is None and classes:
        outputs = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}.get(classes)
        if outputs is None:
            outputs = len(read_class_file(classes) if os.path.isfile(classes) else classes.split(","))
    words = f"{architecture}, random weights"
    if weights is not None and not is_weights_file(weights):
        raise UserError(
            f"--weights is {weights}, but check takes a file: leave it out to check the architecture alone."
        )
    if outputs is None:
        outputs = _outputs_of(weights) if weights else (OUTPUTS if architecture.startswith("torchvision:") else 10)
    module = build_model(architecture, outputs)
    if weights is not None:
        state = read_weights(weights, architecture, module, weights_key)
        if problem := load_state(module, state, weights):
            raise UserError(problem)
        words = f"{architecture}, weights {weights}"
    return Built(module.eval(), outputs, size or default_size(architecture, weights or ""), words)


def _outputs_of(weights: str) -> int:
    """Return the number of outputs of the weights in a file: the rows of their last matrix."""
    candidates = find_candidates(read_content(weights), weights)
    rows = [value.shape[0] for each in candidates for value in each.state.values() if value.dim() >= 2]
    if not rows:
        raise UserError(f"{weights} holds no weights: give the state dictionary of a trained model.")
    return rows[-1]

"""What a search is given: whether images, labels, network and head fit together, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from seam.errors import UserError
from seam.evaluation import require_pair
from seam.models.surgery import evaluating, outputs_in_training
from seam.training.run import Batch


def first_images(model: nn.Module, selection: Iterable[Batch]) -> torch.Tensor:
    """Return the first two images [2, 3, H, W] of the selection; `model` is one that `with_head` made.

    Raises UserError if there are none, if the network computes in another precision than float32, or if it does not
    give the head what that takes.
    """
    network, head = model.get_submodule("source"), model.get_submodule("head")
    batch = next(iter(selection), None)
    if batch is None:
        raise UserError("There are no images to compare epochs on: the batches of the selection are empty.")
    images = require_pair(batch)[0][:2]
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError("The network is a TorchScript module, whose weights cannot be masked: build it from its code.")
    for noun, dtype in (("the network's weights", next(network.parameters()).dtype), ("the images", images.dtype)):
        if dtype != torch.float32:
            raise UserError(f"A search needs float32, but {noun} are {dtype}: convert them with .float().")
    with torch.no_grad(), evaluating(network):
        outputs = network(images)
    width = next(head.parameters()).shape[-1]
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (len(images), width):
        shape = list(outputs.shape) if isinstance(outputs, torch.Tensor) else f"a {type(outputs).__name__}"
        raise UserError(
            f"The network gives {shape} for {len(images)} images, but the head takes [{len(images)}, {width}]: give "
            "with_head the network's number of outputs, and a network that returns its logits alone."
        )
    trained = outputs_in_training(network, images)
    if trained is not None and not isinstance(trained, torch.Tensor):
        raise UserError(
            f"In training mode the network gives a {type(trained).__name__}: let it return its logits alone (switch "
            "auxiliary outputs off)."
        )
    return images

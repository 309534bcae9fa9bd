"""The parameters of a model that can be masked."""

import torch
from torch import nn

from seam.errors import UserError
from seam.log import log

MASKED_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)


def maskable(module, exclude=()):
    """name: parameter for the weights and biases of all convolutions and linear layers.

    A parameter that several layers share appears once. `exclude` names layers, or parameters, to leave out. Raises
    UserError where a layer's weight is not a parameter of its own but computed from others.
    """
    found, seen = {}, set()
    for layer, child in module.named_modules():
        if not isinstance(child, MASKED_LAYERS) or layer in exclude:
            continue
        if not isinstance(child, nn.MultiheadAttention) and child._parameters.get("weight") is None:
            raise UserError(
                f"The weight of layer {layer} is computed from others and cannot be masked: let the architecture have "
                "a plain one, without weight_norm, spectral_norm or pruning."
            )
        for name, parameter in child.named_parameters(recurse=False):
            full = f"{layer}.{name}" if layer else name
            if id(parameter) not in seen and full not in exclude:
                found[full] = parameter
            seen.add(id(parameter))
    return found


def unused_parameters(module, images, exclude=()):
    """Names of the maskable parameters on which the outputs for `images` [B, 3, H, W] do not depend.

    Such as those of a head that only training needs: masked, they would count as weights that were found irrelevant.
    Raises UserError where there is no maskable parameter on which they depend.
    """
    parameters = maskable(module, exclude)
    before = {name: p.requires_grad for name, p in parameters.items()}
    mode = {child: child.training for child in module.modules()}
    module.eval()  # no random number is drawn
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        total, wanted = module(images).sum(), list(parameters.values())
        depends = parameters and total.grad_fn is not None
        found = torch.autograd.grad(total, wanted, allow_unused=True) if depends else [None] * len(wanted)
    for name, parameter in parameters.items():
        parameter.requires_grad_(before[name])
    for child, training in mode.items():
        child.training = training
    names = {name for name, gradient in zip(parameters, found, strict=True) if gradient is None}
    if len(names) == len(parameters):
        raise UserError(
            "The model's outputs depend on no weight of a convolution or linear layer that could be masked: correct "
            "its architecture (a forward pass without gradients, say)."
        )
    if names:
        log.warning(
            "no masks for %s (parameters: %d, numbers: %d): the model's outputs do not depend on them",
            ", ".join(sorted(names)[:3]) + ", ..." * (len(names) > 3), len(names),
            sum(parameters[name].numel() for name in names),
        )  # fmt: skip
    return names

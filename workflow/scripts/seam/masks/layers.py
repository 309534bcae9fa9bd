"""The parameters of a model that can be masked."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from seam.errors import UserError
from seam.log import log
from seam.models.surgery import copy_module, evaluating

MASKED_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)


def maskable(module: nn.Module, exclude: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """Return {name: parameter} of the weights and biases of all convolutions and linear layers.

    A parameter that several layers share appears once. `exclude` holds names of layers or parameters that stay
    without masks. Raises UserError if a layer computes its weight from other parameters.
    """
    parameters: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for layer_name, layer in module.named_modules():
        if not isinstance(layer, MASKED_LAYERS) or layer_name in exclude:
            continue
        if not isinstance(layer, nn.MultiheadAttention) and layer._parameters.get("weight") is None:
            raise UserError(
                f"The weight of layer {layer_name} is computed from other parameters and cannot be masked: use an "
                "architecture without weight_norm, spectral_norm or pruning there."
            )
        for name, parameter in layer.named_parameters(recurse=False):
            full_name = f"{layer_name}.{name}" if layer_name else name
            if id(parameter) not in seen and full_name not in exclude:
                parameters[full_name] = parameter
            seen.add(id(parameter))
    return parameters


def unused_parameters(module: nn.Module, images: torch.Tensor, exclude: Collection[str] = ()) -> set[str]:
    """Return the names of the maskable parameters on which the outputs for `images` [B, 3, H, W] do not depend.

    A head that only training needs has such parameters. With masks, they would count as weights that the search
    removed. Raises UserError if the outputs depend on no maskable parameter.
    """
    parameters = maskable(module, exclude)
    with evaluating(module):
        unused = _without_gradient(copy_module(module), images, exclude)  # a model may keep what it computes
        if len(unused) == len(parameters):  # as in a copy whose forward pass is a function over the module itself
            unused = _without_gradient(module, images, exclude)
    if not parameters:
        raise UserError(
            "The model has no convolution or linear layer that can be masked: give it as its code builds it, before it "
            "is traced or quantized."
        )
    if len(unused) == len(parameters):
        raise UserError(
            "The model's outputs depend on no weight of a convolution or linear layer: correct its architecture (its "
            "forward pass may switch gradients off)."
        )
    if unused:
        log.warning(
            "no masks for %s (parameters: %d, numbers: %d): the model's outputs do not depend on them",
            ", ".join(sorted(unused)[:3]) + ", ..." * (len(unused) > 3), len(unused),
            sum(parameters[name].numel() for name in unused),
        )  # fmt: skip
    return unused


def _without_gradient(module: nn.Module, images: torch.Tensor, exclude: Collection[str]) -> set[str]:
    """Return the names of the maskable parameters that get no gradient from the outputs."""
    parameters = maskable(module, exclude)
    required = {name: parameter.requires_grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    with torch.enable_grad():
        total, inputs = module(images).sum(), list(parameters.values())
        if parameters and total.grad_fn is not None:
            gradients = torch.autograd.grad(total, inputs, allow_unused=True)
        else:
            gradients = (None,) * len(inputs)
    for name, parameter in parameters.items():
        parameter.requires_grad_(required[name])
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None}

"""Masks without a search: each weight gets a score, and the weights with the highest scores are kept.

They are the baselines that show what the mask search is worth. `magnitude` is the oldest score. `activation` is that of
Wanda (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024): magnitude times the
norm of the weight's input. `gradient` is that of SNIP (Lee et al., ICLR 2019): the change of the loss if the weight is
removed, to first order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from seam.errors import UserError
from seam.masks.layers import MASKED_LAYERS, maskable
from seam.models.surgery import evaluating
from seam.models.uses import given
from seam.precision import exact, widest_type

Scores = dict[str, torch.Tensor]  # {name of a parameter: the score of each of its weights}, on the CPU
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]  # images [B, 3, H, W] and labels [B]


def magnitude_scores(module: nn.Module, names: Collection[str]) -> Scores:
    """Return the magnitudes of the weights of the parameters `names`."""
    parameters = maskable(module)
    return {name: parameters[name].detach().abs().cpu() for name in names}


def random_scores(module: nn.Module, names: Collection[str], generator: torch.Generator) -> Scores:
    """Return random numbers, so that the weights with the highest scores are random ones."""
    parameters = maskable(module)
    return {name: torch.rand(parameters[name].shape, generator=generator) for name in names}


@exact()
@torch.inference_mode()
def activation_scores(module: nn.Module, names: Collection[str], batches: Batches) -> Scores:
    """Return |weight| x the norm of the input that it multiplies, over all images of `batches` and all positions.

    The norm is that of an input channel or feature. A bias multiplies the constant 1. Where the inputs of a layer
    cannot be seen, such as those of the projections of attention, all weights get the mean norm of the others, so that
    scores of different parameters can be compared.
    """
    norms: dict[str, torch.Tensor] = {}  # sums of squares until the end, by layer

    def note(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: Any, by_name: dict[str, Any], output: torch.Tensor) -> None:
            squares = input_squares(layer, given(inputs, by_name)[0])
            outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            ones = torch.tensor(float(output.numel() // outputs), device=squares.device)
            for key, value in ((name, squares), (f"{name}.ones", ones)):
                norms[key] = norms[key] + value if key in norms else value

        return hook

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, MASKED_LAYERS)}
    visible = {name: layer for name, layer in layers.items() if not isinstance(layer, nn.MultiheadAttention)}
    hooks = [layer.register_forward_hook(note(name), with_kwargs=True) for name, layer in visible.items()]
    try:
        with evaluating(module):
            for images, _ in batches:
                module(images)
    finally:
        for hook in hooks:
            hook.remove()
    scores = magnitude_scores(module, names)
    seen: list[tuple[float, int]] = []  # (mean norm, number of weights) of a parameter
    unseen: list[torch.Tensor] = []
    for name, score in scores.items():
        layer_name, _, kind = name.rpartition(".")
        if layer_name not in norms:
            unseen.append(score)
        elif kind == "bias":
            score *= norms[f"{layer_name}.ones"].sqrt().cpu()
        else:
            norm = norms[layer_name].sqrt().cpu()
            score *= per_weight(visible[layer_name], norm)
            seen.append((float(norm.mean()), score.numel()))
    if seen:
        mean = sum(norm * count for norm, count in seen) / sum(count for _, count in seen)
        for score in unseen:
            score *= mean
    return scores


_TRANSPOSED = nn.modules.conv._ConvTransposeNd


def input_squares(layer: Any, images: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares of each input channel (of a convolution) or feature (of a linear layer), [I]."""
    images = images.detach().to(widest_type(images.device)).square()
    if isinstance(layer, nn.Linear):
        return images.flatten(0, -2).sum(0)
    spatial = len(layer.kernel_size)
    batch = images if images.dim() == spatial + 2 else images[None]
    return batch.sum(dim=(0, *range(2, batch.dim())))


def per_weight(layer: Any, values: torch.Tensor) -> torch.Tensor:
    """Return the value [I] of each weight's input, in a shape that broadcasts to the layer's weight."""
    if isinstance(layer, nn.Linear):
        return values
    groups, spatial = layer.groups, len(layer.kernel_size)
    if isinstance(layer, _TRANSPOSED):  # weight [I, O / groups, ...]
        return values.view(-1, *[1] * (spatial + 1))
    outputs = layer.weight.shape[0]  # weight [O, I / groups, ...]
    by_group = values.view(groups, -1).repeat_interleave(outputs // groups, 0)
    return by_group.view(outputs, -1, *[1] * spatial)


@exact()
def gradient_scores(
    module: nn.Module, names: Collection[str], loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batches: Batches,
) -> Scores:  # fmt: skip
    """Return |weight x gradient| of the mean loss over all images of `batches`, in eval mode.

    loss: (images, labels) -> the mean loss of a batch, which depends on `module`. Raises UserError if a gradient is not
    finite.
    """
    parameters = maskable(module)
    chosen = [parameters[name] for name in names]
    required = [parameter.requires_grad for parameter in chosen]
    sums = [torch.zeros_like(parameter, dtype=widest_type(parameter.device)) for parameter in chosen]
    count = 0
    try:
        for parameter in chosen:
            parameter.requires_grad_(True)
        with torch.enable_grad(), evaluating(module):
            for images, labels in batches:
                gradients = torch.autograd.grad(loss(images, labels) * len(labels), chosen, allow_unused=True)
                count += len(labels)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total += gradient
    finally:
        for parameter, need in zip(chosen, required, strict=True):
            parameter.requires_grad_(need)
    if not all(bool(total.isfinite().all()) for total in sums):
        raise UserError("The gradients of the source model are not finite: it cannot be pruned by snip.")
    return {
        name: (parameter.detach().to(total.dtype) * total / count).abs().cpu()
        for name, parameter, total in zip(names, chosen, sums, strict=True)
    }


def keep_in_each(scores: Scores, counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return masks that keep the `counts` highest scores of each parameter; the first of equal ones."""
    bits = {}
    for name, score in scores.items():
        bit = torch.zeros(score.numel(), dtype=torch.bool)
        bit[score.flatten().argsort(descending=True, stable=True)[: counts[name]]] = True
        bits[name] = bit.view(score.shape)
    return bits


def keep_overall(scores: Scores, count: int) -> dict[str, torch.Tensor]:
    """Return masks that keep the `count` highest scores of all parameters; the first of equal ones."""
    flat = torch.cat([score.flatten().double() for score in scores.values()])
    bit = torch.zeros(flat.numel(), dtype=torch.bool)
    bit[flat.argsort(descending=True, stable=True)[:count]] = True
    pieces = bit.split([score.numel() for score in scores.values()])
    return {name: piece.view(score.shape) for (name, score), piece in zip(scores.items(), pieces, strict=True)}

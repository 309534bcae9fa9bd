"""Which weights a data set uses: the relevance of ReMoS.

Zhang et al., "ReMoS: Reducing Defect Inheritance in Transfer Learning via Relevant Model Slicing" (ICSE 2022). A weight
is relevant if images of the target activate the channels that it connects, and irrelevant if they do not although it is
large. Irrelevant weights are removed before fine-tuning, because they carry what the source model knows beyond the
target, defects included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from seam.errors import UserError
from seam.masks.layers import maskable
from seam.masks.scores import per_weight
from seam.models.surgery import evaluating
from seam.models.uses import given
from seam.precision import exact

Frequencies = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by convolution: of its input and its output channels
CONVOLUTION = nn.modules.conv._ConvNd
TRANSPOSED = nn.modules.conv._ConvTransposeNd


@exact()
@torch.inference_mode()
def coverage_frequencies(
    module: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], threshold: float = 0.5
) -> Frequencies:
    """Return for how many images each input and output channel of each convolution is covered.

    The values of a layer are scaled to 0..1 for each image. A channel is covered if its mean exceeds `threshold`.
    """
    frequencies: Frequencies = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, by_name: dict[str, Any], output: torch.Tensor) -> None:
            values = given(inputs, by_name)[0], output
            new = tuple(covered(each, threshold).sum(0).cpu() for each in values)
            old = frequencies.get(name, (0, 0))
            frequencies[name] = (old[0] + new[0], old[1] + new[1])

        return hook

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, CONVOLUTION)}
    hooks = [layer.register_forward_hook(note(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with evaluating(module):
            for images, _ in batches:
                module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return frequencies


def covered(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return whether each channel of each image's values [B, C, ...] is covered, bool [B, C].

    An image whose values are all equal covers no channel.
    """
    flat = values.float().flatten(1)
    low, high = flat.min(1).values, flat.max(1).values
    means = values.float().flatten(2).mean(2)
    scaled = (means - low[:, None]) / (high - low)[:, None]
    return scaled > threshold  # NaN is not


def relevant_bits(module: nn.Module, frequencies: Frequencies, ratio: float) -> dict[str, torch.Tensor]:
    """Return masks of the convolutions' weights that are False for the share `ratio` of the least relevant ones.

    Relevance is the rank of a weight's coverage, the sum of the frequencies of its input and output channel, less the
    rank of its magnitude; both are ranks among the weights of all convolutions, from the lowest. Weights of equal
    coverage have one rank. Raises UserError if the module has no convolution.
    """
    parameters = maskable(module)
    names = [name for name in (f"{layer}.weight" for layer in frequencies) if name in parameters]
    if not names:
        raise UserError("The source model has no convolution, which the student remos needs: take it out of students.")
    sums = []
    for name in names:
        layer = module.get_submodule(name.removesuffix(".weight"))
        inputs, outputs = frequencies[name.removesuffix(".weight")]
        weight = parameters[name]
        summed = per_output(layer, outputs) + per_weight(layer, inputs)
        sums.append(summed.expand(weight.shape).flatten())
    coverage = torch.cat(sums)
    magnitude = torch.cat([parameters[name].detach().abs().cpu().flatten() for name in names])
    _, place, counts = coverage.unique(return_inverse=True, return_counts=True)
    coverage_rank = (counts.cumsum(0) - counts)[place]
    magnitude_rank = torch.empty_like(coverage_rank)
    magnitude_rank[magnitude.argsort(stable=True)] = torch.arange(len(magnitude))
    relevance = coverage_rank - magnitude_rank
    bit = torch.ones(len(relevance), dtype=torch.bool)
    bit[relevance.argsort(stable=True)[: round(ratio * len(relevance))]] = False
    pieces = bit.split([parameters[name].numel() for name in names])
    return {name: piece.view(parameters[name].shape) for name, piece in zip(names, pieces, strict=True)}


def per_output(layer: Any, values: torch.Tensor) -> torch.Tensor:
    """Return the value [O] of each weight's output channel, in a shape that broadcasts to the layer's weight."""
    spatial = [1] * len(layer.kernel_size)
    if not isinstance(layer, TRANSPOSED):
        return values.view(-1, 1, *spatial)
    by_group = values.view(layer.groups, -1).repeat_interleave(layer.in_channels // layer.groups, 0)
    return by_group.view(layer.in_channels, -1, *spatial)  # weight [I, O / groups, ...]

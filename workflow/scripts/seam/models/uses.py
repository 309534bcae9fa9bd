"""How often a model uses each weight for one image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def count_uses(module: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Return {name: uses} of the weights of all convolutions and linear layers, for one of `images` [B, 3, H, W].

    A use is a multiply-accumulate: a convolution uses each weight once for each place of its output (of its input, if
    it is transposed), a linear layer once for each input vector, an attention layer once for each token. Uses add up
    if the model calls a layer several times, or if several layers share a weight, which has the name that it has in
    `named_parameters`. A layer that the model does not call has none. The module stays as it is.
    """
    uses: dict[str, float] = {}
    count = len(images)
    names: dict[torch.Tensor | None, str] = {weight: name for name, weight in module.named_parameters()}

    def add(weight: torch.Tensor | None, times: float) -> None:
        if weight in names:  # an attention layer has some of its projections only
            uses[names[weight]] = uses.get(names[weight], 0.0) + times / count

    def note(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(layer, nn.MultiheadAttention):
            tokens = math.prod(inputs[0].shape[:-1])
            projections = layer.in_proj_weight, layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
            for weight in (*projections, layer.out_proj.weight):
                add(weight, tokens)
            return
        if isinstance(layer, nn.Linear):
            times = math.prod(output.shape[:-1])
        else:
            assert isinstance(layer, _ConvNd)
            places = inputs[0] if isinstance(layer, _ConvTransposeNd) else output
            times = places[:, 0].numel()
        add(layer.weight, times)

    _run_with_hooks(module, images, note)
    return uses


def calls_of(module: nn.Module, images: torch.Tensor) -> list[str]:
    """Return the names of the weights of convolutions and linear layers, in the order in which the model calls them."""
    names: list[str] = []

    def note(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        names.append(f"{name}.weight" if name else "weight")

    _run_with_hooks(module, images, note)
    return names


def input_shapes(module: nn.Module, images: torch.Tensor) -> dict[str, list[tuple[int, ...]]]:
    """Return {layer: the shape of its input in each call, without the images} of convolutions and linear layers."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(layer, nn.MultiheadAttention):
            shapes.setdefault(name, []).append(tuple(inputs[0].shape[1:]))

    _run_with_hooks(module, images, note)
    return shapes


def _run_with_hooks(module: nn.Module, images: torch.Tensor, note: Callable[..., None]) -> None:
    """Run the module, and call `note` with the name, layer, inputs and outputs of each call of a layer."""

    def called(name: str, layer: nn.Module, inputs: Any, by_name: dict[str, Any], output: Any) -> None:
        note(name, layer, inputs or tuple(by_name.values()), output)

    hooks = [
        layer.register_forward_hook(partial(called, name), with_kwargs=True)
        for name, layer in module.named_modules()
        if isinstance(layer, (_ConvNd, nn.Linear, nn.MultiheadAttention))
    ]
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()  # draws no random numbers
    try:
        with torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes.items():
            layer.training = training

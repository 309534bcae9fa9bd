"""The biases of a masked network: a search can train them beside the masks.

Removing weights moves the mean of each channel. Masks can correct that only by removing other weights, and a bias by
one number. What a search adds to the biases of a layer is called its shift. A result stores the shifts of the source
model's own layers, in which no batch norm is folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from seam.masks.layers import MASKED_LAYERS
from seam.masks.masks import Masks
from seam.models.folding import Folded

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


class Biases:
    """The biases of normalisation layers, convolutions and linear layers, for an optimizer.

    values: {layer of the source model: its biases}. Batch norm that is folded into a convolution has the biases there.
    A bias with a mask is trained while it is kept.
    """

    def __init__(self, module: nn.Module, masks: Masks) -> None:
        """masks: those on `module`, whose weights the values of layers without batch norm are."""
        self.masks = masks
        self.values: dict[str, torch.Tensor] = {}
        self.masked: dict[str, str] = {}  # {layer: its bias, that has a mask and no batch norm}
        self._leaves: list[torch.Tensor] = []  # where the backward pass leaves gradients
        self._shared: list[tuple[torch.Tensor, torch.Tensor]] = []  # (a parameter with a mask, the value behind it)
        self._hooks: list[Any] = []
        norms = {layer.convolution: name for name, layer in module.named_modules() if isinstance(layer, Folded)}
        for name, layer in module.named_modules():
            bias, parameter = getattr(layer, "bias", None), f"{name}.bias" if name else "bias"
            if not isinstance(bias, torch.Tensor) or not isinstance(layer, (*NORMS, *MASKED_LAYERS)):
                continue
            if parameter in masks.parameters:
                value = masks.shifts.get(parameter)
                if value is None:
                    self.masked[name], value = parameter, masks.weights[parameter]
                self._shared.append((bias, value))
            elif (isinstance(layer, NORMS) or name in norms) and not any(bias is leaf for leaf in self._leaves):
                value = bias
            else:  # no output depends on it, or another layer has the same one
                continue
            self.values[norms.get(name, name)] = value
            self._leaves.append(bias)
        self.initial = {name: value.detach().clone() for name, value in self.values.items()}

    def zero_grad(self) -> None:
        """Free all gradients."""
        for tensor in (*self.values.values(), *self._leaves):
            tensor.grad = None

    @torch.no_grad()
    def clear_removed(self) -> None:
        """Set the gradients of biases that masks remove to zero."""
        for layer, parameter in self.masked.items():
            value = self.values[layer]
            if value.grad is not None:
                value.grad.mul_(self.masks.values[parameter] > 0)

    def train(self, enabled: bool = True) -> None:
        """Let the backward pass compute the gradients of the biases, or not."""
        for leaf in self._leaves:
            leaf.requires_grad_(enabled)
        for hook in self._hooks:
            hook.remove()
        # `Masks.updated` takes the gradients of parameters with masks; its hooks are added later and run after these.
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(_copy_gradient, value))
            for parameter, value in (self._shared if enabled else [])
        ]

    @torch.no_grad()
    def shifts(self) -> dict[str, torch.Tensor]:
        """Return {layer of the source model: what was added to its biases} on the CPU; 0 for a removed bias."""
        shifts = {name: value - self.initial[name] for name, value in self.values.items()}
        for layer, parameter in self.masked.items():
            shifts[layer] *= self.masks.values[parameter] > 0
        return {name: shift.cpu() for name, shift in shifts.items()}

    @torch.no_grad()
    def add(self, shifts: Mapping[str, torch.Tensor]) -> None:
        """Set the biases to the source model's with these shifts. The masks must be applied afterwards."""
        for name, value in self.values.items():
            value.copy_(self.initial[name] + shifts[name].to(value.device))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the biases themselves, not copies."""
        return {name: value.detach() for name, value in self.values.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set the biases to those of `state`, and apply the masks."""
        for name, value in self.values.items():
            value.copy_(state[name])
        self.masks.apply()


def _copy_gradient(value: torch.Tensor, parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    value.grad = parameter.grad.clone()


@torch.no_grad()
def add_shifts(module: nn.Module, shifts: Mapping[str, torch.Tensor]) -> None:
    """Add shifts to the biases of a source model, in place; without a bias, batch norm has them in its mean.

    shifts: {layer: [channels]}. Raises ValueError if they do not fit the module.
    """
    layers = dict(module.named_modules(remove_duplicate=False))
    for name, shift in shifts.items():
        layer = layers.get(name)
        if isinstance(layer, Folded):  # its biases are in the convolution, and those with a mask once more beside it
            layer = layers[layer.convolution]
            if isinstance(beside := getattr(layer, "batch_norm_shift", None), torch.Tensor):
                beside.add_(shift)
        if not isinstance(layer, (*NORMS, *MASKED_LAYERS)):
            raise ValueError(f"it has a shift of {name}, which is no layer with a bias")
        place: Any = getattr(layer, "bias", None)
        scale: Any = 1.0
        variance = getattr(layer, "running_var", None)
        if place is None and variance is not None:
            place, scale = layer.running_mean, -(variance + layer.eps).rsqrt()
        if place is None or place.shape != shift.shape or not shift.is_floating_point() or not shift.isfinite().all():
            raise ValueError(f"the shift of {name} of shape {tuple(shift.shape)} does not fit the model")
        place.add_(shift / scale)

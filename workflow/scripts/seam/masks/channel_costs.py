"""What a network costs with some of its channels removed: weights, multiply-accumulates or milliseconds.

The weights of a layer between two groups are proportional to the product of their widths. So what a channel costs
depends on how many others are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from seam.masks.channels import ChannelGroups, gate_of, weight_axes
from seam.masks.layers import maskable

Uses = Mapping[str, float]  # how often each weight is used for one image, by parameter


@dataclass(frozen=True)
class _Layer:
    """The cost of a layer: `price` x input channels kept x output channels kept, or one of both if the other is None.

    price: of one pair of channels.
    """

    inputs: torch.Tensor | None
    outputs: torch.Tensor | None
    price: float


class ChannelCost:
    """A cost that is a sum over layers, each of which is proportional to its input and its output channels.

    whole: what the network costs with all its channels.
    """

    def __init__(self, layers: list[_Layer], fixed: float, count: int) -> None:
        """fixed: what everything else costs. count: the number of units."""
        self.layers, self.fixed, self.count = layers, fixed, count
        self.whole = self.cost(torch.ones(count)).item()

    def cost(self, kept: torch.Tensor) -> torch.Tensor:
        """Return what is left with these units, float64 []; differentiable in `kept`, a number from 0 to 1 for each."""
        kept = kept.double()
        total = kept.new_full((), self.fixed)
        for layer in self.layers:
            widths = [gate_of(kept, units).sum() for units in (layer.inputs, layer.outputs) if units is not None]
            total = total + layer.price * torch.stack(widths).prod()
        return total

    def share(self, kept: torch.Tensor) -> float:
        """Return what is left with these units, bool [units], as a share of the whole."""
        return self.cost(kept).item() / self.whole

    def prices(self, kept: torch.Tensor) -> torch.Tensor:
        """Return how much the share falls for each unit that is removed, float32 [units], at the widths of `kept`."""
        with torch.enable_grad():
            units = kept.double().detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.cost(units), units)
        return (gradient / self.whole).float()


def weights_cost(module: nn.Module, groups: ChannelGroups) -> ChannelCost:
    """Return the weights and biases of convolutions and linear layers as a cost: each counts 1."""
    return _cost(module, groups, dict.fromkeys(maskable(module), 1.0))


def macs_cost(module: nn.Module, groups: ChannelGroups, uses: Uses) -> ChannelCost:
    """Return the multiply-accumulates (MACs) for one image as a cost. uses: of each weight of the module."""
    return _cost(module, groups, uses)


def _cost(module: nn.Module, groups: ChannelGroups, price: Uses) -> ChannelCost:
    """Return the sum over all weights of the price of each, by parameter."""
    layers, fixed = [], 0.0
    for name, parameter in maskable(module).items():
        owner, _, key = name.rpartition(".")
        each, units = price.get(name, 0.0), groups.layers.get(owner)
        if units is None:
            fixed += each * parameter.numel()
        elif key == "bias":
            layers.append(_Layer(None, units.outputs, each))
        else:
            out_axis, in_axis = weight_axes(module.get_submodule(owner))
            outputs, inputs = (
                channels if axis is not None else None
                for axis, channels in ((out_axis, units.outputs), (in_axis, units.inputs))
            )
            pairs = parameter[0].numel() if inputs is None else parameter.numel() / len(inputs)
            if outputs is not None and inputs is not None:
                pairs = parameter.numel() / len(inputs) / len(outputs)
            layers.append(_Layer(inputs, outputs, each * pairs))
    return ChannelCost([layer for layer in layers if layer.price], fixed, groups.count)


def keep_best(
    worth: torch.Tensor, groups: ChannelGroups, share: Callable[[torch.Tensor], float], most: float, multiple: int
) -> torch.Tensor:
    """Return which units to keep, bool [units], so that `share` of them is at most `most`.

    The units of highest `worth` [units] are kept, in each group a multiple of `multiple` (or all of them, at least as
    many as `least_widths` says). One limit on the worth, found by bisection, holds for all groups.
    """
    limits = worth.sort().values
    parts = groups.split(worth)

    def above(limit: torch.Tensor) -> torch.Tensor:
        kept = []
        for part in parts.values():
            unit = min(multiple, len(part))
            count = max(unit, int((part >= limit).sum() / unit + 0.5) * unit)
            bits = torch.zeros(len(part), dtype=torch.bool)
            bits[part.topk(min(count, len(part))).indices] = True
            kept.append(bits)
        return torch.cat(kept)

    low, high = 0, len(limits)  # of limits[low:high], the first that meets the budget is searched; none may
    while low < high:
        middle = (low + high) // 2
        if share(above(limits[middle])) <= most:
            high = middle
        else:
            low = middle + 1
    return above(limits[low] if low < len(limits) else limits[-1] + 1)


def fewest(groups: ChannelGroups, multiple: int) -> torch.Tensor:
    """Return the smallest choice of units that `keep_best` makes, bool [units]."""
    return torch.cat([torch.arange(size) < min(multiple, size) for size in groups.sizes.values()])

"""What a network costs with some of its channels removed: weights, multiply-accumulates or milliseconds.

The weights of a layer between two groups are proportional to the product of their widths. So what a channel costs
depends on how many others are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from seam.errors import UserError
from seam.masks.channels import ChannelGroups, LayerUnits, gate_of, weight_axes
from seam.masks.layers import maskable

Uses = Mapping[str, float]  # how often each weight is used for one image, by parameter
Widths = Mapping[str, Sequence[int]]  # by group, ascending: how many of its units may be kept

# A width pays unless a larger one takes less than this share of the time that its channels should. If the budget cannot
# be met with the widths that pay, the next share is tried.
PAYS = (0.4, 0.2, 0.1, 0.05, 0.0)


class Cost(Protocol):
    """What a network costs with some of its channels.

    total: what it costs with all of them, in the unit of a budget (weights, MACs, milliseconds).
    """

    total: float

    def share(self, kept: torch.Tensor) -> float:
        """Return what is left with these units, bool [units], as a share of the whole."""
        ...

    def prices(self, kept: torch.Tensor) -> torch.Tensor:
        """Return how much the share falls for each unit that is removed, float32 [units], at the widths of `kept`."""
        ...

    def widths(self, multiple: int, most: float = 0.0, branches: bool = False) -> Widths:
        """Return the widths of each group that a search may choose: multiples of `multiple`, and all units.

        most: the share of the cost that is to be met. branches: whether branches may leave, so that their widths are 0
        and 1.
        """
        ...


@dataclass(frozen=True)
class _Layer:
    """The cost of a layer: `price` x input channels kept x output channels kept, or one of both if the other is None.

    price: of one pair of channels. branches: the units of the branches without which the layer costs nothing.
    """

    inputs: torch.Tensor | None
    outputs: torch.Tensor | None
    price: float
    branches: tuple[int, ...]


class ChannelCost:
    """A cost that is a sum over layers, each of which is proportional to its input and its output channels.

    total: what the network costs with all its channels.
    """

    def __init__(self, layers: list[_Layer], fixed: float, groups: ChannelGroups) -> None:
        """fixed: what everything else costs."""
        self.layers, self.fixed, self.groups = layers, fixed, groups
        self.total = self.cost(torch.ones(groups.count)).item()

    def cost(self, kept: torch.Tensor) -> torch.Tensor:
        """Return what is left with these units, float64 []; differentiable in `kept`, a number from 0 to 1 for each."""
        kept = kept.double()
        total = kept.new_full((), self.fixed)
        for layer in self.layers:
            widths = [gate_of(kept, units).sum() for units in (layer.inputs, layer.outputs) if units is not None]
            widths += [kept[unit] for unit in layer.branches]
            total = total + layer.price * torch.stack(widths).prod()
        return total

    def share(self, kept: torch.Tensor) -> float:
        """Return what is left with these units, bool [units], as a share of the whole."""
        return self.cost(kept).item() / self.total

    def prices(self, kept: torch.Tensor) -> torch.Tensor:
        """Return how much the share falls for each unit that is removed, float32 [units], at the widths of `kept`."""
        with torch.enable_grad():
            units = kept.double().detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.cost(units), units)
        return (gradient / self.total).float()

    def widths(self, multiple: int, most: float = 0.0, branches: bool = False) -> Widths:
        """Return the multiples of `multiple`, and the number of all units, of each group; 0 and 1 of a branch."""
        widths = {name: multiples(size, multiple) for name, size in self.groups.sizes.items()}
        return {**widths, **_of_branches(self.groups, branches)}


class ChannelTime:
    """The milliseconds of a batch in an engine, by a table of times of single layers at several widths.

    Between the widths of the table, times are interpolated. A layer with fewer channels counts at most what it takes
    with more: engines compute channels in blocks, and an incomplete block can even take longer than a full one.
    """

    def __init__(self, groups: ChannelGroups, table: Mapping[str, Any]) -> None:
        """table: as `seam.cost.channel_costs` measures it. Raises UserError if it is of another network."""
        self.groups, self.scale, self.fixed = groups, float(table["scale"]), float(table["fixed_ms"])
        if unknown := set(table["layers"]) - set(groups.layers):
            raise UserError(f"The table of layer costs has no layer {min(unknown)} of this model: delete the table.")
        self.layers = [_TimedLayer(groups, groups.layers[name], times) for name, times in table["layers"].items()]
        self.total = self.milliseconds(torch.ones(groups.count, dtype=torch.bool))

    def milliseconds(self, kept: torch.Tensor) -> float:
        """Return the time with these units, bool [units]."""
        return float(self._times(self._counts(kept)[None])[0])

    def share(self, kept: torch.Tensor) -> float:
        """Return what is left with these units, bool [units], as a share of the whole."""
        return self.milliseconds(kept) / self.total

    def prices(self, kept: torch.Tensor) -> torch.Tensor:
        """Return how much the share falls for each unit that is removed, float32 [units], at the widths of `kept`.

        All units of a group have the same price. It is the highest of those on the way to any smaller width, because
        one block of channels may have to leave whole before any time is saved.
        """
        counts, rows, places = self._counts(kept), [], []
        for place, (name, size) in enumerate(self.groups.sizes.items()):
            for width in range(0 if name in self.groups.branches else 1, min(int(counts[place]), size)):
                rows.append(counts.copy())
                rows[-1][place] = width
                places.append(place)
        prices = np.zeros(len(counts))
        if rows:
            saved = float(self._times(counts[None])[0]) - self._times(np.stack(rows))
            each = saved / np.array([counts[place] - row[place] for place, row in zip(places, rows, strict=True)])
            np.maximum.at(prices, places, each)
        sizes = torch.tensor(list(self.groups.sizes.values()))
        return torch.from_numpy(prices / self.total).float().repeat_interleave(sizes)

    def widths(self, multiple: int, most: float = 0.0, branches: bool = False) -> Widths:
        """Return the widths of each group that pay, among the multiples of `multiple`, and the number of all units.

        A width does not pay if a larger one costs little more, that is, less than PAYS of what it would cost if time
        grew with the channels. The other groups have all their channels. What a branch saves does not matter here.
        """
        chosen: Widths = {}
        for pays in PAYS:
            chosen = {**self._paying_widths(multiple, pays), **_of_branches(self.groups, branches)}
            if self.share(fewest(self.groups, chosen)) <= most:
                break
        return chosen

    def _paying_widths(self, multiple: int, pays: float) -> Widths:
        all_units = self._counts(torch.ones(self.groups.count, dtype=torch.bool))
        chosen = {}
        for place, (name, size) in enumerate(self.groups.sizes.items()):
            candidates = multiples(size, multiple)
            rows = np.repeat(all_units[None], len(candidates), 0)
            rows[:, place] = candidates
            touched = [layer for layer in self.layers if layer.reads[place] or layer.writes[place]]
            times = sum((layer.times(rows) for layer in touched), np.zeros(len(rows)))
            chosen[name] = [
                width
                for width, time in zip(candidates, times, strict=True)
                if not any(
                    more > width and other - time <= pays * time * (more / width - 1)
                    for more, other in zip(candidates, times, strict=True)
                )
            ]
        return chosen

    def _counts(self, kept: torch.Tensor) -> np.ndarray:
        return np.array([float(units.sum()) for units in self.groups.split(kept.double()).values()])

    def _times(self, counts: np.ndarray) -> np.ndarray:
        """Return the milliseconds for each row of numbers of units, [N, groups] -> [N]."""
        return self.fixed + self.scale * sum((layer.times(counts) for layer in self.layers), np.zeros(len(counts)))


class _TimedLayer:
    """The times of a layer as a function of the numbers of units in each group.

    reads, writes: [groups], the input and output channels of the layer for each unit. fixed: (input, output) channels
    that stay. branches: the places among the groups of the branches without which the layer takes no time.
    """

    def __init__(self, groups: ChannelGroups, units: LayerUnits, times: Mapping[str, Any]) -> None:
        self.reads, inputs = _channels_per_unit(groups, units.inputs)
        self.writes, outputs = _channels_per_unit(groups, units.outputs)
        first = np.cumsum([0, *groups.sizes.values()])
        self.branches = [place for place in range(len(groups.sizes)) if first[place] in units.branches]
        self.fixed = inputs, outputs
        self.axes = np.array(times["inputs"], float), np.array(times["outputs"], float)
        table = np.array(times["ms"], float)[::-1, ::-1]
        for axis in (0, 1):
            table = np.minimum.accumulate(table, axis)
        self.table = table[::-1, ::-1]

    def times(self, counts: np.ndarray) -> np.ndarray:
        """Return the milliseconds for each row of numbers of units, [N, groups] -> [N]."""
        inputs, outputs = counts @ self.reads + self.fixed[0], counts @ self.writes + self.fixed[1]
        (row, down), (column, right) = _place(self.axes[0], inputs), _place(self.axes[1], outputs)
        below, beside = np.minimum(row + 1, len(self.axes[0]) - 1), np.minimum(column + 1, len(self.axes[1]) - 1)
        upper = self.table[row, column] * (1 - right) + self.table[row, beside] * right
        lower = self.table[below, column] * (1 - right) + self.table[below, beside] * right
        return (upper * (1 - down) + lower * down) * counts[:, self.branches].prod(1)


def _channels_per_unit(groups: ChannelGroups, units: torch.Tensor) -> tuple[np.ndarray, float]:
    """Return ([groups], a layer's channels for each unit of a group; its channels that stay)."""
    counts = torch.bincount(units[units >= 0], minlength=groups.count).double()
    return np.array([float(part.mean()) for part in groups.split(counts).values()]), float((units < 0).sum())


def _place(axis: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (index of the point of `axis` below each value, the share of the way to the next point)."""
    if len(axis) == 1:
        return np.zeros(len(values), int), np.zeros(len(values))
    index = np.clip(np.searchsorted(axis, values, "right") - 1, 0, len(axis) - 2)
    return index, np.clip((values - axis[index]) / (axis[index + 1] - axis[index]), 0.0, 1.0)


def _of_branches(groups: ChannelGroups, removable: bool) -> Widths:
    return dict.fromkeys(groups.branches, (0, 1) if removable else (1,))


def multiples(size: int, multiple: int) -> list[int]:
    """Return the multiples of `multiple` below `size`, and `size`.

    >>> multiples(20, 8)
    [8, 16, 20]
    """
    return [*range(multiple, size, multiple), size]


def weights_cost(module: nn.Module, groups: ChannelGroups, exclude: Collection[str] = ()) -> ChannelCost:
    """Return the weights and biases of convolutions and linear layers as a cost: each counts 1.

    exclude: parameters that do not count, such as those that `unused_parameters` finds.
    """
    return _cost(module, groups, dict.fromkeys(maskable(module, exclude), 1.0))


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
            layers.append(_Layer(None, units.outputs, each, units.branches))
        else:
            out_axis, in_axis = weight_axes(module.get_submodule(owner))
            outputs, inputs = (
                channels if axis is not None else None
                for axis, channels in ((out_axis, units.outputs), (in_axis, units.inputs))
            )
            pairs = parameter[0].numel() if inputs is None else parameter.numel() / len(inputs)
            if outputs is not None and inputs is not None:
                pairs = parameter.numel() / len(inputs) / len(outputs)
            layers.append(_Layer(inputs, outputs, each * pairs, units.branches))
    return ChannelCost([layer for layer in layers if layer.price], fixed, groups)


def keep_best(
    worth: torch.Tensor, groups: ChannelGroups, share: Callable[[torch.Tensor], float], most: float, widths: Widths
) -> torch.Tensor:
    """Return which units to keep, bool [units], so that `share` of them is at most `most`.

    The units of highest `worth` [units] are kept, in each group as many as one of its `widths` says. One limit on the
    worth, found by bisection, holds for all groups.
    """
    limits = worth.sort().values
    parts = groups.split(worth)

    def above(limit: torch.Tensor) -> torch.Tensor:
        kept = []
        for name, part in parts.items():
            count = int((part >= limit).sum())
            nearest = max(widths[name], key=lambda width: (-abs(width - count), width))
            bits = torch.zeros(len(part), dtype=torch.bool)
            bits[part.topk(nearest).indices] = True
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


def fewest(groups: ChannelGroups, widths: Widths) -> torch.Tensor:
    """Return the smallest choice of units that `keep_best` makes, bool [units]."""
    return torch.cat([torch.arange(size) < widths[name][0] for name, size in groups.sizes.items()])

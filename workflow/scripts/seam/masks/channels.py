"""Masks on channels: one real number for all channels of a network that can only be removed together.

A residual branch, which can be removed as a whole, has a mask as well.

A removed channel is exactly zero in the masked network, not only where it is written but wherever it is read: the mask
multiplies the weights and biases of the last layer that writes it (a batch norm, or a convolution or linear layer
without one), and operations that would turn zero into something else keep it from being masked. So `seam.masks.shrink`
can take it out of every layer, and the outputs stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from seam.errors import UserError
from seam.masks.branch_trials import removable_branches
from seam.masks.layouts import BATCH_NORMS, TRANSPOSED, Channels, LayerChannels, follow_channels

NEEDED = "the model's code needs its layers"


@dataclass(frozen=True)
class LayerUnits:
    """The units that a layer's channels belong to, int64; -1: the channel stays.

    positions: how often each of its weights is used for one image. gated: whether masks set its outputs to zero.
    branches: the units of the branches that it lies in; ends: of those that its zeros make zero.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    positions: int
    gated: bool
    branches: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class ChannelGroups:
    """The channels of a network that can be removed.

    A unit is a set of channels, one or more in each of several layers, that can only be removed together; it has one
    mask. A group is a list of units in the same layers, such as the channels of a residual stream. A residual branch
    that can be removed as a whole is a group of one unit, which may have none left.

    sizes: {name: number of units} of the groups, each named after the first layer that writes its channels; a branch is
    named after the module that its layers belong to. layers: {name: units}, which are numbered through all groups.
    reasons: {layer or operation: why channels there stay}. branches: {name: its layers} of the groups that are
    branches, which come last. staying: the names of branches that the model's own code needs.
    """

    sizes: dict[str, int]
    layers: dict[str, LayerUnits]
    reasons: dict[str, str]
    branches: dict[str, tuple[str, ...]] = field(default_factory=dict)
    staying: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """The number of units."""
        return sum(self.sizes.values())

    def unit_sizes(self) -> torch.Tensor:
        """Return how many channels of a layer each unit stands for, float32 [units].

        They are 1, and for a branch the channels that its last layers write.
        """
        sizes = torch.ones(self.count)
        for units in self.layers.values():
            for unit in units.ends:
                sizes[unit] = len(units.outputs)
        return sizes

    def joined(self, masks: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the masks of all groups as one tensor [units]."""
        return torch.cat([masks[name] for name in self.sizes])

    def split(self, units: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return {group: its part} of a tensor [units]."""
        return dict(zip(self.sizes, units.split(list(self.sizes.values())), strict=True))

    def completed(self, masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the masks with those of branches that they do not name, which are kept."""
        return dict(masks) | {name: torch.ones(1, dtype=torch.bool) for name in self.branches if name not in masks}

    def removed_branches(self, masks: Mapping[str, torch.Tensor]) -> list[str]:
        """Return the names of the branches that masks, {group: bool [units]}, remove."""
        return [name for name in self.branches if not masks[name].any()]

    def sentences(self) -> list[str]:
        """Return one sentence for each layer or operation whose channels stay, and for each branch that stays."""
        channels = [f"Channels that {place} needs stay: {reason}." for place, reason in self.reasons.items()]
        return channels + [f"The residual branch {name} stays: {NEEDED}." for name in self.staying]


def find_groups(module: nn.Module, images: torch.Tensor) -> ChannelGroups:
    """Return the groups of channels of `module` that can be removed.

    images: [B, 3, H, W], of which the first is used. The result depends on the architecture alone. Raises UserError if
    the module cannot be traced, or if no channel can be removed.
    """
    channels = follow_channels(module, images[:1])
    removable = removable_branches(module, channels.branches, images[:1])
    places = _places(channels)
    members: dict[tuple, list[int]] = {}  # numbers of units, by the places where they occur
    for number, where in places.items():
        members.setdefault(tuple(sorted(where)), []).append(number)
    sizes: dict[str, int] = {}
    unit_of = {0: -1}
    for numbers in members.values():
        writer = next(name for name, layer in channels.layers.items() if numbers[0] in layer.outputs)
        name, copy = writer, 2
        while name in sizes:
            name, copy = f"{writer}#{copy}", copy + 1
        first = sum(sizes.values())
        sizes[name] = len(numbers)
        unit_of |= {number: first + place for place, number in enumerate(numbers)}
    if not sizes and not removable:
        reason = next(iter(channels.reasons.items()), ("its architecture", "it has one layer"))
        raise UserError(
            f"No channel of the model can be removed ({reason[0]}: {reason[1]}): set granularity to weight."
        )
    branches: dict[str, tuple[str, ...]] = {}
    inside: dict[str, tuple[int, ...]] = dict.fromkeys(channels.layers, ())
    ends = inside.copy()
    for branch in removable:
        name, copy = branch.name, 2
        while name in sizes:
            name, copy = f"{branch.name}#{copy}", copy + 1
        unit = sum(sizes.values())
        sizes[name], branches[name] = 1, branch.layers
        for layer in inside.keys() & branch.layers:
            inside[layer] += (unit,)
        for layer in branch.last:
            ends[layer] += (unit,)
    layers = {name: _units(layer, unit_of, inside[name], ends[name]) for name, layer in channels.layers.items()}
    staying = tuple(branch.name for branch in channels.branches if branch not in removable)
    return ChannelGroups(sizes, layers, channels.reasons, branches, staying)


def _places(channels: Channels) -> dict[int, set[tuple[str, str]]]:
    """Return {number of channels that can be removed: (layer, role) pairs where they occur}, in order of appearance."""
    places: dict[int, set[tuple[str, str]]] = {}
    for name, layer in channels.layers.items():
        for role in ("outputs", "inputs"):
            for number in dict.fromkeys(getattr(layer, role).tolist()):
                if number:
                    places.setdefault(number, set()).add((name, role))
    return places


def _units(
    layer: LayerChannels, unit_of: Mapping[int, int], branches: tuple[int, ...], ends: tuple[int, ...]
) -> LayerUnits:
    inputs, outputs = (
        torch.from_numpy(np.array([unit_of[number] for number in ids.tolist()], np.int64))
        for ids in (layer.inputs, layer.outputs)
    )
    return LayerUnits(inputs, outputs, layer.positions, layer.gated, branches, ends)


def weight_axes(layer: nn.Module) -> tuple[int | None, int | None]:
    """Return the axes of a layer's weight along which its outputs and its inputs lie; None: along no axis of its own.

    The channels of a grouped convolution lie along the axis of the first of both alone.
    """
    if isinstance(layer, BATCH_NORMS):
        return 0, None
    grouped = getattr(layer, "groups", 1) > 1
    if isinstance(layer, TRANSPOSED):
        return (None, 0) if grouped else (1, 0)
    return (0, None) if grouped else (0, 1)


@dataclass(frozen=True)
class Gate:
    """What masks multiply a parameter by.

    units: of the parameter's numbers along `axis`, int64; -1: that of none. branches: the units of branches, whose
    masks multiply the whole parameter.
    """

    axis: int
    units: torch.Tensor
    branches: tuple[int, ...]

    def of(self, kept: torch.Tensor, dims: int) -> torch.Tensor:
        """Return the product of the masks `kept` [units], ready to multiply a parameter of `dims` dimensions."""
        gate = gate_of(kept, self.units.to(kept.device)).view([-1 if dim == self.axis else 1 for dim in range(dims)])
        for unit in self.branches:
            gate = gate * kept[unit]
        return gate


def gated_parameters(module: nn.Module, groups: ChannelGroups) -> dict[str, Gate]:
    """Return {parameter: gate} of those that masks multiply."""
    gated = {}
    for name, units in groups.layers.items():
        has_channels = units.gated and bool((units.outputs >= 0).any())
        if not has_channels and not units.ends:
            continue
        layer = module.get_submodule(name)
        out_axis, in_axis = weight_axes(layer)
        axes = {}
        if out_axis is not None:
            axes["weight"] = out_axis, units.outputs
        elif in_axis is not None:  # a grouped transposed convolution: whole groups go
            axes["weight"] = in_axis, units.inputs
        if layer.bias is not None:
            axes["bias"] = 0, units.outputs
        for key, (axis, channels) in axes.items():
            channels = channels if has_channels else torch.full_like(channels, -1)
            gated[f"{name}.{key}"] = Gate(axis, channels, units.ends)
    return gated


def gate_of(kept: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Return the masks `kept` [units] of channels with these units, and True or 1 for those that stay."""
    return torch.cat([kept, kept.new_ones(1)])[units]  # -1 is the last one


@torch.no_grad()
def mask_channels(module: nn.Module, groups: ChannelGroups, kept: torch.Tensor) -> nn.Module:
    """Set channels and branches of units that are not `kept`, bool [units], to zero, in place; return the module."""
    parameters = dict(module.named_parameters())
    for name, gate in gated_parameters(module, groups).items():
        parameter = parameters[name]
        parameter.mul_(gate.of(kept.to(parameter.device, parameter.dtype), parameter.dim()))
    return module


def removed_layers(groups: ChannelGroups, kept: torch.Tensor) -> list[str]:
    """Return the layers of the branches that masks `kept`, bool [units], remove."""
    gone = groups.removed_branches(groups.split(kept))
    return list(dict.fromkeys(layer for name in gone for layer in groups.branches[name]))


def require_channels(groups: ChannelGroups, kept: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless `kept` has masks of all groups, each of which keeps a unit if it is no branch."""
    for name, size in groups.sizes.items():
        if name not in kept or kept[name].shape != (size,) or kept[name].dtype != torch.bool:
            raise ValueError(f"the mask of the channels {name} is missing or has another size than {size}")
        if not kept[name].any() and name not in groups.branches:
            raise ValueError(f"no channel of {name} is left")
    if unknown := kept.keys() - groups.sizes.keys():
        raise ValueError(f"it has no channels {min(unknown)}")

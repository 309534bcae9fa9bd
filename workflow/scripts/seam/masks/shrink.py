"""Physical removal of channels and branches: a smaller dense network that computes what the masked one does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from seam.errors import UserError, first_line
from seam.log import log
from seam.masks.channels import ChannelGroups, gate_of, mask_channels, removed_layers, weight_axes
from seam.masks.layouts import BATCH_NORMS, CONVOLUTIONS, NORMS
from seam.models.removed import remove_layer, remove_layers
from seam.models.surgery import copy_module

TOLERANCE = 1e-5  # of the largest output, by which outputs may differ after removal


@torch.no_grad()
def shrink(module: nn.Module, groups: ChannelGroups, kept: torch.Tensor) -> nn.Module:
    """Remove the channels and branches of units that are not `kept`, bool [units], in place; return the module.

    Weights lose rows and columns, and keep all other numbers; the layers of a branch are replaced by `Removed`. The
    module computes what it does with these channels and branches set to zero (`mask_channels`).
    """
    kept = kept.cpu()
    removed = removed_layers(groups, kept)
    remove_layers(module, removed)
    for name, units in groups.layers.items():
        if name in removed:
            continue
        layer = module.get_submodule(name)
        outputs, inputs = (gate_of(kept, channels).nonzero().flatten() for channels in (units.outputs, units.inputs))
        out_axis, in_axis = weight_axes(layer)
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        for axis, channels in ((out_axis, outputs), (in_axis, inputs)):
            if axis is not None:
                weight = weight.index_select(axis, channels.to(weight.device))
        _set_parameter(layer, "weight", weight)
        for key in ("bias", "running_mean", "running_var"):
            value = getattr(layer, key, None)
            if isinstance(value, torch.Tensor):
                _set_parameter(layer, key, value.index_select(0, outputs.to(value.device)))
        _set_sizes(layer, len(inputs), len(outputs))
    return module


def _set_parameter(layer: nn.Module, key: str, value: torch.Tensor) -> None:
    old = getattr(layer, key)
    if isinstance(old, nn.Parameter):
        is_last = old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        value = nn.Parameter(value.contiguous(memory_format=layout), old.requires_grad)
    setattr(layer, key, value)


def _set_sizes(layer: nn.Module, inputs: int, outputs: int) -> None:
    if isinstance(layer, BATCH_NORMS):
        layer.num_features = outputs
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs
    else:
        layer_of_any_kind: nn.modules.conv._ConvNd = layer  # pyright: ignore[reportAssignmentType]
        if layer_of_any_kind.groups > 1:
            each = layer_of_any_kind.in_channels // layer_of_any_kind.groups
            layer_of_any_kind.groups = inputs // each
        layer_of_any_kind.in_channels, layer_of_any_kind.out_channels = inputs, outputs


@torch.no_grad()
def resize(module: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Give the layers of `module` the widths that the weights in `state` have, in place; return the module.

    Layers of removed branches, whose weights are empty, are replaced by `Removed`. The values are left to `load_state`,
    which also says what does not fit: layers whose weights differ in more than fewer channels stay as they are.
    """
    for name, layer in list(module.named_modules()):
        weight = state.get(f"{name}.weight")
        if not isinstance(weight, torch.Tensor):
            continue
        if not weight.numel() and isinstance(layer, (*CONVOLUTIONS, *BATCH_NORMS, *NORMS, nn.Linear)):
            remove_layer(module, name)
            continue
        if not isinstance(layer, (*CONVOLUTIONS, *BATCH_NORMS, nn.Linear)):
            continue
        old = layer.weight
        if not isinstance(old, torch.Tensor) or old.dim() != weight.dim() or old.shape == weight.shape:
            continue
        out_axis, in_axis = weight_axes(layer)
        sizes = enumerate(zip(weight.shape, old.shape, strict=True))
        if any(new > before or (new < before and axis not in (out_axis, in_axis)) for axis, (new, before) in sizes):
            continue
        inputs, outputs = (0 if axis is None else weight.shape[axis] for axis in (in_axis, out_axis))
        if isinstance(layer, CONVOLUTIONS):  # the axis that a grouped one lacks is in proportion to the other
            inputs = inputs or outputs * layer.in_channels // layer.out_channels
            outputs = outputs or inputs * layer.out_channels // layer.in_channels
        _set_parameter(layer, "weight", old.new_zeros(weight.shape))
        for key in ("bias", "running_mean", "running_var"):
            if isinstance(value := getattr(layer, key, None), torch.Tensor):
                _set_parameter(layer, key, value.new_zeros(outputs))
        _set_sizes(layer, inputs, outputs)
    return module


@torch.no_grad()
def removal_error(module: nn.Module, groups: ChannelGroups, kept: torch.Tensor, images: torch.Tensor) -> float:
    """Return by how much outputs for `images` differ between what is removed and zero, as a share of the largest."""
    masked = mask_channels(copy_module(module).eval(), groups, kept)(images)
    removed = shrink(copy_module(module).eval(), groups, kept)(images)
    if not masked.isfinite().all() or masked.shape != removed.shape:
        return float("inf")
    return float((masked - removed).abs().max() / masked.abs().max().clamp(min=1e-12))


def require_exact_removal(module: nn.Module, groups: ChannelGroups, kept: torch.Tensor, images: torch.Tensor) -> None:
    """Raise UserError unless the outputs for `images` are the same with these channels removed and with them zero."""
    try:
        error = removal_error(module, groups, kept, images)
    except Exception as failure:  # the model's code was written for its old widths, and can raise anything
        raise UserError(
            f"The model does not run without the removed channels ({first_line(failure)}): its code needs its own "
            "widths. Set granularity to weight."
        ) from failure
    log.info("removal of channels: outputs differ by %.1e of the largest", error)
    if not error <= TOLERANCE:
        raise UserError(
            f"Without the removed channels the model's outputs differ by {error:.1e} of the largest: its code uses "
            "the number of its channels. Set granularity to weight."
        )

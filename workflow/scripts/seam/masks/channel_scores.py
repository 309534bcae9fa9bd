"""Scores of channels that need no training images."""

from __future__ import annotations

import torch
from torch import nn

from seam.masks.channels import ChannelGroups, weight_axes
from seam.masks.layouts import BATCH_NORMS


@torch.no_grad()
def magnitude_scores(module: nn.Module, groups: ChannelGroups) -> torch.Tensor:
    """Return the magnitude of each unit, float32 [units]: the root of a sum over the layers that it belongs to.

    Each convolution or linear layer counts with the squared norm of the weights that write a channel and of those that
    read it, relative to the mean over its channels, so that no layer outweighs the others (Fang et al., "DepGraph",
    CVPR 2023).
    """
    total = torch.zeros(groups.count)
    for name, units in groups.layers.items():
        layer = module.get_submodule(name)
        if isinstance(layer, BATCH_NORMS):
            continue
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        out_axis, in_axis = weight_axes(layer)
        for axis, numbers in ((out_axis, units.outputs), (in_axis, units.inputs)):
            if axis is None or not (numbers >= 0).any():
                continue
            norms = weight.detach().cpu().float().movedim(axis, 0).flatten(1).square().sum(1)
            is_unit = numbers >= 0
            total.index_add_(0, numbers[is_unit], norms[is_unit] / norms.mean().clamp(min=1e-20))
    return total.sqrt()

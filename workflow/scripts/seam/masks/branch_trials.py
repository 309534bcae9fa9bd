"""Trials of residual branches: a branch is only removed from models that compute the same without it.

A trace does not show everything: a model's own code may read a layer's sizes, call its weights by a function, or
compute more within a layer than its type says. So each branch is removed from a copy, once before any search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from seam.masks.branches import Branch
from seam.models.removed import remove_layers
from seam.models.surgery import copy_module

TOLERANCE = 1e-5  # of the largest output


@torch.no_grad()
def removable_branches(module: nn.Module, branches: Sequence[Branch], images: torch.Tensor) -> list[Branch]:
    """Return those of the branches without which `module` computes for `images` what it does with them zero.

    The trials have random weights of their own, so that the result depends on the architecture alone.
    """
    if not branches:
        return []
    trial = copy_module(module).eval()
    _randomise(trial)
    if _is_exact(trial, branches, images):
        return list(branches)
    return [branch for branch in branches if _is_exact(trial, [branch], images)]


def _is_exact(module: nn.Module, branches: Sequence[Branch], images: torch.Tensor) -> bool:
    trial = copy_module(module)
    for name in {name for branch in branches for name in branch.last}:
        for parameter in trial.get_submodule(name).parameters(recurse=False):
            parameter.zero_()
    try:
        expected = trial(images)
        remove_layers(trial, [name for branch in branches for name in branch.layers])
        outputs = trial(images)
        is_comparable = expected.shape == outputs.shape and bool(expected.isfinite().all())
    except Exception:  # a model of the user can raise anything
        return False
    return is_comparable and bool((expected - outputs).abs().max() <= TOLERANCE * expected.abs().max())


def _randomise(module: nn.Module) -> None:
    """Set weights, biases and the statistics of norms to random numbers that are the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_mean"):
            value.copy_(0.1 * noise)
        elif name.endswith("running_var"):
            value.copy_(1 + 0.1 * noise.abs())
        elif isinstance(value, nn.Parameter):
            value.copy_(noise / max(1, value[0].numel()) ** 0.5 if value.dim() > 1 else 1 + 0.1 * noise)

"""What stands in place of layers that were removed from a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Removed(nn.Module):
    """What stands in place of a layer of a removed branch: it gives zeros of its input's shape.

    Its state has the layer's names, with empty tensors, so that files say which layers are gone.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """names: of the parameters and buffers of the layer."""
        super().__init__()
        for name in names:
            self.register_buffer(name, torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return zeros of the shape of `x`."""
        return torch.zeros_like(x)


def remove_layer(module: nn.Module, name: str) -> None:
    """Let `Removed` stand in place of a layer of `module`."""
    own = [key for key in module.get_submodule(name).state_dict() if "." not in key]
    module.set_submodule(name, Removed(own))

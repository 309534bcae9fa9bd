"""What stands in place of layers that were removed from a network."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from seam.models.surgery import replace_module


class Removed(nn.Module):
    """What stands in place of a layer of a removed branch: it gives zeros of its input's shape.

    Its state has the layer's names, with empty tensors, so that files say which layers are gone.
    """

    def __init__(self, names: Iterable[str], settings: Mapping[str, Any]) -> None:
        """names: of the parameters and buffers of the layer. settings: its numbers, such as its stride."""
        super().__init__()
        for name in names:
            self.register_buffer(name, torch.zeros(0))
        vars(self).update(settings)

    def forward(self, *inputs: torch.Tensor, **options: Any) -> torch.Tensor:
        """Return zeros of the shape of the first of `inputs`, or of the option `input`; ignore the others."""
        return torch.zeros_like(inputs[0] if inputs else options["input"])


def remove_layer(module: nn.Module, name: str) -> None:
    """Let `Removed` stand in place of a layer of `module`, under all names that the layer has there."""
    layer = module.get_submodule(name)
    numbers = {key: value for key, value in vars(layer).items() if isinstance(value, (int, float, tuple))}
    settings = {key: value for key, value in numbers.items() if key != "training" and not key.startswith("_")}
    removed = Removed([key for key in layer.state_dict() if "." not in key], settings)
    replace_module(module, name, removed)


def remove_layers(module: nn.Module, names: Collection[str]) -> None:
    """Remove layers of `module`; a layer within another of them goes with it."""
    for name in names:
        if not any(name.startswith(f"{other}.") for other in names):
            remove_layer(module, name)

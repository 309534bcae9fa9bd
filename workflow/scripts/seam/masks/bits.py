"""Masks as bits: packed into bytes, or baked into a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from seam.masks.layers import maskable


@torch.no_grad()
def bake(module: nn.Module, bits: dict[str, torch.Tensor]) -> nn.Module:
    """Set the weights of `module` whose bit is False to zero, and return the module.

    A bias into which a batch norm is folded (`seam.models.folding`) keeps what came from there. Raises ValueError if a
    mask does not fit the module.
    """
    parameters, buffers = maskable(module), dict(module.named_buffers())
    for name, bit in bits.items():
        if name not in parameters or parameters[name].shape != bit.shape:
            raise ValueError(f"mask {name} of shape {tuple(bit.shape)} does not fit the model")
        parameter, removed = parameters[name], ~bit.to(parameters[name].device)
        shift = buffers.get(f"{name.removesuffix('bias')}batch_norm_shift") if name.endswith("bias") else None
        parameter.masked_fill_(removed, 0.0)
        if shift is not None:
            parameter.add_(shift * removed)
    return module


def pack_bits(bits: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return {name: uint8 tensor} with eight bits in a byte (row-major, the first in the highest bit)."""
    return {name: torch.from_numpy(np.packbits(bit.contiguous().numpy())) for name, bit in bits.items()}


def unpack_bits(packed: dict[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """Return {name: boolean mask} of what `pack_bits` packed, with the shapes of `module`'s parameters.

    Raises ValueError if a mask does not fit the module.
    """
    shapes = {name: parameter.shape for name, parameter in maskable(module).items()}
    flat = unpack_groups(packed, {name: shape.numel() for name, shape in shapes.items()})
    return {name: bit.reshape(shapes[name]) for name, bit in flat.items()}


def unpack_groups(packed: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return {name: boolean mask [size]} of what `pack_bits` packed, for masks of these sizes.

    Raises ValueError if a mask has another size or is unknown.
    """
    bits = {}
    for name, data in packed.items():
        if name not in sizes or data.shape != (-(-sizes[name] // 8),) or data.dtype != torch.uint8:
            raise ValueError(f"mask {name} does not fit the model")
        bits[name] = torch.from_numpy(np.unpackbits(data.numpy(), count=sizes[name]).astype(bool))
    return bits

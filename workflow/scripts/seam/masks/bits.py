"""Masks as bits: packed, applied to a model, and chosen by magnitude or at random for comparison."""

import numpy as np
import torch

from seam.masks.layers import maskable


def magnitude_bits(module, bits):
    """Masks for comparison: of each parameter as many weights kept as in `bits`, the largest by magnitude."""
    return {name: _kept(maskable(module)[name].detach().abs(), bit) for name, bit in bits.items()}


def random_bits(bits, generator):
    """Masks for comparison: of each parameter as many weights kept as in `bits`, drawn at random."""
    return {name: _kept(torch.rand(bit.shape, generator=generator), bit) for name, bit in bits.items()}


def _kept(score, bit):
    """As many weights as `bit` keeps, those of the highest score; the first of equal ones."""
    order = score.cpu().flatten().argsort(descending=True, stable=True)
    kept = torch.zeros(bit.numel(), dtype=torch.bool)
    kept[order[: int(bit.sum())]] = True
    return kept.view(bit.shape)


@torch.no_grad()
def bake(module, bits):
    """Set to zero, for good, the weights of `module` whose bit is False."""
    parameters = maskable(module)
    for name, bit in bits.items():
        if name not in parameters or parameters[name].shape != bit.shape:
            raise ValueError(f"mask {name} of shape {tuple(bit.shape)} does not fit the model")
        parameters[name].masked_fill_(~bit.to(parameters[name].device), 0.0)
    return module


def pack_bits(bits):
    """name: uint8 tensor, eight masks a byte (row-major, the first in the highest bit)."""
    return {name: torch.from_numpy(np.packbits(bit.contiguous().numpy())) for name, bit in bits.items()}


def unpack_bits(packed, module):
    """The inverse of `pack`, with the shapes of `module`'s parameters."""
    shapes = {name: parameter.shape for name, parameter in maskable(module).items()}
    bits = {}
    for name, data in packed.items():
        if name not in shapes or data.numel() != -(-shapes[name].numel() // 8):
            raise ValueError(f"mask {name} does not fit the model")
        flat = np.unpackbits(data.numpy(), count=shapes[name].numel())
        bits[name] = torch.from_numpy(flat.astype(bool)).reshape(shapes[name])
    return bits

"""The precision of this process: of the steps of training and search, and of everything that is measured.

Like torch's own settings, it holds for the whole process. `seam.device.select_device` sets it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_precision = "float32"  # the precision of `forward`: float32, tf32 or bfloat16


def set_precision(precision: str) -> None:
    """Compute the steps of this process in `precision`: float32, tf32 or bfloat16."""
    global _precision
    _precision = precision


def get_precision() -> str:
    """Return the precision in which the steps of this process compute."""
    return _precision


def forward(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the model's outputs in float32, computed in the precision of this process.

    Only steps of training and search call it. In bfloat16, the convolutions and matrix products of this pass and of
    its backward pass are in bfloat16; weights, their gradients and everything computed from the outputs stay in
    float32. The loss needs no scaling, because bfloat16 has the exponents of float32.
    """
    if _precision != "bfloat16":
        return model(images)
    import torch

    with torch.autocast(images.device.type, torch.bfloat16):
        return model(images).float()


def widest_type(device: torch.device) -> torch.dtype:
    """Return the type in which a device adds up most exactly: float64, which Apple's GPUs lack."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Compute float32 products of the block exactly, whatever the precision of the steps. Also a decorator.

    Everything that is measured runs in such a block.
    """
    before = set_products("ieee")
    try:
        yield
    finally:
        set_products(*before)


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute float32 products of the block as torch does by default: torch.export refuses any other setting."""
    before = set_products("none", "tf32")
    try:
        yield
    finally:
        set_products(*before)


def set_products(*precisions: str) -> list[str]:
    """Set how CUDA computes float32 matrix products and convolutions: `ieee` or `tf32`, for both or for each.

    Returns the two settings from before.
    """
    import torch

    backends: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    for backend, precision in zip(backends, itertools.cycle(precisions), strict=False):
        backend.fp32_precision = precision
    return before

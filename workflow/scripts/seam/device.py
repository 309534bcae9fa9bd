"""The device that a job runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seam.errors import UserError
from seam.gpus import lock_gpu
from seam.log import log
from seam.precision import get_precision, set_precision, set_products

if TYPE_CHECKING:
    import torch


def select_device(wanted: str = "auto") -> torch.device:
    """Return the torch device of this process, and set the precision of its steps.

    wanted: `auto`, `cpu`, `cuda` or `mps`, optionally followed by `/` and the precision on a CUDA GPU: `bfloat16` (the
    default), `tf32` or `float32`, and by `/` and that on a CPU: `float32` (the default) or `bfloat16`. All other
    devices, and those without bfloat16, compute in float32.

    A CUDA GPU belongs to this process and to the processes that it starts: if all GPUs are in use, it waits. Raises
    UserError if torch does not find the device.

    >>> select_device("cpu/bfloat16"), describe_device(select_device("cpu/bfloat16"))
    (device(type='cpu'), {'device': 'cpu', 'precision': 'float32'})
    """
    import torch

    name, precision, on_cpu = [*wanted.split("/"), "", ""][:3]
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if name not in available:
        raise UserError(f"The device {name} is not known: choose auto, {', '.join(available)}.")
    if not available[name]:
        raise UserError(f"The device {name} is asked for, but torch finds none here: choose auto or cpu.")
    if name != "cuda":
        set_precision(_precision_on_cpu(on_cpu) if name == "cpu" else "float32")
        return torch.device(name)
    index = lock_gpu()
    torch.cuda.set_device(index)
    precision = precision or "bfloat16"
    if precision == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        log.warning("this GPU does not compute in bfloat16: float32 is used")
        precision = "float32"
    set_precision(precision)
    set_products("tf32" if precision == "tf32" else "ieee")
    log.info("runs on %s, GPU %d, in %s", torch.cuda.get_device_name(index), index, precision)
    return torch.device(name, index)


def _precision_on_cpu(wanted: str) -> str:
    """Return the precision for a wanted one: bfloat16 only where the processor has instructions for it."""
    import torch

    # Without such instructions, steps in bfloat16 take longer than in float32.
    if wanted == "bfloat16" and not torch.cpu._is_avx512_bf16_supported():
        log.warning("this processor has no instructions for bfloat16 (AVX-512 BF16): float32 is used")
        return "float32"
    return wanted or "float32"


def is_cuda(wanted: str) -> bool:
    """Return whether `select_device` gives a CUDA GPU for this config value. Selects the device."""
    return select_device(wanted).type == "cuda"


def describe_device(device: torch.device) -> dict[str, str]:
    """Return the device and the precision as provenance has them. Which of several GPUs it was does not matter."""
    return {"device": device.type, "precision": get_precision()}

"""Models whose weights take no memory before it is known that the weights in a file have their shapes.

The file can be a stranger's, and names an architecture and numbers of outputs for which torch would allocate any size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from seam.errors import UserError, first_line
from seam.models.architectures import build_model


@contextmanager
def unallocated() -> Iterator[None]:
    """Let layers that are made in this context have parameters without memory, on torch's device `meta`.

    Buffers are as ever. Within `torch.device("meta")` they would have no numbers, and some architectures could not be
    made, such as RegNet.

    >>> with unallocated():
    ...     layer = nn.Linear(10**5, 10**5)
    >>> layer.weight.device, layer.weight.shape
    (device(type='meta'), torch.Size([100000, 100000]))
    """
    thread = threading.get_ident()

    def forget(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if type(parameter) is not nn.Parameter or parameter.is_meta or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(forget)  # pyright: ignore[reportArgumentType]  # torch's hint is wrong
    try:
        yield
    finally:
        hook.remove()


def build_unallocated(architecture: str, classes: int, checksum: str | None = None) -> nn.Module:
    """Return what `build_model` returns, with parameters without memory, into which `load_state` loads.

    They have memory if the architecture is a file of the user, which has a `checksum`, and in a few architectures of
    timm that compute with their parameters. Raises UserError if the model cannot be made with so many classes.
    """
    if checksum is not None:
        return build_model(architecture, classes, checksum)
    try:
        with suppress(NotImplementedError, RuntimeError), unallocated():
            module = build_model(architecture, classes)
            if not any(buffer.is_meta for buffer in module.buffers()):
                return module
        return build_model(architecture, classes)
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"{architecture} cannot be made with {classes:,} outputs ({first_line(error)}): ask for the file once more."
        ) from error


def allocate(module: nn.Module) -> None:
    """Give memory to the parameters of `module` that have none, in place. They become 0."""
    if any(parameter.is_meta for parameter in module.parameters()):
        module._apply(lambda value: torch.zeros_like(value, device="cpu") if value.is_meta else value)

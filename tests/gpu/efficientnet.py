"""EfficientNet-Lite0 as an architecture file of the workflow: `tests/gpu/efficientnet.py:build`."""

import geffnet  # pyright: ignore[reportMissingImports] (only the check's machine has it)
from torch import Tensor, nn


def build(classes: int) -> nn.Module:
    """Return a new EfficientNet-Lite0 for images of 224 px."""
    return geffnet.tf_efficientnet_lite0(num_classes=classes)


def renamed(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return `state` with the names of `module`, whose tensors come in the same order under other names.

    Raises ValueError if their number or their shapes differ.
    """
    own = module.state_dict()
    shapes = [[tuple(value.shape) for value in values] for values in (own.values(), state.values())]
    if shapes[0] != shapes[1]:
        raise ValueError("the weights are not those of EfficientNet-Lite0: their shapes differ")
    return dict(zip(own, state.values(), strict=True))

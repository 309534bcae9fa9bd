"""Multiply-accumulates (MACs) of a module for one image, with all its weights and with its non-zero weights.

fvcore counts a fused multiply-add as one, and calls it a FLOP.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from seam.files import sha256, write_json
from seam.log import log
from seam.models.surgery import copy_module, plain_attention
from seam.models.uses import count_uses_by_kind, weight_names

OPERATORS = {"conv": "convolution", "linear": "linear", "addmm": "linear"}  # fvcore's names to ours

Macs = dict[str, int]  # "convolution", "linear", "other" and their sum, "total"


def count_macs(module: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Macs]:
    """Return {"dense": MACs, "sparse": MACs} of a module in eval mode. The module stays as it is.

    image_shape: (channels, height, width). Dense is fvcore's own count. Sparse counts the non-zero weights as often as
    `seam.models.uses.count_uses` says. Everything else (batch norm, pooling, layers of other types) counts as in dense.
    """
    from fvcore.nn import FlopCountAnalysis

    module = _with_effective_weights(copy_module(module).cpu().eval())
    analysis = FlopCountAnalysis(module, torch.zeros(1, *image_shape))
    analysis.set_op_handle("aten::_convolution_mode", _padded_by_name)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    dense: Macs = {"convolution": 0, "linear": 0, "other": 0}
    with plain_attention():
        operators = analysis.by_operator()
    for operator, macs in operators.items():
        dense[OPERATORS.get(operator, "other")] += int(macs)

    sparse, parameters = dict(dense), {name: parameter for parameter, name in weight_names(module).items()}
    uses = count_uses_by_kind(module, torch.zeros(1, *image_shape))
    for kind, times in uses.items():
        sparse[kind] -= round(sum(times[name] * int((parameters[name] == 0).sum()) for name in times))
        least = round(sum(times[name] * parameters[name].numel() for name in times))
        if dense[kind] < least:
            log.warning(
                "fvcore finds %d multiply-accumulates of the kind %s for an image, but the layers have %d: do not rely "
                "on this count",
                dense[kind], kind, least,
            )  # fmt: skip
    weights = {layer.weight for layer in module.modules() if isinstance(layer, (_ConvNd, nn.Linear))}
    for name, value in parameters.items():
        if value in weights and not any(name in times for times in uses.values()) and (value == 0).any():
            log.warning(
                "%s has weights that are zero, but no convolution or linear operation multiplies by it directly: its "
                "zeros save no multiply-accumulates in this count",
                name,
            )  # fmt: skip
    if not any(dense.values()):
        log.warning("fvcore finds no multiply-accumulates in the model: there is no share of them to report")
    uncounted = sorted(analysis.unsupported_ops().items())
    if uncounted:
        log.info("fvcore does not count: %s", ", ".join(f"{name} ({times} times)" for name, times in uncounted))
    return {"dense": dense | {"total": sum(dense.values())}, "sparse": sparse | {"total": sum(sparse.values())}}


def _padded_by_name(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Return the MACs of a convolution whose padding is `same` or `valid`, an operation that fvcore does not know."""
    from fvcore.nn.jit_handles import conv_flop_count, get_shape

    shapes: list[Any] = [get_shape(value) for value in (inputs[0], inputs[1], outputs[0])]
    return Counter({"conv": conv_flop_count(*shapes)})


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Return the MACs of queries [..., L, E] x keys [..., S, E], and of their products x values [..., S, V]."""
    from fvcore.nn.jit_handles import get_shape

    shapes: list[Any] = [get_shape(value) for value in inputs[:3]]
    (*heads, length, width), keys, values = shapes
    return Counter({"attention": math.prod(heads) * length * keys[-2] * (width + values[-1])})


def _with_effective_weights(module: nn.Module) -> nn.Module:
    """Let the weights of parametrized layers be what these compute from their parameters.

    torch's own `remove_parametrizations` also changes the class of the layer, which the module's copies share.
    """
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer):
            values = {name: getattr(layer, name).detach().clone() for name in layer.parametrizations}  # pyright: ignore
            del layer.parametrizations
            layer.__class__ = type(layer).__bases__[0]
            for name, value in values.items():
                setattr(layer, name, nn.Parameter(value))
    return module


def write_macs(
    path: str | os.PathLike[str],
    source: nn.Module,
    reengineered: nn.Module,
    image_shape: tuple[int, ...],
    masks: str | os.PathLike[str],
) -> None:
    """Write the MACs of the source model and of the re-engineered one, for one image, as JSON.

    masks: the file of the masks, whose digest tells later whether the numbers are those of the masks beside them.
    """
    before, after = count_macs(source, image_shape), count_macs(reengineered, image_shape)
    counts = {"source": before["dense"], "reengineered_dense": after["dense"], "reengineered": after["sparse"]}
    write_json(path, {**counts, "masks_digest": sha256(masks)})

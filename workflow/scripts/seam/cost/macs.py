"""Multiply-accumulates (MACs) of a module for one image, with all its weights and with its non-zero weights.

fvcore counts a fused multiply-add as one, and calls it a FLOP.
"""

from __future__ import annotations

import copy
import os

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from seam.files import write_json
from seam.log import log

OPERATORS = {"conv": "convolution", "linear": "linear", "addmm": "linear"}  # fvcore's names to ours

Macs = dict[str, int]  # "convolution", "linear", "other" and their sum, "total"


def count_macs(module: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Macs]:
    """Return {"dense": MACs, "sparse": MACs} of a module in eval mode. The module stays as it is.

    image_shape: (channels, height, width). Dense is fvcore's own count. Sparse counts the non-zero weights: those of a
    convolution once for each place of its output, those of a linear layer once for each input vector. Everything else
    (batch norm, pooling, layers of other types) counts as in dense.
    """
    from fvcore.nn import FlopCountAnalysis

    module = copy.deepcopy(module).cpu().eval()
    analysis = FlopCountAnalysis(module, torch.zeros(1, *image_shape))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    dense: Macs = {"convolution": 0, "linear": 0, "other": 0}
    for operator, macs in analysis.by_operator().items():
        dense[OPERATORS.get(operator, "other")] += int(macs)

    sparse = dict(dense)
    for name, layer in module.named_modules():
        if isinstance(layer, (_ConvNd, nn.Linear)):
            zeros, size = int((layer.weight == 0).sum()), layer.weight.numel()
            for operator, macs in analysis.by_operator(name).items():
                if operator in OPERATORS:  # each weight is used equally often, so the division is exact
                    sparse[OPERATORS[operator]] -= int(macs) * zeros // size

    uncounted = sorted(analysis.unsupported_ops().items())
    if uncounted:
        log.info("fvcore does not count: %s", ", ".join(f"{name} ({times} times)" for name, times in uncounted))
    return {"dense": dense | {"total": sum(dense.values())}, "sparse": sparse | {"total": sum(sparse.values())}}


def write_macs(
    path: str | os.PathLike[str], source: nn.Module, reengineered: nn.Module, image_shape: tuple[int, ...]
) -> None:
    """Write the MACs of the source model and of the re-engineered one, for one image, as JSON."""
    before, after = count_macs(source, image_shape), count_macs(reengineered, image_shape)
    write_json(path, {"source": before["dense"], "reengineered_dense": after["dense"], "reengineered": after["sparse"]})

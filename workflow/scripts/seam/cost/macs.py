"""Multiply-accumulates of a module for one image, with all its weights and with the non-zero ones alone.

fvcore counts a fused multiply-add as one; it calls that a FLOP.
"""

import copy

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from seam.files import write_json
from seam.log import log

KINDS = {"conv": "convolution", "linear": "linear", "addmm": "linear"}  # fvcore's names to ours


def count(module, image_shape):
    """{"dense": {...}, "sparse": {...}}, each with "convolution", "linear", "other" and their sum, "total".

    image_shape: (channels, height, width). Dense is fvcore's own count, in eval mode. Sparse counts the
    non-zero weights of a convolution at each place of its output, and those of a linear layer for each
    vector it is given; everything else (batch norm, pooling, what a layer of another type computes) counts
    as in dense. `module` is left as it is.
    """
    from fvcore.nn import FlopCountAnalysis

    module = copy.deepcopy(module).cpu().eval()
    analysis = FlopCountAnalysis(module, torch.zeros(1, *image_shape))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    dense = dict.fromkeys(("convolution", "linear", "other"), 0)
    for operator, macs in analysis.by_operator().items():
        dense[KINDS.get(operator, "other")] += int(macs)

    sparse = dict(dense)
    for name, layer in module.named_modules():
        if isinstance(layer, (_ConvNd, nn.Linear)):
            zeros, size = int((layer.weight == 0).sum()), layer.weight.numel()
            for operator, macs in analysis.by_operator(name).items():
                if operator in KINDS:  # each weight is used equally often, so that the division leaves no rest
                    sparse[KINDS[operator]] -= int(macs) * zeros // size

    uncounted = sorted(analysis.unsupported_ops().items())
    if uncounted:
        log.info("fvcore does not count: %s", ", ".join(f"{name} ({times} times)" for name, times in uncounted))
    return {"dense": dense | {"total": sum(dense.values())}, "sparse": sparse | {"total": sum(sparse.values())}}


def write_macs(macs, source, reengineered, image_shape):
    """Write to `macs` the counts for one image of these two modules."""
    before, after = count(source, image_shape), count(reengineered, image_shape)
    write_json(macs, {"source": before["dense"], "reengineered_dense": after["dense"], "reengineered": after["sparse"]})

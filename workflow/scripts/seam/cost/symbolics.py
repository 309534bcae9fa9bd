"""ONNX forms of operations that torch's exporter lacks, of operations that both engines run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.onnx import (
    register_custom_op_symbolic,  # pyright: ignore[reportPrivateImportUsage]
    symbolic_helper,
    symbolic_opset9,
    symbolic_opset14,
)

POOLINGS = ("adaptive_avg_pool1d", "adaptive_avg_pool2d")


def register_symbolics(opset: int) -> None:
    """Tell torch's exporter how to write attention and adaptive average pooling in ONNX's `opset`."""
    # torch has an ONNX form of attention for opset 14 alone, but all of its operations are in 13, too.
    register_custom_op_symbolic(
        "aten::scaled_dot_product_attention",
        symbolic_opset14.scaled_dot_product_attention,  # pyright: ignore[reportPrivateImportUsage]
        opset,
    )
    for name in POOLINGS:
        register_custom_op_symbolic(f"aten::{name}", _adaptive_average(name), opset)


def pooling_matrix(inputs: int, outputs: int) -> torch.Tensor:
    """Return the matrix [inputs, outputs] by which adaptive average pooling of one dimension multiplies.

    Output i is the mean of the inputs from floor(i * inputs / outputs) to ceil((i + 1) * inputs / outputs), the last
    one excluded.
    """
    matrix = torch.zeros(inputs, outputs)
    for output in range(outputs):
        first, end = output * inputs // outputs, -(-(output + 1) * inputs // outputs)
        matrix[first:end, output] = 1 / (end - first)
    return matrix


def _adaptive_average(name: str) -> Callable[..., Any]:
    """Return the ONNX form of an adaptive average pooling, as a function for torch's exporter.

    torch's own form serves where all windows are of one size. Elsewhere the windows differ, but are known: a product
    with a constant matrix for each dimension.
    """
    usual, dims = getattr(symbolic_opset9, name), int(name[-2])

    def write(g: Any, images: Any, output_size: Any) -> Any:
        traced = g.original_node  # it knows the sizes, where what ONNX computes them from has none
        ends = next(iter(traced.inputs())), traced.output()
        sizes, wanted = (_known_sizes(value, dims) for value in ends)
        if not sizes or not wanted:
            return usual(g, images, output_size)
        is_regular = all(size % count == 0 for size, count in zip(sizes, wanted, strict=True))
        is_usual = is_regular and _is_constant(output_size)
        if is_usual and (_known_sizes(images, dims) or set(wanted) == {1}):
            return usual(g, images, output_size)
        matrices = [pooling_matrix(size, count) for size, count in zip(sizes, wanted, strict=True)]
        pooled = g.op("MatMul", images, g.op("Constant", value_t=matrices[-1]))
        if dims == 2:
            pooled = g.op("MatMul", g.op("Constant", value_t=matrices[0].T.contiguous()), pooled)
        return pooled.setType(ends[1].type())

    return write


def _known_sizes(value: Any, dims: int) -> list[int]:
    """Return the last `dims` sizes of a tensor [batch, channels, ...]; none if one of them is not known."""
    sizes = symbolic_helper._get_tensor_sizes(value) or []
    known = [size for size in sizes[2:] if size is not None]
    return known if len(known) == dims == len(sizes) - 2 else []


def _is_constant(value: Any) -> bool:
    """Return whether torch's own form can read a size; one that the model reads from its images is no constant."""
    try:
        symbolic_helper._parse_arg(value, "is")
    except Exception:  # its errors have no common class
        return False
    return True

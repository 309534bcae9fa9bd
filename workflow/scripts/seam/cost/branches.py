"""ONNX models without their removed branches: sums with zeros, and what computes these zeros, leave the graph."""

from __future__ import annotations

from typing import Any

from torch import nn

from seam.models.removed import Removed

# Operations that give zeros for zeros, of the same shape and of another.
KEEPING = {"Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Tanh", "HardSwish", "Identity", "Clip", "Erf"}
REDUCING = {"ReduceMean", "GlobalAveragePool"}

Shape = tuple[int | str | None, ...]
# The value whose shape zeros have, and the order of its dimensions; (): its own.
Like = tuple[str, tuple[int, ...]]


def has_removed_branches(module: nn.Module) -> bool:
    """Return whether a layer of `module` belongs to a branch that was removed."""
    return any(isinstance(layer, Removed) for layer in module.modules())


def drop_zero_branches(model: Any) -> None:
    """Remove branches of zeros from an ONNX model of a module with `Removed` layers, in place.

    The sum of a value and zeros is that value, if it has the shape of the sum. The zeros of a `Removed` layer have the
    shape of a value, and others may have a shape that is known. A ReLU behind the sum that follows another is dropped
    as well.
    """
    graph, shapes = model.graph, _shapes(model)
    makers = {output: node for node in graph.node for output in node.output}
    zeros: dict[str, Like] = {}
    instead: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
        inputs, output = list(node.input), node.output[0]
        zero = next((name for name in inputs if name in zeros), None)
        if node.op_type == "Add" and zero:
            other = next((name for name in inputs if name not in zeros), None)
            if other is None:
                zeros[output] = zeros[zero]
            elif zeros[zero] == (other, ()) or _are_equal(shapes.get(other), shapes.get(output)):
                instead[output] = other
        elif node.op_type == "Relu" and inputs[0] in makers and makers[inputs[0]].op_type == "Relu":
            instead[output] = inputs[0]
        elif node.op_type == "ConstantOfShape" and _is_zero(node):
            shape = makers.get(inputs[0])
            value = shape.input[0] if shape is not None and shape.op_type == "Shape" else output
            zeros[output] = zeros.get(value, (value, ()))
        elif zero and (node.op_type in KEEPING or node.op_type == "Mul"):
            zeros[output] = zeros[zero]
        elif zero and node.op_type == "Transpose":
            zeros[output] = _transposed(zeros[zero], node)
        elif zero and node.op_type in REDUCING:
            zeros[output] = (output, ())
    for output in graph.output:
        assert output.name not in instead  # the last layer is no residual branch
    _drop_unread(graph)


def _transposed(like: Like, node: Any) -> Like:
    """Return the shape of zeros after a Transpose."""
    value, before = like
    order = next(tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm")
    order = tuple(before[place] for place in order) if before else order
    return value, () if order == tuple(range(len(order))) else order


def _shapes(model: Any) -> dict[str, Shape]:
    """Return {value: its shape} as far as it is known; the number of images is text or None."""
    from onnx.shape_inference import infer_shapes

    graph = infer_shapes(model, False, False, True).graph  # with the values of shapes
    return {
        value.name: tuple(dim.dim_value or dim.dim_param or None for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _are_equal(first: Shape | None, second: Shape | None) -> bool:
    """Return whether two shapes are known and equal. Texts and None in their first places are the number of images."""
    if not first or not second:
        return False
    numbers = [shape[0] if isinstance(shape[0], int) else None for shape in (first, second)]
    return first[1:] == second[1:] and None not in first[1:] and numbers[0] == numbers[1]


def _is_zero(node: Any) -> bool:
    """Return whether a ConstantOfShape gives zeros, which it does unless its attribute has another value."""
    from onnx import numpy_helper

    return all(not numpy_helper.to_array(attribute.t).any() for attribute in node.attribute)


def _drop_unread(graph: Any) -> None:
    """Drop the nodes and weights that no output depends on."""
    read, nodes = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            nodes.append(node)
            read.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    weights = [weight for weight in graph.initializer if weight.name in read]
    del graph.initializer[:]
    graph.initializer.extend(weights)

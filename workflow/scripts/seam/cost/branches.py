"""ONNX models without their removed branches: sums with zeros, and what computes these zeros, leave the graph."""

from __future__ import annotations

from typing import Any

from torch import nn

from seam.models.removed import Removed

# Operations that give zeros for zeros of the same shape.
KEEPING = {"Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Tanh", "HardSwish", "Identity", "Clip", "Erf"}


def has_removed_branches(module: nn.Module) -> bool:
    """Return whether a layer of `module` belongs to a branch that was removed."""
    return any(isinstance(layer, Removed) for layer in module.modules())


def drop_zero_branches(model: Any) -> None:
    """Remove branches of zeros from an ONNX model of a module with `Removed` layers, in place.

    The zeros of a `Removed` layer have the shape of a value, so that the sum of both is that value. A ReLU behind it
    that follows another is dropped as well.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    zeros: dict[str, tuple[str, tuple[int, ...]]] = {}  # {zeros: the value whose shape they have, transposed how}
    instead: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
        inputs, output = list(node.input), node.output[0]
        if node.op_type == "ConstantOfShape" and _is_zero(node):
            shape = makers.get(inputs[0])
            if shape is not None and shape.op_type == "Shape":
                zeros[output] = zeros.get(shape.input[0], (shape.input[0], ()))
        elif node.op_type == "Add" and any(name in zeros for name in inputs):
            first, second = inputs if inputs[0] in zeros else inputs[::-1]
            if second in zeros and zeros[second] == zeros[first]:
                zeros[output] = zeros[first]
            elif zeros[first] == (second, ()):
                instead[output] = second
        elif node.op_type == "Relu" and inputs[0] in makers and makers[inputs[0]].op_type == "Relu":
            instead[output] = inputs[0]
        elif node.op_type in KEEPING and inputs[0] in zeros:
            zeros[output] = zeros[inputs[0]]
        elif node.op_type == "Mul" and any(name in zeros for name in inputs):
            zeros[output] = zeros[next(name for name in inputs if name in zeros)]
        elif node.op_type == "Transpose" and inputs[0] in zeros:
            value, before = zeros[inputs[0]]
            order = next(tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm")
            order = tuple(before[place] for place in order) if before else order
            zeros[output] = value, () if order == tuple(range(len(order))) else order
    for output in graph.output:
        assert output.name not in instead  # the last layer is no residual branch
    _drop_unread(graph)


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

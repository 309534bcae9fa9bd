"""Residual branches that a network can lose as a whole: the sum of a branch and its shortcut becomes the shortcut.

A branch ends in layers, such as a batch norm, whose weights and biases a mask multiplies. If the mask is 0, the branch
is zero, whatever lies before these layers, so that none of them need be computed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

# Operations that a branch may consist of beside its layers. They all run on zeros of the shape that the branch reads,
# which is what its layers give once they are removed.
ACTIVATIONS = (
    *["ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "SiLU", "GELU", "Mish", "Hardswish", "Tanh"],
    *["relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "silu", "gelu", "mish"],
    *["hardswish", "tanh", "tanh_"],
)
SAME = (
    *["Identity", "Dropout", "Dropout2d", "dropout", "dropout2d", "stochastic_depth", "contiguous", "clone"],
    *["Permute", "permute", "transpose"],
)
GATES = ("Sigmoid", "Hardsigmoid", "sigmoid", "sigmoid_", "hardsigmoid")
POOLING = ("AdaptiveAvgPool2d", "adaptive_avg_pool2d", "mean")
PRODUCTS = ("mul", "mul_", "imul")
SUMS = ("add", "add_", "iadd")
READERS_OF_SIZES = {"size", "dim", "getattr", "ndimension", "numel", "_assert", "is_floating_point"}


def operands(node: Node) -> list[Node]:
    """Return the values that a call with one or two operands, such as a sum, is made of; numbers are none."""
    given = [*node.args[:2], node.kwargs.get("input"), node.kwargs.get("other")]
    return [value for value in given if isinstance(value, Node)]


@dataclass(frozen=True)
class Branch:
    """A residual branch. layers: the names of those in it; last: of those whose zeros make the branch zero."""

    name: str
    layers: tuple[str, ...]
    last: tuple[str, ...]


def find_branches(
    graph: Graph,
    names: Mapping[Node, str],
    layers: Mapping[Node, str],
    gateable: Sequence[str],
    shapes: Mapping[Node, torch.Size],
) -> list[Branch]:
    """Return the residual branches of a traced module whose shortcut is the identity, in order of their sums.

    names: of the function, method or type of layer that each node calls. layers: {node: name of the convolution, linear
    layer or norm that it computes}. gateable: the names of layers with weights and biases of their own that a mask can
    multiply. shapes: of the tensors.
    """
    calls: dict[str, int] = {}
    for name in layers.values():
        calls[name] = calls.get(name, 0) + 1
    constant = _constant(graph)
    branches = []
    for node in graph.nodes:
        summands = operands(node)
        if names[node] not in SUMS or len(summands) != 2 or not node.kwargs.keys() <= {"input", "other"}:
            continue
        for end, shortcut in (summands, summands[::-1]):
            shortcut = _unchanged(shortcut, names)
            inside = _inside(end, shortcut, node, names, constant)
            if inside is None or shapes.get(end) != shapes.get(shortcut):
                continue
            members = [layers[each] for each in inside if each in layers]
            last = _last(end, inside, names, layers, gateable, {})
            fits = all(each in layers or _runs_on_zeros(each, names) for each in inside)
            if last and fits and all(calls[name] == 1 for name in members):
                branches.append(Branch(_name(members), tuple(members), tuple(sorted(last))))
                break
    return branches


def _unchanged(node: Node, names: Mapping[Node, str]) -> Node:
    """Return the value that a node passes on: many networks have an `nn.Identity` as their shortcut."""
    while names[node] in ("Identity", "Dropout", "Dropout2d", "dropout", "dropout2d", "stochastic_depth"):
        node = node.all_input_nodes[0]
    return node


def _constant(graph: Graph) -> set[Node]:
    """Return the nodes that depend on weights alone, such as the scale of a branch in another shape."""
    constants: set[Node] = set()
    for node in graph.nodes:  # each after its inputs
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (inputs and constants.issuperset(inputs)):
            constants.add(node)
    return constants


def _inside(
    end: Node, shortcut: Node, total: Node, names: Mapping[Node, str], constant: Collection[Node]
) -> list[Node] | None:
    """Return the nodes between the shortcut and the end of a branch, in order; None if others read or feed them.

    Those that depend on weights alone are left out. Others may read the sizes of their values.
    """
    inside, ahead = {}, [end]
    while ahead:
        node = ahead.pop()
        if node is shortcut or node in inside or (node.op != "call_module" and node in constant):
            continue
        if node.op == "placeholder":
            return None
        inside[node] = None
        ahead += node.all_input_nodes
    readers = {user for node in inside for user in node.users if names[user] not in READERS_OF_SIZES}
    if shortcut in inside or readers - inside.keys() - {total}:
        return None
    return [node for node in total.graph.nodes if node in inside] or None


def _runs_on_zeros(node: Node, names: Mapping[Node, str]) -> bool:
    return names[node] in (*ACTIVATIONS, *SAME, *GATES, *POOLING, *PRODUCTS, *SUMS)


def _last(
    node: Node,
    inside: Sequence[Node],
    names: Mapping[Node, str],
    layers: Mapping[Node, str],
    gateable: Sequence[str],
    known: dict[Node, set[str]],
) -> set[str]:
    """Return the layers whose zeros make the value of a node zero; empty if there are none.

    known: of nodes that were asked for before.
    """
    if node in known:
        return known[node]
    zeros: set[str] = set()
    if node in inside and node in layers:
        zeros = {layers[node]} & set(gateable)
    elif node in inside:
        each = [_last(other, inside, names, layers, gateable, known) for other in operands(node)]
        if names[node] in (*ACTIVATIONS, *SAME) and each:
            zeros = each[0]
        elif names[node] in PRODUCTS:
            zeros = next((some for some in each if some), set())
        elif names[node] in SUMS and len(each) == 2 and all(each):
            zeros = each[0] | each[1]
    known[node] = zeros
    return zeros


def _name(layers: Sequence[str]) -> str:
    """Return the module that all these layers belong to, or the last of them if that is the whole network."""
    return ".".join(os.path.commonprefix([name.split(".") for name in layers])) or layers[-1]

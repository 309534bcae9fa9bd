"""Residual branches that a network can lose as a whole: the sum of a branch and its shortcut becomes the shortcut.

A branch ends in layers, such as a batch norm, whose weights and biases a mask multiplies. If the mask is 0, the branch
is zero, whatever lies before these layers, so that none of them need be computed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    found = []
    for node in graph.nodes:
        operands = [other for other in node.args[:2] if isinstance(other, Node)]
        if names[node] not in SUMS or len(operands) != 2 or node.kwargs:
            continue
        for end, shortcut in (operands, operands[::-1]):
            inside = _inside(end, shortcut, node)
            if inside is None or shapes.get(end) != shapes.get(shortcut):
                continue
            members = [layers[each] for each in inside if each in layers]
            last = _last(end, inside, names, layers, gateable)
            fits = all(each in layers or _runs_on_zeros(each, names) for each in inside)
            if last and fits and all(calls[name] == 1 for name in members):
                found.append(Branch(_name(members), tuple(members), tuple(sorted(last))))
                break
    return found


def _inside(end: Node, shortcut: Node, total: Node) -> list[Node] | None:
    """Return the nodes between the shortcut and the end of a branch, in order; None if others read or feed them."""
    inside, ahead = {}, [end]
    while ahead:
        node = ahead.pop()
        if node is shortcut or node in inside or node.op == "get_attr":
            continue
        if node.op == "placeholder":
            return None
        inside[node] = None
        ahead += node.all_input_nodes
    if shortcut in inside or any(user not in inside and user is not total for node in inside for user in node.users):
        return None
    return [node for node in total.graph.nodes if node in inside] or None


def _runs_on_zeros(node: Node, names: Mapping[Node, str]) -> bool:
    return names[node] in (*ACTIVATIONS, *SAME, *GATES, *POOLING, *PRODUCTS, *SUMS)


def _last(
    node: Node, inside: Sequence[Node], names: Mapping[Node, str], layers: Mapping[Node, str], gateable: Sequence[str]
) -> set[str]:
    """Return the layers whose zeros make the value of a node zero; empty if there are none."""
    if node not in inside:
        return set()
    if node in layers:
        return {layers[node]} if layers[node] in gateable else set()
    before: list[Any] = [other for other in node.args[:2] if isinstance(other, Node)]
    each = [_last(other, inside, names, layers, gateable) for other in before]
    if names[node] in (*ACTIVATIONS, *SAME) and each:
        return each[0]
    if names[node] in PRODUCTS:
        return next((names_of for names_of in each if names_of), set())
    if names[node] in SUMS and len(each) == 2 and all(each):
        return each[0] | each[1]
    return set()


def _name(layers: Sequence[str]) -> str:
    """Return the module that all these layers belong to, or the last of them if that is the whole network."""
    return ".".join(os.path.commonprefix([name.split(".") for name in layers])) or layers[-1]

"""Which channels of a network's tensors belong together, found by following them through a traced module.

Every channel of every tensor has a number. A convolution gives its output channels new numbers; an activation or a
pooling keeps those of its input; an addition joins the numbers of its operands, since a channel can only be removed
from both. Number 0 stands for channels that stay: those of the images and the logits, and those that an operation
needs in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node, symbolic_trace

from seam.errors import UserError, first_line
from seam.masks.branches import READERS_OF_SIZES, Branch, find_branches, operands
from seam.models.surgery import evaluating

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (nn.LayerNorm, nn.GroupNorm)  # which need all channels

# Operations on each number alone: those that map 0 to 0, and those that do not.
ZERO_KEEPING = (
    *[nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Tanh],
    *[nn.Softsign, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Identity],
    *[nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout],
)
NOT_ZERO_KEEPING = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid)
# Operations on each channel alone, which map a channel of zeros to zeros.
CHANNELWISE = (
    *[nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d],
    *[nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d],
    *[nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d],
    *[nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.Upsample],
)
ZERO_KEEPING_FUNCTIONS = {
    *["relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "silu", "gelu", "mish"],
    *["hardswish", "tanh", "tanh_", "dropout", "dropout2d", "alpha_dropout", "feature_dropout", "stochastic_depth"],
    *["contiguous", "clone", "float", "to", "detach", "abs", "neg"],
}
NOT_ZERO_KEEPING_FUNCTIONS = {"sigmoid", "sigmoid_", "hardsigmoid", "softplus", "exp"}
CHANNELWISE_FUNCTIONS = {
    *["max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate"],
    *["adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"],
    *["adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"],
}
SUMS = {"add", "add_", "iadd", "sub", "sub_", "isub"}
PRODUCTS = {"mul", "mul_", "imul"}
# Functions that compute what a layer does: the types of layer, and the function's arguments after its input.
FUNCTIONS_OF_LAYERS: dict[str, tuple[tuple[type[nn.Module], ...], tuple[str, ...]]] = {
    "batch_norm": (BATCH_NORMS, ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")),
    "linear": ((nn.Linear,), ("weight", "bias")),
    "layer_norm": ((nn.LayerNorm,), ("normalized_shape", "weight", "bias", "eps")),
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d"),
        ((nn.Conv1d, nn.Conv2d, nn.Conv3d), ("weight", "bias", "stride", "padding", "dilation", "groups")),
    ),
}
STATE_OF_LAYERS = ("weight", "bias", "running_mean", "running_var")

Ids = np.ndarray  # int64: numbers of channels


@dataclass
class Layout:
    """The channels of a tensor.

    dim: the dimension that they lie in. ids: their numbers. zero: for each, whether it is zero once it is removed.
    """

    dim: int
    ids: Ids
    zero: np.ndarray


@dataclass
class LayerChannels:
    """The numbers of the channels that a layer reads and writes. positions: products per weight, for one image."""

    inputs: Ids
    outputs: Ids
    positions: int = 0
    gated: bool = True  # whether a mask on its weights sets its outputs to zero


@dataclass
class Channels:
    """What following the channels finds.

    layers: by name. reasons: {what needs channels in full: which and why}. branches: that can be removed as a whole.
    """

    layers: dict[str, LayerChannels] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    branches: list[Branch] = field(default_factory=list)


def follow_channels(module: nn.Module, images: torch.Tensor) -> Channels:
    """Return the channels of each convolution, linear layer and batch norm of `module`, joined where they belong.

    images: [1, 3, H, W]. The numbers of channels that belong together are equal. Raises UserError if the module cannot
    be traced.
    """
    with evaluating(module):
        try:
            traced = symbolic_trace(module)
        except Exception as error:  # tracing can raise anything in a model of the user
            raise UserError(
                f"The model cannot be traced, so that its channels cannot be followed ({first_line(error)}): set "
                "granularity to weight, or rewrite the part of its code whose course depends on the images."
            ) from error
        traced.eval()
        follower = _Follower(traced, module)
        try:
            with torch.no_grad():
                follower.run(images)
        except UserError:
            raise
        except Exception as error:  # of the model's own code, such as batch norm without statistics on a single value
            raise UserError(
                f"The channels of the model cannot be followed, because it does not run on an image of zeros "
                f"({first_line(error)}): set granularity to weight, or correct its code."
            ) from error
    return follower.result()


class _Follower(Interpreter):
    """Runs a traced module on images, and follows its channels from node to node."""

    def __init__(self, traced: GraphModule, module: nn.Module) -> None:
        super().__init__(traced, garbage_collect_values=True)
        self.traced = traced.graph
        self.modules = dict(module.named_modules())
        self.parents = [0]
        self.layouts: dict[Node, Layout] = {}
        self.shapes: dict[Node, torch.Size] = {}
        self.channels = Channels()
        names: dict[int, list[str]] = {}
        for name, parameter in traced.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name.rpartition(".")[0])
        self.shared = {name for owners in names.values() if len(owners) > 1 for name in owners}
        self.called = {node: name for node in traced.graph.nodes if (name := self._layer_of_function(node))}
        self.read = {
            str(node.target).rpartition(".")[0]
            for node in traced.graph.nodes
            if node.op == "get_attr" and not all(user in self.called for user in node.users)
        }

    def _layer_of_function(self, node: Node) -> str:
        """Return the name of the layer that a call of a function computes with that layer's numbers; "" if of none.

        The trace enters a layer whose class is not torch's own, such as a batch norm with an activation.
        """
        types, names = FUNCTIONS_OF_LAYERS.get(self._name(node), ((), ()))
        if node.op != "call_function" or not types or not node.args:
            return ""
        given = dict(zip(("input", *names), node.args, strict=False)) | node.kwargs
        weight = given.get("weight")
        name = str(weight.target).rpartition(".")[0] if isinstance(weight, Node) and weight.op == "get_attr" else ""
        layer = self.modules.get(name)
        if not isinstance(layer, types):
            return ""
        for key in set(STATE_OF_LAYERS).intersection(names):
            value = given.get(key)
            if isinstance(value, Node):
                is_own = value.op == "get_attr" and value.target == f"{name}.{key}"
            else:
                is_own = value is None and getattr(layer, key, None) is None
            if not is_own:
                return ""
        is_same = given.get("training", False) is False and given.get("groups", 1) == getattr(layer, "groups", 1)
        return name if is_same else ""

    # Numbers of channels.

    def _new(self, count: int) -> Ids:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return np.arange(first, first + count)

    def _root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = number = self.parents[self.parents[number]]
        return number

    def _roots(self, ids: Ids) -> Ids:
        return np.array([self._root(number) for number in ids], np.int64)

    def _join(self, first: Ids, second: Ids) -> None:
        for first_id, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self._root(first_id), self._root(other)))
            self.parents[high] = low

    def _keep(self, ids: Ids, place: str = "", reason: str = "") -> None:
        """Let channels stay. place, reason: of the sentence about it, if it needs one."""
        if place and self._roots(ids).any():
            self.channels.reasons.setdefault(place, reason)
        self._join(ids, np.zeros_like(ids))

    # The course of the trace.

    def run_node(self, n: Node) -> Any:
        """Compute a node, and the layout of its value."""
        value = super().run_node(n)
        if n.op == "output":
            for node in n.all_input_nodes:
                if node in self.layouts:
                    self._keep(self.layouts[node].ids)
        elif isinstance(value, torch.Tensor) and value.dim() > 1:
            self.shapes[n] = value.shape
            layout = self._layout(n, value)
            if layout is not None and value.shape[layout.dim] != len(layout.ids):
                self._keep_inputs(n)
                layout = None
            self.layouts[n] = layout or Layout(1, np.zeros(value.shape[1], np.int64), np.zeros(value.shape[1], bool))
        elif self._name(n) not in READERS_OF_SIZES:
            self._keep_inputs(n)
        return value

    def _name(self, node: Node) -> str:
        """Return the name of the function, method or type of layer that a node calls."""
        if node.op == "call_module":
            return type(self.modules[str(node.target)]).__name__
        return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))

    def _keep_inputs(self, node: Node, reason: str = "") -> None:
        place = str(node.target) if node.op == "call_module" else node.name
        reason = reason or f"channels cannot be followed through {self._name(node)}"
        for before in node.all_input_nodes:
            if before in self.layouts:
                self._keep(self.layouts[before].ids, place, reason)

    def _layout(self, node: Node, value: torch.Tensor) -> Layout | None:
        """Return the layout of a node's value, or None if its channels all stay."""
        before = [self.layouts[other] for other in node.all_input_nodes if other in self.layouts]
        if node.op in ("placeholder", "get_attr") or not before:
            return None
        layout = None
        if node.op == "call_module":
            layout = self._layer(node, str(node.target), before[0], value)
        elif node.op in ("call_function", "call_method"):
            layout = self._function(node, self._name(node), before, value)
        if layout is None:
            self._keep_inputs(node)
        return layout

    def _layer(self, node: Node, name: str, before: Layout, value: torch.Tensor) -> Layout | None:
        """Return the layout of the outputs of the layer `name`, which a node calls."""
        layer = self.modules[name]
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            return self._product(node, name, layer, before, value)
        if isinstance(layer, BATCH_NORMS):
            if layer.weight is None or layer.bias is None:
                self._keep_inputs(node, "a batch norm without weights does not map removed channels to zero")
                return None
            self._record(name, layer, before.ids, before.ids, 0)
            return Layout(1, before.ids, np.ones(len(before.ids), bool))
        if isinstance(layer, ZERO_KEEPING) or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
            return before
        if isinstance(layer, NOT_ZERO_KEEPING):
            return Layout(before.dim, before.ids, np.zeros_like(before.zero))
        if isinstance(layer, CHANNELWISE) and before.dim == 1:
            return before
        if isinstance(layer, nn.Flatten) and layer.start_dim == 1 and layer.end_dim == -1:
            return self._flattened(node, before)
        return None

    def _product(self, node: Node, name: str, layer: nn.Module, before: Layout, value: torch.Tensor) -> Layout | None:
        """Return the layout of the outputs of a convolution or linear layer."""
        assert isinstance(layer, (*CONVOLUTIONS, nn.Linear))
        dim = value.dim() - 1 if isinstance(layer, nn.Linear) else 1
        outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        if not self._roots(before.ids).any():  # they all stay, wherever they lie
            inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            before = Layout(dim, np.zeros(inputs, np.int64), np.ones(inputs, bool))
        if layer._parameters.get("weight") is None or name in self.shared or name in self.read or before.dim != dim:
            self._keep_inputs(node, "its weight is computed or has other readers")
            return None
        known = self.channels.layers.get(name)
        if groups == 1:
            if not before.zero.all():
                reading = before.ids[~before.zero]
                self._keep(reading, name, "channels before it are not zero where they are removed")
            ids = self._new(outputs) if known is None else known.outputs
        else:  # a whole group of channels can be removed
            inputs, each = before.ids.reshape(groups, -1), outputs // groups
            for column in inputs.T[1:]:
                self._join(inputs[:, 0], column)
            ids = np.repeat(inputs[:, 0], each)
        places = self.shapes[node.all_input_nodes[0]] if isinstance(layer, TRANSPOSED) else value.shape
        self._record(name, layer, before.ids, ids, math.prod(places) // places[dim])
        names = [str(user.target) if user.op == "call_module" else self.called.get(user, "") for user in node.users]
        followers = [self.modules.get(name) for name in names]
        normalised = all(isinstance(user, BATCH_NORMS) and user.weight is not None for user in followers)
        self.channels.layers[name].gated &= not normalised or known is not None
        return Layout(dim, ids, np.ones(outputs, bool))

    def _record(self, name: str, layer: nn.Module, inputs: Ids, outputs: Ids, positions: int) -> None:
        """Record a call of a layer. A layer that is called again has the channels of its first call."""
        known = self.channels.layers.setdefault(name, LayerChannels(inputs, outputs))
        known.positions += positions
        self._join(known.inputs, inputs)
        self._join(known.outputs, outputs)
        if name in self.shared or name in self.read:
            self._keep(inputs, name, "its weight has other readers")
            self._keep(outputs)

    def _function(self, node: Node, name: str, before: list[Layout], value: torch.Tensor) -> Layout | None:
        first = before[0]
        if node in self.called:
            return self._layer(node, self.called[node], first, value)
        if name in SUMS or name in PRODUCTS:
            return self._combined(node, name in PRODUCTS, value)
        if name in ("truediv", "div"):
            is_followed = len(before) == 1 and isinstance(node.args[0], Node) and not self._varies(node)
            return first if is_followed else None
        if name in ("cat", "concat", "concatenate"):
            return self._concatenated(node)
        if len(before) > 1:
            return None
        if name in ZERO_KEEPING_FUNCTIONS:
            return first
        if name in NOT_ZERO_KEEPING_FUNCTIONS:
            return Layout(first.dim, first.ids, np.zeros_like(first.zero))
        if name in CHANNELWISE_FUNCTIONS:
            return first if first.dim == 1 else None
        shape = self.shapes[node.all_input_nodes[0]]
        if name in ("mean", "sum", "amax"):
            return self._reduced(node, first, len(shape), value)
        if name in ("flatten", "view", "reshape"):
            # Only flatten(1) and view(batch, -1): other sizes may be written for the source model's widths.
            last: Any = (*node.args, *node.kwargs.values())[-1]
            last = last[-1] if isinstance(last, (tuple, list)) else last
            flat = value.dim() == 2 and value.numel() == np.prod(shape)
            return self._flattened(node, first) if flat and last in ((1, -1) if name == "flatten" else (-1,)) else None
        if name == "pad":
            sizes: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad", ())
            constant = node.kwargs.get("value") or (node.args[3] if len(node.args) > 3 else 0)
            return first if len(sizes) // 2 < len(shape) - first.dim and not constant else None
        if name == "getitem":
            index: Any = node.args[1]
            index = index if isinstance(index, tuple) else (index,)
            keeps_all = all(isinstance(item, slice) for item in index)
            return first if keeps_all and (len(index) <= first.dim or index[first.dim] == slice(None)) else None
        if name in ("permute", "transpose"):
            return self._permuted(node, name, first, shape)
        return None

    def _varies(self, node: Node) -> bool:
        """Return whether an operand without channels of its own has several numbers, such as one for each channel."""
        others = [self.env[other] for other in operands(node) if other not in self.layouts]
        return any(isinstance(value, torch.Tensor) and value.numel() > 1 for value in others)

    def _combined(self, node: Node, product: bool, value: torch.Tensor) -> Layout | None:
        """Return the layout of a sum or a product."""
        values = [other for other in operands(node) if other in self.layouts]
        layouts = [self.layouts[other] for other in values]
        if len(layouts) == 1:  # with a number
            if self._varies(node):
                return None
            is_kept = product or 0 in (*node.args[:2], node.kwargs.get("other"))
            zero = layouts[0].zero if is_kept else np.zeros_like(layouts[0].zero)
            return Layout(layouts[0].dim, layouts[0].ids, zero)
        first, second = layouts
        ranks = {len(self.shapes[other]) for other in values}
        if len(ranks) > 1 or first.dim != second.dim:
            return None
        if len(first.ids) == len(second.ids):
            self._join(first.ids, second.ids)
            zero = first.zero | second.zero if product else first.zero & second.zero
            return Layout(first.dim, first.ids, zero)
        small, large = sorted((first, second), key=lambda layout: len(layout.ids))
        self._keep(small.ids)
        return Layout(large.dim, large.ids, large.zero if product else np.zeros_like(large.zero))

    def _concatenated(self, node: Node) -> Layout | None:
        parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
        if not isinstance(parts, (list, tuple)) or not all(part in self.layouts for part in parts):
            return None
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        layouts, rank = [self.layouts[part] for part in parts], len(self.shapes[parts[0]])
        if {layout.dim for layout in layouts} != {dim % rank}:
            return None
        ids, zero = (np.concatenate([getattr(layout, key) for layout in layouts]) for key in ("ids", "zero"))
        return Layout(dim % rank, ids, zero)

    def _reduced(self, node: Node, before: Layout, rank: int, value: torch.Tensor) -> Layout | None:
        dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if dims is None:
            return None
        dims = {dim % rank for dim in (dims if isinstance(dims, Sequence) else [dims])}
        if before.dim in dims:
            return None
        lower = 0 if value.dim() == rank else sum(dim < before.dim for dim in dims)
        return Layout(before.dim - lower, before.ids, before.zero)

    def _flattened(self, node: Node, before: Layout) -> Layout | None:
        shape = self.shapes[node.all_input_nodes[0]]
        if before.dim != 1:
            return None
        times = int(np.prod(shape[2:], dtype=np.int64))
        return Layout(1, np.repeat(before.ids, times), np.repeat(before.zero, times))

    def _permuted(self, node: Node, name: str, before: Layout, shape: torch.Size) -> Layout | None:
        rank, rest = len(shape), list(node.args[1:])
        order = list(range(rank))
        if name == "transpose":
            first_dim, other = (int(dim) % rank for dim in rest)  # pyright: ignore[reportArgumentType]
            order[first_dim], order[other] = other, first_dim
        else:
            dims: Any = rest[0] if len(rest) == 1 else rest
            order = [int(dim) % rank for dim in dims]
        return Layout(order.index(before.dim), before.ids, before.zero)

    def result(self) -> Channels:
        """Return what was found, with one number for channels that belong together."""
        for channels in self.channels.layers.values():
            channels.inputs, channels.outputs = self._roots(channels.inputs), self._roots(channels.outputs)
        self.channels.branches = self._branches()
        return self.channels

    def _branches(self) -> list[Branch]:
        names = {node: self._name(node) for node in self.traced.nodes}
        layers = {node: name for node, name in self.called.items() if name}
        for node in self.traced.nodes:
            name = str(node.target)
            if node.op == "call_module" and (name in self.channels.layers or self._is_norm(name)):
                layers[node] = name
        gateable = [name for name in self.channels.layers if name not in self.shared and name not in self.read]
        return find_branches(self.traced, names, layers, gateable, self.shapes)

    def _is_norm(self, name: str) -> bool:
        """Return whether a layer is a norm with weights, by which files can say that it is gone."""
        layer = self.modules[name]
        return isinstance(layer, NORMS) and layer.weight is not None

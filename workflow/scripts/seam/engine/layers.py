"""The engine's own form of a network, and how ONNX operations become it.

A tensor is (channels, height, width) per image; [batch, K] counts as (K, 1, 1). Only few kinds of layers remain:
linear layers, batch normalisation, padding and arithmetic with constants are convolutions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from seam.engine.errors import EngineError, UnsupportedError
from seam.engine.reader import Model, Node

BATCH = -(1 << 40)  # stands for the batch's size in computed shapes
MOST_VALUES = 1 << 25  # of one tensor and image
MOST_WORK = 1 << 38  # multiply-adds, or pixels seen by a pooling, of one layer and image
LARGEST_SIZE = 1 << 20  # of a kernel, stride, dilation or padding

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Activation:
    """y = f(x): `clip` to low..high, or another function by name; alpha and beta as ONNX defines them."""

    name: str = "clip"
    low: float = -math.inf
    high: float = math.inf
    alpha: float = 0.0
    beta: float = 0.0

    @property
    def identity(self) -> bool:
        """Whether y = x."""
        return self == Activation()

    def __str__(self) -> str:
        if self.name != "clip":
            return self.name.replace("_", " ")
        if self.identity:
            return ""
        return "relu" if (self.low, self.high) == (0, math.inf) else f"clip {self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Window:
    """How a convolution or pooling moves over a map; pairs are (rows, columns)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)  # padding above and to the left
    after: tuple[int, int] = (0, 0)  # padding below and to the right

    def output(self, height: int, width: int, ceil: bool = False) -> tuple[int, int]:
        """Return the output's (rows, columns) for a map of height x width."""
        sizes = []
        for axis, size in enumerate((height, width)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            room = size + self.before[axis] + self.after[axis] - reach
            count = (-(-room // self.stride[axis]) if ceil else room // self.stride[axis]) + 1
            if count < 1:
                raise UnsupportedError(f"a window of {reach} pixels does not fit into a map of {height} x {width}")
            if ceil and (count - 1) * self.stride[axis] >= size + self.before[axis]:
                count -= 1  # a window must begin within the map or the padding before it
            sizes.append(count)
        return sizes[0], sizes[1]

    def misses(self, axis: int, size: int, outputs: int) -> bool:
        """Return whether one of the windows along an axis of a map meets none of its pixels."""
        inner = range(0, self.dilation[axis] * self.kernel[axis], self.dilation[axis])
        starts = (place * self.stride[axis] - self.before[axis] for place in range(outputs))
        return not all(any(0 <= start + step < size for step in inner) for start in starts)


def _nothing() -> np.ndarray:
    return np.zeros(0, np.float32)


@dataclass
class Layer:
    """One step of the network. `inputs[0]` is what it works on; a second one is added, multiplied or concatenated."""

    kind: str  # convolution, max pool, average pool, global pool, activation, add, multiply, concatenate
    inputs: list[str]
    output: str
    window: Window = field(default_factory=Window)
    weight: np.ndarray = field(default_factory=_nothing)  # [outputs, inputs / groups, rows, columns] of a convolution
    bias: np.ndarray = field(default_factory=_nothing)  # [outputs] of a convolution; other layers have empty arrays
    groups: int = 1
    activation: Activation = field(default_factory=Activation)
    count_padding: bool = False  # average pooling divides by the window's whole size
    residual: str | None = None  # added to a convolution's sums before its activation
    name: str = ""


@dataclass
class Network:
    """Layers in an order in which they can run, and the shape of every tensor."""

    layers: list[Layer]
    shapes: dict[str, Shape]
    input: str
    output: str
    output_rank: int  # 2: [batch, channels]; 4: [batch, channels, rows, columns]


def convert(model: Model) -> Network:
    """Return the network of an ONNX model. Raises UnsupportedError for operations that the engine does not have."""
    return _Converter(model).convert()


@dataclass
class _Converter:
    model: Model
    layers: list[Layer] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)  # a tensor that is another one under a new name
    products: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)  # maps times [columns, new columns]
    unfolded: dict[str, Shape] = field(default_factory=dict)  # maps that are kept as flat features: as the model has it

    def convert(self) -> Network:
        self.constants = dict(self.model.constants)
        self._define(self.model.input, self.model.input_shape, 4)
        for node in self.model.nodes:
            try:
                self._convert(node)
            except UnsupportedError as error:
                raise UnsupportedError(f"{error} (operation {node.name!r})") from error
            except EngineError as error:
                raise EngineError(f"The operation {node.name!r} is malformed: {error}") from error
        output = self._resolve(self.model.output)
        if output not in self.shapes:
            raise UnsupportedError("its output does not depend on its input")
        if output == self.model.input:
            raise UnsupportedError("its output is its input")
        if self._is_unfolded(self.model.output):
            raise UnsupportedError("its output is a map whose rows or columns are multiplied by a matrix")
        return Network(self.layers, self.shapes, self.model.input, output, self.ranks[self.model.output])

    def _convert(self, node: Node) -> None:
        convert: Callable | None = getattr(self, f"_on_{node.operation.lower()}", None)
        if node.operation in _SIMPLE:
            convert = self._simple
        if convert is None:
            raise UnsupportedError(f"it has the operation {node.operation}, which this engine does not")
        if not node.outputs or not node.outputs[0] or any(node.outputs[1:]):
            raise UnsupportedError(f"it uses other than the first output of {node.operation}")
        if not node.inputs and node.operation != "Constant" or "" in node.inputs[:1]:
            raise EngineError("it has no input.")
        for name, value in node.attributes.items():
            if isinstance(value, np.ndarray) and (name != "value" or node.operation not in _HOLDING_TENSORS):
                raise EngineError(f"its attribute {name} is a tensor.")
        convert(node)

    # What nodes read

    def _resolve(self, name: str) -> str:
        return self.same.get(name, name)

    def _is_constant(self, node: Node, index: int) -> bool:
        return index < len(node.inputs) and node.inputs[index] in self.constants

    def _is_unfolded(self, name: str) -> bool:
        """Whether a tensor is a map to the model, but flat features in memory."""
        return self._resolve(name) in self.unfolded and self.ranks[name] == 4

    def _tensor(self, node: Node, index: int = 0) -> str:
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name in self.products or (self._is_unfolded(name) and node.operation not in _FLATTENING):
            raise UnsupportedError(f"{node.operation} reads a map whose rows or columns are multiplied by a matrix")
        if index >= len(node.inputs) or self._resolve(node.inputs[index]) not in self.shapes:
            raise UnsupportedError(f"input {index} of {node.operation} is not computed from the images")
        return self._resolve(node.inputs[index])

    def _constant(self, node: Node, index: int, default: Any = None) -> Any:
        """Return the constant input, or the default if the node has no such input."""
        if index >= len(node.inputs) or not node.inputs[index]:
            return default
        if node.inputs[index] not in self.constants:
            raise UnsupportedError(f"input {index} of {node.operation} is not constant")
        return self.constants[node.inputs[index]]

    def _floats(self, node: Node, index: int, rank: int | None = None) -> np.ndarray:
        value = self._constant(node, index)
        if value is None:
            raise EngineError(f"its input {index} is missing.")
        if value.dtype != np.float32 or (rank is not None and value.ndim != rank):
            raise UnsupportedError(f"input {index} of {node.operation} is a {value.dtype} array of rank {value.ndim}")
        return value

    def _integers(self, node: Node, index: int, attribute: str, default=None) -> list[int] | None:
        """Return integers from an input or, in older versions, from an attribute."""
        value = self._constant(node, index)
        if value is None:
            value = node.attributes.get(attribute, default)
            if value is None:
                return None
            value = np.array(value)
        if value.dtype.kind not in "iu" or value.ndim > 1 or value.size > 64:
            raise EngineError(f"its {attribute} are not integers.")
        return [int(v) for v in np.atleast_1d(value)]

    def _pair(self, node: Node, attribute: str, default: tuple[int, ...], low: int = 1) -> Any:
        value = node.attributes.get(attribute, default)
        if not isinstance(value, tuple) or not all(isinstance(v, int) for v in value):
            raise EngineError(f"its attribute {attribute} is not a list of integers.")
        if len(value) != len(default):
            if len(value) * 2 in (len(default), len(default) * 2) or len(value) in (1, 3, 6):
                raise UnsupportedError(f"{node.operation} is not two-dimensional")
            raise EngineError(f"its attribute {attribute} has {len(value)} values, not {len(default)}.")
        if not all(low <= v <= LARGEST_SIZE for v in value):
            raise EngineError(f"its attribute {attribute} is out of range: {list(value)}.")
        return value

    def _number(self, node: Node, attribute: str, default: float) -> float:
        value = node.attributes.get(attribute, default)
        if not isinstance(value, int | float):
            raise EngineError(f"its attribute {attribute} is not a number.")
        return value

    # What nodes define

    def _define(self, name: str, shape: Shape, rank: int) -> None:
        if math.prod(shape) > MOST_VALUES or min(shape) < 1:
            raise UnsupportedError(f"a tensor would have {math.prod(shape)} values per image")
        self.shapes[name] = shape
        self.ranks[name] = rank

    def _alias(self, node: Node, source: str, rank: int) -> None:
        self.same[node.outputs[0]] = source
        self.ranks[node.outputs[0]] = rank

    def _append(
        self, node: Node, kind: str, inputs: list[str], shape: Shape, rank: int | None = None, **details
    ) -> None:
        output = node.outputs[0]
        weight = details.get("weight")
        window = details.get("window", Window())
        per_value = math.prod(window.kernel) if weight is None else math.prod(weight.shape[1:])
        if per_value * math.prod(shape) > MOST_WORK:
            raise UnsupportedError(f"a layer would take {per_value * math.prod(shape)} multiply-adds per image")
        self._define(output, shape, self.ranks[node.inputs[0]] if rank is None else rank)
        self.layers.append(Layer(kind, inputs, output, name=node.name, **details))

    # Convolutions and what becomes one

    def _window(self, node: Node, kernel: tuple[int, int], size: tuple[int, int]) -> Window:
        stride = self._pair(node, "strides", (1, 1))
        dilation = self._pair(node, "dilations", (1, 1))
        pads = self._pair(node, "pads", (0, 0, 0, 0), low=0)
        automatic = node.attributes.get("auto_pad", "NOTSET")
        before, after = (pads[0], pads[1]), (pads[2], pads[3])
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            need = []
            for axis in (0, 1):
                reach = dilation[axis] * (kernel[axis] - 1) + 1
                need.append(max(0, (-(-size[axis] // stride[axis]) - 1) * stride[axis] + reach - size[axis]))
            less, more = tuple(n // 2 for n in need), tuple(n - n // 2 for n in need)
            before, after = (less, more) if automatic == "SAME_UPPER" else (more, less)
        elif automatic == "VALID":
            before = after = (0, 0)
        elif automatic != "NOTSET":
            raise EngineError(f"its attribute auto_pad is {automatic!r}.")
        return Window(kernel, stride, dilation, before, after)

    def _on_conv(self, node: Node) -> None:
        source = self._tensor(node)
        self._need_rank(node, source, 4)
        weight = self._floats(node, 1)
        if weight.ndim != 4:
            raise UnsupportedError("a convolution is not two-dimensional")
        outputs, inputs, rows, columns = weight.shape
        bias = self._constant(node, 2, np.zeros(outputs, np.float32))
        groups = node.attributes.get("group", 1)
        channels, height, width = self.shapes[source]
        if not isinstance(groups, int) or groups < 1 or not outputs or inputs * groups != channels or outputs % groups:
            raise EngineError(f"its weight {list(weight.shape)} and group do not fit {channels} input channels.")
        if bias.shape != (outputs,) or bias.dtype != np.float32:
            raise EngineError(f"its bias has the shape {list(bias.shape)}, not [{outputs}].")
        if self._pair(node, "kernel_shape", (rows, columns)) != (rows, columns) or not rows * columns:
            raise EngineError("its attribute kernel_shape is not its weight's.")
        window = self._window(node, (rows, columns), (height, width))
        shape = (outputs, *window.output(height, width))
        self._append(node, "convolution", [source], shape, window=window, weight=weight, bias=bias, groups=groups)

    def _on_gemm(self, node: Node) -> None:
        if node.attributes.get("transA", 0) or self._is_constant(node, 0):
            raise UnsupportedError("it multiplies matrices other than images' features by a constant one")
        weight = self._floats(node, 1, rank=2)
        if not node.attributes.get("transB", 0):
            weight = weight.T
        weight = weight * np.float32(self._number(node, "alpha", 1.0))
        bias = self._constant(node, 2, np.zeros(1, np.float32)) * np.float32(self._number(node, "beta", 1.0))
        self._linear(node, weight, bias)

    def _on_matmul(self, node: Node) -> None:
        if len(node.inputs) != 2:
            raise EngineError("it does not have two inputs.")
        if self._is_constant(node, 0):
            self._pool_by_matrices(node)
            return
        source = self._tensor(node)
        if self.ranks[node.inputs[0]] == 2:
            self._linear(node, self._floats(node, 1, rank=2).T, np.zeros(1, np.float32))
            return
        matrix = self._matrix(node, 1)
        if matrix.shape[0] != self.shapes[source][2]:
            raise EngineError(f"its matrix {list(matrix.shape)} does not fit {self.shapes[source][2]} columns.")
        self.products[node.outputs[0]] = source, matrix

    def _matrix(self, node: Node, index: int) -> np.ndarray:
        value = self._floats(node, index)
        if value.ndim != 2 or not value.size:
            raise UnsupportedError("it multiplies maps by other than a matrix")
        return value

    def _pool_by_matrices(self, node: Node) -> None:
        """Append matrix x map x matrix, which adaptive pooling is: a convolution of one channel each.

        Its kernel is as large as the map. Each place of the new map is one of its outputs, so that the new map is flat
        features in memory. Only a flattening can read it.
        """
        left = self._matrix(node, 0)
        if node.inputs[1] not in self.products:
            raise UnsupportedError("it multiplies a constant matrix by images' features")
        source, right = self.products[node.inputs[1]]
        channels, height, width = self.shapes[source]
        if left.shape[1] != height:
            raise EngineError(f"its matrix {list(left.shape)} does not fit {height} rows.")
        rows, columns = left.shape[0], right.shape[1]
        if channels * left.size * right.size > MOST_VALUES:
            raise UnsupportedError(
                f"it pools to {rows} x {columns} places by matrices of {left.size * right.size} numbers"
            )
        kernels = np.einsum("rh,wc->rchw", left, right).reshape(rows * columns, 1, height, width)
        self._append(
            node,
            "convolution",
            [source],
            (channels * rows * columns, 1, 1),
            rank=4,
            window=Window((height, width)),
            weight=np.tile(kernels, (channels, 1, 1, 1)),
            bias=np.zeros(channels * rows * columns, np.float32),
            groups=channels,
        )
        self.unfolded[node.outputs[0]] = channels, rows, columns

    def _linear(self, node: Node, weight: np.ndarray, bias: np.ndarray) -> None:
        """Append a linear layer: a convolution whose kernel is as large as the map that it flattens."""
        source = self._tensor(node)
        if self.ranks[node.inputs[0]] != 2:
            raise UnsupportedError("it multiplies tensors of other than two dimensions by a matrix")
        channels, height, width = self.shapes[source]
        outputs = weight.shape[0]
        if weight.shape[1] != channels * height * width or not outputs:
            raise EngineError(f"its matrix takes {weight.shape[1]} features, not {channels * height * width}.")
        if bias.dtype != np.float32 or bias.size not in (1, outputs) or bias.ndim > 2 or bias.shape[-1:] == (0,):
            raise EngineError(f"its bias has the shape {list(bias.shape)}, not [{outputs}].")
        if bias.ndim == 2 and bias.shape[0] != 1:
            raise UnsupportedError("it adds a matrix")
        self._append(
            node,
            "convolution",
            [source],
            (outputs, 1, 1),
            rank=2,
            window=Window((height, width)),
            weight=np.ascontiguousarray(weight).reshape(outputs, channels, height, width),
            bias=np.broadcast_to(bias.reshape(-1), (outputs,)).copy(),
        )

    def _affine(
        self, node: Node, source: str, scale: np.ndarray, shift: np.ndarray, window: Window | None = None
    ) -> None:
        """Append y = scale * x + shift per channel: a convolution of one channel each."""
        channels, height, width = self.shapes[source]
        window = window or Window()
        weight = np.broadcast_to(scale, (channels,)).astype(np.float32).reshape(channels, 1, 1, 1)
        bias = np.broadcast_to(shift, (channels,)).astype(np.float32)
        shape = (channels, *window.output(height, width))
        rank = self.ranks[next(n for n in node.inputs if self._resolve(n) == source)]
        self._append(
            node, "convolution", [source], shape, rank, window=window, weight=weight, bias=bias, groups=channels
        )

    def _on_batchnormalization(self, node: Node) -> None:
        if node.attributes.get("training_mode", 0):
            raise UnsupportedError("it normalises by the batch's own statistics")
        source = self._tensor(node)
        scale, shift, mean, variance = (self._floats(node, i, rank=1).astype(np.float64) for i in (1, 2, 3, 4))
        channels = self.shapes[source][0]
        if not len(scale) == len(shift) == len(mean) == len(variance) == channels or self._flat(node):
            raise EngineError(f"its statistics are not those of {channels} channels.")
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(variance + self._number(node, "epsilon", 1e-5))
            self._affine(node, source, factor, shift - mean * factor)

    def _on_pad(self, node: Node) -> None:
        source = self._tensor(node)
        pads = self._integers(node, 1, "pads")
        value = self._constant(node, 2, np.float32(self._number(node, "value", 0.0)))
        if node.attributes.get("mode", "constant") != "constant" or value.size != 1 or float(value.reshape(-1)[0]) != 0:
            raise UnsupportedError("it pads with other than zeros")
        if self._constant(node, 3) is not None or self.ranks[node.inputs[0]] != 4:
            raise UnsupportedError("it pads by axes, or tensors of other than four dimensions")
        if pads is None or len(pads) != 8 or not all(abs(p) <= LARGEST_SIZE for p in pads):
            raise EngineError("its pads are not eight integers.")
        if any(p < 0 for p in pads) or pads[0] or pads[1] or pads[4] or pads[5]:
            raise UnsupportedError("it pads channels or crops")
        window = Window(before=(pads[2], pads[3]), after=(pads[6], pads[7]))
        self._affine(node, source, np.ones(1), np.zeros(1), window)

    # Pooling

    def _pool(self, node: Node, kind: str) -> None:
        source = self._tensor(node)
        self._need_rank(node, source, 4)
        channels, height, width = self.shapes[source]
        kernel = self._pair(node, "kernel_shape", (0, 0))
        window = self._window(node, kernel, (height, width))
        if kind == "average pool" and node.attributes.get("dilations", (1, 1)) != (1, 1):
            raise UnsupportedError("it has dilated average pooling")
        is_same = str(node.attributes.get("auto_pad", "")).startswith("SAME")
        for axis, size in enumerate((height, width)):
            stride, reach = window.stride[axis], window.dilation[axis] * (window.kernel[axis] - 1) + 1
            if is_same and (-(-size // stride) - 1) * stride + reach < size:  # versions of the operation differ there
                raise UnsupportedError("it has a pooling that leaves a map's end out, with automatic padding")
            if max(window.before[axis], window.after[axis]) >= window.kernel[axis]:
                raise UnsupportedError("it pads a pooling by as much as its window or more")
        shape = (channels, *window.output(height, width, bool(node.attributes.get("ceil_mode", 0))))
        if any(map(window.misses, (0, 1), (height, width), shape[1:])):
            raise UnsupportedError("it has a dilated pooling with a window of padding alone")
        count_padding = bool(node.attributes.get("count_include_pad", 0))
        if window == Window():
            self._alias(node, source, 4)
            return
        self._append(node, kind, [source], shape, window=window, count_padding=count_padding)

    def _on_maxpool(self, node: Node) -> None:
        self._pool(node, "max pool")

    def _on_averagepool(self, node: Node) -> None:
        self._pool(node, "average pool")

    def _on_globalaveragepool(self, node: Node) -> None:
        source = self._tensor(node)
        self._need_rank(node, source, 4)
        self._pool_globally(node, source, 4)

    def _on_reducemean(self, node: Node) -> None:
        source = self._tensor(node)
        axes = self._integers(node, 1, "axes")
        if self.ranks[node.inputs[0]] != 4 or axes is None or sorted(a % 4 for a in axes) != [2, 3]:
            raise UnsupportedError("it averages over other than rows and columns")
        self._pool_globally(node, source, 4 if node.attributes.get("keepdims", 1) else 2)

    def _pool_globally(self, node: Node, source: str, rank: int) -> None:
        """Append global pooling, unless the map has one pixel, which is its own mean.

        The kernel adds up the lanes of an image. It must not read a pooled map, whose pixel is in all of them.
        """
        if self.shapes[source][1:] == (1, 1):
            self._alias(node, source, rank)
        else:
            self._append(node, "global pool", [source], (self.shapes[source][0], 1, 1), rank)

    # Activations and arithmetic

    def _simple(self, node: Node) -> None:
        source = self._tensor(node)
        make = _SIMPLE[node.operation]
        activation = make(lambda name, default: self._number(node, name, default))
        self._append(node, "activation", [source], self.shapes[source], activation=activation)

    def _on_clip(self, node: Node) -> None:
        source = self._tensor(node)
        bounds = []
        for index, attribute, default in ((1, "min", -math.inf), (2, "max", math.inf)):
            value = self._constant(node, index)
            if value is not None and (value.size != 1 or value.dtype != np.float32):
                raise EngineError("its bounds are not numbers.")
            value = self._number(node, attribute, default) if value is None else float(value.reshape(-1)[0])
            if math.isnan(value):
                raise EngineError("its bounds are not numbers.")
            bounds.append(value)
        activation = Activation(low=bounds[0], high=bounds[1])
        if bounds[0] > bounds[1]:
            raise UnsupportedError("it clips to an empty range")
        self._append(node, "activation", [source], self.shapes[source], activation=activation)

    def _arithmetic(self, node: Node) -> None:
        if len(node.inputs) != 2:
            raise EngineError("it does not have two inputs.")
        constant = [self._is_constant(node, i) for i in (0, 1)]
        if all(constant):
            self._fold(node, lambda values: _computed(node.operation, *values))
            return
        if any(constant):
            self._with_constant(node, constant.index(True))
            return
        if node.operation not in ("Add", "Mul"):
            raise UnsupportedError(f"it has {node.operation} of two tensors")
        first, second = self._tensor(node, 0), self._tensor(node, 1)
        ranks = [self.ranks[name] for name in node.inputs]
        a, b = self.shapes[first], self.shapes[second]
        if ranks[0] != ranks[1] or (ranks[0] == 2 and a != b):
            raise UnsupportedError(f"it has {node.operation} of tensors of different ranks")
        if a[1:] == (1, 1) and b[1:] != (1, 1):
            first, second, a, b = second, first, b, a
        if b != a and b != (a[0], 1, 1):
            raise UnsupportedError(f"it has {node.operation} of tensors of the shapes {list(a)} and {list(b)}")
        self._append(node, "add" if node.operation == "Add" else "multiply", [first, second], a)

    _on_add = _on_mul = _on_sub = _on_div = _arithmetic

    def _with_constant(self, node: Node, index: int) -> None:
        source = self._tensor(node, 1 - index)
        value = self._floats(node, index)
        channels, height, width = self.shapes[source]
        rank = self.ranks[node.inputs[1 - index]]
        shape = (1,) * (rank - value.ndim) + value.shape
        if value.ndim > rank or self._flat_name(node.inputs[1 - index]) or value.size not in (1, channels):
            raise UnsupportedError("it computes with a constant that is not one number per channel")
        if value.size != 1 and shape[1] != channels:
            raise UnsupportedError("it computes with a constant that is not one number per channel")
        value = value.reshape(-1).astype(np.float64)
        ones, zero = np.ones(1), np.zeros(1)
        with np.errstate(all="ignore"):
            if node.operation == "Add":
                scale, shift = ones, value
            elif node.operation == "Sub":
                scale, shift = (ones, -value) if index == 1 else (-ones, value)
            elif node.operation == "Mul":
                scale, shift = value, zero
            elif index == 1:
                scale, shift = 1 / value, zero
            else:
                raise UnsupportedError("it divides a constant by a tensor")
            self._affine(node, source, scale, shift)

    def _on_concat(self, node: Node) -> None:
        if all(name in self.constants for name in node.inputs):
            self._fold(node, lambda values: np.concatenate([np.atleast_1d(v) for v in values]), rank=1)
            return
        names = [self._tensor(node, i) for i in range(len(node.inputs))]
        ranks = {self.ranks[name] for name in node.inputs}
        shapes = [self.shapes[name] for name in names]
        axis = node.attributes.get("axis")
        if len(ranks) > 1 or axis not in (1, 1 - max(ranks)) or any(map(self._flat_name, node.inputs)):
            raise UnsupportedError("it concatenates along other than the channels")
        if len({shape[1:] for shape in shapes}) > 1:
            raise EngineError("its inputs have different rows or columns.")
        self._append(node, "concatenate", names, (sum(s[0] for s in shapes), *shapes[0][1:]))

    # Shapes

    def _need_rank(self, node: Node, source: str, rank: int) -> None:
        if self.ranks[node.inputs[0]] != rank:
            raise UnsupportedError(f"{node.operation} works on a tensor of other than {rank} dimensions")

    def _flat_name(self, name: str) -> bool:
        """Whether a tensor is a map in memory but flat to the model, so that its channels are not the model's."""
        return self.ranks[name] == 2 and self.shapes[self._resolve(name)][1:] != (1, 1)

    def _flat(self, node: Node) -> bool:
        return self._flat_name(node.inputs[0])

    def _on_identity(self, node: Node) -> None:
        if self._is_constant(node, 0):
            self.constants[node.outputs[0]] = self.constants[node.inputs[0]]
        else:
            self._alias(node, self._tensor(node), self.ranks[node.inputs[0]])

    def _on_dropout(self, node: Node) -> None:
        training = self._constant(node, 2)
        if training is not None and training.any():
            raise UnsupportedError("it drops units at random")
        self._on_identity(node)

    def _on_flatten(self, node: Node) -> None:
        source = self._tensor(node)
        if node.attributes.get("axis", 1) not in (1, 1 - self.ranks[node.inputs[0]]):
            raise UnsupportedError("it flattens the batch")
        self._alias(node, source, 2)

    def _on_reshape(self, node: Node) -> None:
        if self._is_constant(node, 0):
            sizes = self._integers(node, 1, "shape")
            if sizes is None:
                raise EngineError("it has no shape.")
            self._fold(node, lambda values: values[0].reshape(sizes), used=1)
            return
        source = self._tensor(node)
        wanted = self._integers(node, 1, "shape") or []
        channels, height, width = self.unfolded.get(source, self.shapes[source])
        count = channels * height * width
        keeps_batch = bool(wanted) and wanted[0] in (BATCH, -1, 0)
        if not keeps_batch or node.attributes.get("allowzero", 0):
            raise UnsupportedError("it reshapes the batch")
        rest = wanted[1:]
        if rest == [count] or (rest == [-1] and wanted[0] != -1):
            self._alias(node, source, 2)
        elif rest == [channels, height, width] or (rest == [-1, height, width] and wanted[0] != -1):
            if source in self.unfolded or self.ranks[node.inputs[0]] != 4 and (height, width) != (1, 1):
                raise UnsupportedError("it makes a map of flat features")
            self._alias(node, source, 4)
        else:
            raise UnsupportedError(f"it reshapes {[channels, height, width]} to {rest}")

    def _on_squeeze(self, node: Node) -> None:
        if self._is_constant(node, 0):
            self._fold(node, lambda values: np.squeeze(values[0]), used=1, rank=1)
            return
        source = self._tensor(node)
        axes = self._integers(node, 1, "axes") or []
        if (
            self.ranks[node.inputs[0]] != 4
            or sorted(a % 4 for a in axes) != [2, 3]
            or self.shapes[source][1:] != (1, 1)
        ):
            raise UnsupportedError("it squeezes other than rows and columns")
        self._alias(node, source, 2)

    def _on_unsqueeze(self, node: Node) -> None:
        axes = self._integers(node, 1, "axes") or []
        if self._is_constant(node, 0):
            if axes != [0]:
                raise UnsupportedError("it unsqueezes a constant")
            self._fold(node, lambda values: values[0][None], used=1)
            return
        source = self._tensor(node)
        if self.ranks[node.inputs[0]] != 2 or sorted(a % 4 for a in axes) != [2, 3] or self._flat(node):
            raise UnsupportedError("it unsqueezes other than rows and columns")
        self._alias(node, source, 4)

    # Shapes that are computed

    def _fold(self, node: Node, compute: Callable, used: int | None = None, rank: int = 2) -> None:
        """Compute a small array of integers now, from inputs of at most `rank` dimensions."""
        values = [self._constant(node, index) for index in range(len(node.inputs[:used]))]
        if any(v is None or v.dtype.kind not in "iu" or v.ndim > rank or v.size > 64 for v in values):
            raise UnsupportedError(f"it has {node.operation} of constants")
        try:
            self.constants[node.outputs[0]] = np.asarray(compute(values))
        except ValueError as error:
            raise EngineError(f"its constants do not fit: their shapes are {[v.shape for v in values]}.") from error

    def _on_constant(self, node: Node) -> None:
        for attribute, dtype in (("value", None), ("value_int", np.int64), ("value_ints", np.int64),
                                 ("value_float", np.float32), ("value_floats", np.float32)):  # fmt: skip
            if attribute in node.attributes:
                value = node.attributes[attribute]
                if isinstance(value, np.ndarray) != (dtype is None) or isinstance(value, str):
                    raise EngineError(f"its attribute {attribute} is of another type.")
                self.constants[node.outputs[0]] = np.asarray(value, dtype)
                return
        raise UnsupportedError("it has a constant that is not a number or an array of numbers")

    def _on_shape(self, node: Node) -> None:
        if self._is_constant(node, 0):
            shape = list(self.constants[node.inputs[0]].shape)
        else:
            source = self._tensor(node)
            channels, height, width = self.unfolded.get(source, self.shapes[source])
            flat = self.ranks[node.inputs[0]] != 4
            shape = [BATCH, channels * height * width] if flat else [BATCH, channels, height, width]
        start, end = node.attributes.get("start", 0), node.attributes.get("end", len(shape))
        if not isinstance(start, int) or not isinstance(end, int):
            raise EngineError("its attributes start and end are not integers.")
        self.constants[node.outputs[0]] = np.array(shape[start:end], np.int64)

    def _on_gather(self, node: Node) -> None:
        if not (self._is_constant(node, 0) and self._is_constant(node, 1)):
            raise UnsupportedError("it gathers from a tensor")

        def gather(values):
            array, index = values
            if array.ndim != 1:
                raise UnsupportedError("it gathers from a constant of other than one dimension")
            if np.any(index >= len(array)) or np.any(index < -len(array)):
                raise EngineError("its index is out of range.")
            return array[index]

        self._fold(node, gather)

    def _on_slice(self, node: Node) -> None:
        if not all(self._is_constant(node, i) for i in range(min(3, len(node.inputs)))) or len(node.inputs) < 3:
            raise UnsupportedError("it slices a tensor")
        axes, steps = self._integers(node, 3, "axes", (0,)), self._integers(node, 4, "steps", (1,))

        def cut(values):
            array, start, end = values
            if not array.ndim or start.size != 1 or end.size != 1 or axes != [0] or steps not in ([1], [-1]):
                raise UnsupportedError("it slices a constant")
            return array[int(start.reshape(-1)[0]) : int(end.reshape(-1)[0]) : steps[0]]

        self._fold(node, cut, used=3)

    def _on_cast(self, node: Node) -> None:
        if not self._is_constant(node, 0) or node.attributes.get("to") not in (6, 7):
            raise UnsupportedError("it casts to another type")
        self._fold(node, lambda values: values[0].astype(np.int64))

    def _on_neg(self, node: Node) -> None:
        self._need_constant(node)
        self._fold(node, lambda values: _computed("Sub", np.zeros_like(values[0]), values[0]))

    def _on_transpose(self, node: Node) -> None:
        self._need_constant(node)
        if node.attributes.get("perm", (1, 0)) != (1, 0):
            raise UnsupportedError("it transposes a constant that is not a matrix")
        self._fold(node, lambda values: values[0].T)

    def _on_constantofshape(self, node: Node) -> None:
        self._need_constant(node)
        value = node.attributes.get("value", np.zeros(1, np.float32))
        sizes = self._integers(node, 0, "shape") or []
        if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind not in "iu":
            raise UnsupportedError("it makes a constant that is not of integers")
        if len(sizes) > 2 or min(sizes, default=0) < 0 or math.prod(sizes) > 64:
            raise UnsupportedError(f"it makes a constant of the shape {sizes}")
        self._fold(node, lambda values: np.full(sizes, int(value.reshape(-1)[0]), np.int64))

    def _need_constant(self, node: Node) -> None:
        if not self._is_constant(node, 0):
            raise UnsupportedError(f"it has {node.operation} of a tensor")


def _computed(operation: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Add, Sub, Mul or Div of two arrays of integers. Their sizes in computed shapes are far below 2**31."""
    if any(np.any(np.abs(values.astype(np.float64)) >= 1 << 31) for values in (first, second)):
        raise UnsupportedError("it computes with the batch's size, or with numbers beyond 32 bits")
    if operation == "Div":
        if not second.all():
            raise EngineError("it divides by 0.")
        return np.trunc(first / second).astype(np.int64)  # exact below 2**31; ONNX rounds towards 0
    return {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[operation](first, second, dtype=np.int64)


_FLATTENING = ("Flatten", "Reshape", "Shape", "Identity", "Dropout")  # what can read a map that is flat in memory

_HOLDING_TENSORS = ("Constant", "ConstantOfShape")  # in their attribute `value`

_SIMPLE: dict[str, Callable[[Callable[[str, float], float]], Activation]] = {
    "Relu": lambda number: Activation(low=0.0),
    "Sigmoid": lambda number: Activation("sigmoid"),
    "HardSigmoid": lambda number: Activation("hard_sigmoid", alpha=number("alpha", 0.2), beta=number("beta", 0.5)),
    "HardSwish": lambda number: Activation("hard_swish", alpha=1 / 6, beta=0.5),
    "LeakyRelu": lambda number: Activation("leaky", alpha=number("alpha", 0.01)),
}


def copied(layer: Layer, **changes) -> Layer:
    """Return the layer with some fields changed."""
    return replace(layer, **changes)

"""Random small ONNX models of the operations that the engine has, for tests and fuzzing."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET = 13


class RandomModel:
    """Draws a network operation by operation and keeps the shape of the tensor at its end."""

    def __init__(self, seed: int, largest: int = 40):
        self.random = np.random.default_rng(seed)
        self.nodes, self.constants = [], []
        self.count = 0
        sizes = [1, 2, 3, 4, 5, 7, 8, 11, 13, 14, 16, 17, 24, 28, 32, 33, 40]
        sizes = [s for s in sizes if s <= largest]
        self.shape = (int(self.random.integers(1, 9)), *(int(s) for s in self.random.choice(sizes, 2)))
        self.input_shape = self.shape
        self.name = "images"

    def draw(self, layers: int) -> bytes:
        """Return the bytes of an ONNX model of at least so many layers."""
        choices = [self.convolution] * 6 + [
            self.pool,
            self.pad,
            self.block,
            self.gate,
            self.concatenate,
            self.normalise,
        ]
        for _ in range(layers):
            self.random.choice(choices)()
            if self.random.random() < 0.6:
                self.activation()
        rank = 4
        if self.random.random() < 0.7:
            self.head()
            rank = 2
        shape = ["batch", *self.shape] if rank == 4 else ["batch", self.shape[0]]
        inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *self.input_shape])]
        outputs = [helper.make_tensor_value_info(self.name, TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "random", inputs, outputs, self.constants)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()

    def constant(self, array: np.ndarray) -> str:
        """Add an initializer and return its name."""
        self.count += 1
        self.constants.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"

    def node(self, operation: str, inputs: list[str], **attributes) -> str:
        """Add an operation and return its output's name."""
        self.count += 1
        self.nodes.append(helper.make_node(operation, inputs, [f"t{self.count}"], name=f"n{self.count}", **attributes))
        return f"t{self.count}"

    def weights(self, *shape: int) -> np.ndarray:
        """Return normal weights, a random share of which, from none to all, is zero."""
        share = self.random.choice([0, 0, 0.3, 0.7, 0.9, 0.97, 1])
        values = self.random.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:]) * (1 - share)))
        return (values * (self.random.random(shape) >= share)).astype(np.float32)

    def convolution(self, outputs: int | None = None, same: bool = False) -> None:
        """Append a convolution of random kernel, stride, dilation, padding and groups that fits the map."""
        channels, height, width = self.shape
        kernel, stride, dilation, before, after = [], [], [], [], []
        for size in (height, width):
            k = int(self.random.choice([1, 1, 2, 3, 3, 3, 5, 7]))
            d = int(self.random.choice([1, 1, 1, 2]))
            if same:
                k |= 1
                pads = (d * (k - 1) // 2,) * 2
                s = 1
            else:
                pads = tuple(int(p) for p in self.random.integers(0, d * (k - 1) + 1, 2))
                s = int(self.random.choice([1, 1, 2, 3]))
            if size + sum(pads) < d * (k - 1) + 1:
                k, d, pads = 1, 1, (0, 0)
            kernel.append(k), dilation.append(d), stride.append(s), before.append(pads[0]), after.append(pads[1])
        groups = int(self.random.choice([g for g in (1, 1, 1, 2, channels) if channels % g == 0]))
        if outputs is None:
            outputs = groups * int(self.random.integers(1, 1 + max(1, 20 // groups)))
        elif outputs % groups:
            groups = 1
        weight = self.weights(outputs, channels // groups, *kernel)
        inputs = [self.name, self.constant(weight)]
        if self.random.random() < 0.7:
            inputs.append(self.constant(self.random.standard_normal(outputs).astype(np.float32)))
        self.name = self.node(
            "Conv", inputs, strides=stride, dilations=dilation, pads=before + after, group=groups, kernel_shape=kernel
        )
        sizes = [
            (size + before[i] + after[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i, size in enumerate((height, width))
        ]
        self.shape = (outputs, *sizes)
        if self.random.random() < 0.4:
            self.normalise()

    def normalise(self) -> None:
        """Append batch normalisation."""
        channels = self.shape[0]
        values = [self.random.standard_normal(channels) for _ in range(3)] + [self.random.uniform(0.5, 2, channels)]
        names = [self.constant(value.astype(np.float32)) for value in values]
        self.name = self.node("BatchNormalization", [self.name, *names])

    def activation(self) -> None:
        """Append an activation."""
        kind = self.random.choice(["Relu", "Clip", "Sigmoid", "HardSigmoid", "LeakyRelu", "Silu", "HardSwish", "Scale"])
        if kind == "Clip":
            bounds = [self.constant(np.float32(0)), self.constant(np.float32(6))]
            self.name = self.node("Clip", [self.name, *bounds])
        elif kind == "Silu":
            self.name = self.node("Mul", [self.name, self.node("Sigmoid", [self.name])])
        elif kind == "HardSwish":
            gate = self.node("HardSigmoid", [self.name], alpha=1 / 6, beta=0.5)
            self.name = self.node("Mul", [gate, self.name])
        elif kind == "Scale":
            value = self.random.standard_normal((1, self.shape[0], 1, 1)).astype(np.float32)
            operation = str(self.random.choice(["Add", "Mul", "Sub"]))
            self.name = self.node(operation, [self.name, self.constant(value)])
        else:
            self.name = self.node(str(kind), [self.name])

    def pool(self) -> None:
        """Append max or average pooling that fits the map."""
        _, height, width = self.shape
        kernel = [int(min(self.random.integers(1, 4), size)) for size in (height, width)]
        stride = [int(s) for s in self.random.integers(1, 3, 2)]
        pads = [int(self.random.integers(0, (k + 1) // 2)) for k in kernel]
        ceil = int(self.random.integers(0, 2))
        for size, k, s, p in zip((height, width), kernel, stride, pads, strict=True):
            if -(-(size + 2 * p - k) // s) * s >= size + p:
                ceil = 0  # ONNX's shape inference counts a window that begins beyond the map; ONNX Runtime does not
        attributes = {"kernel_shape": kernel, "strides": stride, "pads": pads * 2, "ceil_mode": ceil}
        if self.random.random() < 0.5:
            self.name = self.node("MaxPool", [self.name], **attributes)
        else:
            include = int(self.random.integers(0, 2)) if not ceil else 0
            self.name = self.node("AveragePool", [self.name], count_include_pad=include, **attributes)
        sizes = []
        for size, k, s, p in zip((height, width), kernel, stride, pads, strict=True):
            room = size + 2 * p - k
            sizes.append((-(-room // s) if ceil else room // s) + 1)
        self.shape = (self.shape[0], *sizes)

    def pad(self) -> None:
        """Append zeros around the map."""
        pads = [int(p) for p in self.random.integers(0, 3, 4)]
        names = [self.constant(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)), self.constant(np.float32(0))]
        self.name = self.node("Pad", [self.name, *names])
        self.shape = (self.shape[0], self.shape[1] + pads[0] + pads[2], self.shape[2] + pads[1] + pads[3])

    def block(self) -> None:
        """Append a residual block."""
        before = self.name
        self.convolution(self.shape[0], same=True)
        self.activation()
        self.convolution(self.shape[0], same=True)
        order = [self.name, before] if self.random.random() < 0.5 else [before, self.name]
        self.name = self.node("Add", order)

    def gate(self) -> None:
        """Append a squeeze-and-excitation block."""
        before, shape = self.name, self.shape
        self.name = self.node("GlobalAveragePool", [self.name])
        self.shape = (shape[0], 1, 1)
        self.convolution(shape[0], same=True)
        self.name = self.node("Mul", [self.node("Sigmoid", [self.name]), before])
        self.shape = shape

    def concatenate(self) -> None:
        """Append the concatenation of the tensor with a convolution of it."""
        before, channels = self.name, self.shape[0]
        self.convolution(int(self.random.integers(1, 9)), same=True)
        self.name = self.node("Concat", [before, self.name], axis=1)
        self.shape = (channels + self.shape[0], *self.shape[1:])

    def head(self) -> None:
        """Append a classifier: pooled and flattened, or flattened with all its pixels."""
        if np.prod(self.shape) > 2000 or self.random.random() < 0.5:
            self.name = self.node("GlobalAveragePool", [self.name])
            self.shape = (self.shape[0], 1, 1)
        elif self.random.random() < 0.3:
            self.pool_by_matrices()
        self.name = self.node("Flatten", [self.name])
        outputs = int(self.random.integers(1, 12))
        weight = self.constant(self.weights(outputs, int(np.prod(self.shape))))
        bias = self.constant(self.random.standard_normal(outputs).astype(np.float32))
        self.name = self.node("Gemm", [self.name, weight, bias], transB=1)
        self.shape = (outputs, 1, 1)

    def pool_by_matrices(self) -> None:
        """Append products of a matrix, the map and a matrix, as adaptive pooling is exported."""
        channels, height, width = self.shape
        rows, columns = (int(n) for n in self.random.integers(1, 8, 2))
        self.name = self.node("MatMul", [self.name, self.constant(self.weights(width, columns))])
        self.name = self.node("MatMul", [self.constant(self.weights(rows, height)), self.name])
        self.shape = (channels, rows, columns)


class SparseModel(RandomModel):
    """A random model with a tenth of its weights."""

    def weights(self, *shape: int) -> np.ndarray:
        """Return normal weights, nine tenths of which are zero."""
        values = self.random.standard_normal(shape) * np.sqrt(10 / max(1, np.prod(shape[1:])))
        return (values * (self.random.random(shape) < 0.1)).astype(np.float32)


class ComputedModel(RandomModel):
    """A random model that begins with padding computed from the shape, like "same" padding of TensorFlow in torch."""

    def draw(self, layers: int) -> bytes:
        """Return the bytes of an ONNX model of at least so many layers after the padding."""
        self.pad()
        return super().draw(layers)

    def pad(self) -> None:
        """Append zeros around the map, so that a window of 3 or 5 pixels and a stride of 2 or 3 keep all of it."""
        kernel, stride = (int(self.random.choice(values)) for values in ((3, 5), (2, 3)))
        shape = self.node("Shape", [self.name])
        before, after = [], []
        for axis in (2, 3):
            size = self.node("Gather", [shape, self.integers(axis)], axis=0)
            # ceil(size / stride) is -(-size // stride) in the exported file; Div rounds towards 0.
            whole = self.node("Add", [size, self.integers(stride - 1)])
            steps = self.node("Sub", [self.node("Div", [whole, self.integers(stride)]), self.integers(1)])
            covered = self.node("Add", [self.node("Mul", [steps, self.integers(stride)]), self.integers(kernel)])
            need = self.node("Neg", [self.node("Sub", [size, covered])])
            half = self.node("Cast", [self.node("Div", [need, self.integers(2)])], to=TensorProto.INT64)
            for pads, value in ((before, half), (after, self.node("Sub", [need, half]))):
                pads.append(self.node("Unsqueeze", [value, self.integers([0])]))
            length = self.shape[axis - 1]
            grown = max(length, (-(-length // stride) - 1) * stride + kernel)
            self.shape = (*self.shape[: axis - 1], grown, *self.shape[axis:])
        # torch.nn.functional.pad names the last axis first, (before, after) of each; Pad wants all befores first.
        pads = self.node("Concat", [before[1], after[1], before[0], after[0]], axis=0)
        missing = self.node("Sub", [self.integers([8]), self.node("Shape", [pads])])
        zeros = self.node("ConstantOfShape", [missing], value=numpy_helper.from_array(np.zeros(1, np.int64)))
        pairs = self.node("Reshape", [self.node("Concat", [pads, zeros], axis=0), self.integers([-1, 2])])
        last = [self.integers([value]) for value in (-1, -(1 << 63) + 1, 0, -1)]
        turned = self.node("Transpose", [self.node("Slice", [pairs, *last])], perm=[1, 0])
        flat = self.node("Reshape", [turned, self.integers([-1])])
        self.name = self.node("Pad", [self.name, flat])

    def integers(self, values: int | list[int]) -> str:
        """Add a constant of integers and return its name."""
        return self.constant(np.array(values, np.int64))


class RandomGraph(RandomModel):
    """A random model whose layers read any earlier tensor: pooled maps under windows, in residuals and in gates."""

    def draw(self, layers: int) -> bytes:
        """Return the bytes of an ONNX model of about so many layers, of which the last one is the output."""
        self.tensors = [(self.name, self.shape)]
        choices = [self.convolution, self.activation, self.pool, self.pool_globally, self.meet, self.combine]
        while len(self.tensors) <= layers:
            recent = self.random.random() < 0.7
            self.name, self.shape = self.pick(self.tensors[-3:] if recent else self.tensors)
            before = self.name
            self.random.choice(choices)()
            if self.name != before:
                self.tensors.append((self.name, self.shape))
        inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *self.input_shape])]
        outputs = [helper.make_tensor_value_info(self.name, TensorProto.FLOAT, ["batch", *self.shape])]
        graph = helper.make_graph(self.nodes, "random", inputs, outputs, self.constants)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()

    def pick(self, tensors: list) -> tuple[str, tuple[int, int, int]]:
        """Return the name and the shape of one of some tensors."""
        return tensors[int(self.random.integers(len(tensors)))]

    def pool_globally(self) -> None:
        """Append global average pooling."""
        self.name = self.node("GlobalAveragePool", [self.name])
        self.shape = (self.shape[0], 1, 1)

    def meet(self) -> None:
        """Append a convolution that is padded to the size of an earlier tensor, and mostly their sum."""
        name, shape = self.pick(self.tensors)
        kernel = int(self.random.integers(1, 4))
        room = [size - own + kernel - 1 for size, own in zip(shape[1:], self.shape[1:], strict=True)]
        if min(room) < 0:
            return
        before = [int(self.random.integers(0, pad + 1)) for pad in room]
        pads = [*before, *(pad - less for pad, less in zip(room, before, strict=True))]
        weight = self.constant(self.weights(shape[0], self.shape[0], kernel, kernel))
        self.name, self.shape = self.node("Conv", [self.name, weight], pads=pads), shape
        if self.random.random() < 0.8:
            self.name = self.node("Add", [self.name, name] if self.random.random() < 0.5 else [name, self.name])

    def combine(self) -> None:
        """Append the sum, the product or the concatenation with an earlier tensor that fits."""
        operation = str(self.random.choice(["Add", "Mul", "Concat"]))
        if operation == "Concat":
            fitting = [t for t in self.tensors if t[1][1:] == self.shape[1:] and t[1][0] + self.shape[0] <= 40]
            if fitting:
                name, shape = self.pick(fitting)
                self.name = self.node("Concat", [self.name, name], axis=1)
                self.shape = (self.shape[0] + shape[0], *shape[1:])
            return
        fitting = [t for t in self.tensors if t[1] in (self.shape, (self.shape[0], 1, 1))]
        self.name = self.node(operation, [self.name, self.pick(fitting)[0]])

"""Reads an ONNX file into plain nodes and arrays, and refuses what is malformed, too large or beyond float32."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import numpy as np

from seam.engine.errors import EngineError, UnsupportedError

LARGEST_FILE = 1 << 31  # bytes; what protobuf can hold
MOST_NODES = 20_000
OPSETS = range(9, 24)  # whose definitions of the operations in layers.py were compared

_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}  # of TensorProto.DataType
_FIELDS = {1: "float_data", 6: "int32_data", 7: "int64_data", 9: "int32_data", 11: "double_data"}


@dataclass(frozen=True)
class Node:
    """One operation of the file."""

    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, object]
    name: str


@dataclass(frozen=True)
class Model:
    """What the file holds: its nodes in order, its constants, and its only input and output."""

    nodes: list[Node]
    constants: dict[str, np.ndarray]
    input: str
    input_shape: tuple[int, int, int]  # channels, height, width
    output: str
    opset: int
    metadata: dict[str, str]  # what the exporter noted, such as the classes


def read(path: str | Path) -> Model:
    """Return the model of the ONNX file `path`.

    Raises EngineError if the file cannot be read or is malformed, UnsupportedError if it uses what the engine
    leaves to others: several inputs or outputs, free sizes other than the batch, other types, functions.
    """
    return parse(content(path), str(path))


def content(path: str | Path) -> bytes:
    """Return the bytes of an ONNX file.

    Raises EngineError if it cannot be read, is larger than 2 GiB, or is a pipe, a socket or a device, which could be
    waited for without end.
    """
    no_file = EngineError(f"{path} is a pipe, a socket or a device, not a file: give the path of an ONNX file.")
    try:
        if not S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise no_file
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not S_ISREG(status.st_mode):
                raise no_file
            if status.st_size > LARGEST_FILE:
                raise EngineError(f"{path} is larger than 2 GiB, which no ONNX file can be: is it the right file?")
            return file.read(status.st_size)
    except OSError as error:
        raise EngineError(f"Cannot read {path}: {error.strerror or error}.") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file, or a pipe that has taken its place since, without waiting for somebody to write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parse(data: bytes, name: str) -> Model:
    """Return the model in `data`, the bytes of an ONNX file. `name` stands for it in messages. Raises as `read`."""
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own errors have no common class
        raise EngineError(f"{name} is not an ONNX file: {_first_line(error)}.") from error
    graph = model.graph
    opset = _opset(model, name)
    if model.functions or graph.sparse_initializer or graph.quantization_annotation:
        raise UnsupportedError("it has functions of its own, sparse initializers or quantisation")
    if not graph.node:
        raise EngineError(f"{name} has no operations: export the model again.")
    if len(graph.node) > MOST_NODES:
        raise UnsupportedError(f"it has more than {MOST_NODES} operations")
    try:
        constants = {tensor.name: array(tensor) for tensor in graph.initializer}
        nodes = [node(entry) for entry in graph.node]
    except UnicodeError as error:
        raise EngineError(f"{name} has a name that is not text: {error}.") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    _check_order(nodes, constants, [value.name for value in graph.input], name)
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise UnsupportedError(f"it has {len(inputs)} inputs and {len(graph.output)} outputs, not one of each")
    return Model(nodes, constants, inputs[0].name, image_shape(inputs[0]), graph.output[0].name, opset, metadata)


def array(tensor) -> np.ndarray:
    """Return a TensorProto's values. Raises EngineError unless it holds exactly as many as its shape says."""
    label = f"The constant {tensor.name!r}"
    if tensor.data_location == 1 or tensor.external_data:
        raise UnsupportedError("it keeps weights in other files")
    if tensor.HasField("segment"):
        raise UnsupportedError("it keeps a tensor in segments")
    if tensor.data_type not in _DTYPES:
        raise UnsupportedError(f"the constant {tensor.name!r} is neither float32, int32 nor int64")
    dtype = np.dtype(_DTYPES[tensor.data_type])
    shape = tuple(tensor.dims)
    if len(shape) > 8:
        raise EngineError(f"{label} has more than 8 dimensions.")
    if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) > LARGEST_FILE:
        raise EngineError(f"{label} has the impossible shape {list(shape)}.")
    count = math.prod(shape)
    if tensor.raw_data:
        values = np.frombuffer(tensor.raw_data, np.uint8)
        if len(values) != count * dtype.itemsize:
            raise EngineError(f"{label} has {len(values)} bytes where its shape {list(shape)} needs another number.")
        values = values.view(dtype.newbyteorder("<")) if dtype.itemsize > 1 else values.astype(bool)
        values = values.astype(dtype)
    else:
        field = getattr(tensor, _FIELDS[tensor.data_type])
        if len(field) != count:
            raise EngineError(f"{label} has {len(field)} values where its shape {list(shape)} needs another number.")
        values = np.array(field, dtype)
    return values.reshape(shape)


def _opset(model, name: str) -> int:
    domains = {entry.domain: entry.version for entry in model.opset_import}
    others = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if others:
        raise UnsupportedError(f"it uses operations of the domain {sorted(others)[0]!r}")
    version = domains.get("", domains.get("ai.onnx"))
    if version is None:
        raise EngineError(f"{name} does not say which version of the ONNX operations it uses.")
    if version not in OPSETS:
        raise UnsupportedError(f"it uses version {version} of the ONNX operations, not {OPSETS[0]} to {OPSETS[-1]}")
    return version


def node(node) -> Node:
    """Return a NodeProto's content. Raises UnsupportedError if it holds a graph."""
    attributes = {}
    for attribute in node.attribute:
        kind = attribute.type
        if kind == 1:
            value = float(attribute.f)
        elif kind == 2:
            value = int(attribute.i)
        elif kind == 3:
            value = attribute.s.decode("utf-8", "replace")
        elif kind == 4:
            value = array(attribute.t)
        elif kind == 6:
            value = tuple(map(float, attribute.floats))
        elif kind == 7:
            value = tuple(map(int, attribute.ints))
        else:
            raise UnsupportedError(f"the operation {node.op_type} has an attribute that is a graph or of another kind")
        attributes[attribute.name] = value
    return Node(node.op_type, tuple(node.input), tuple(node.output), attributes, node.name or node.op_type)


def _check_order(nodes: list[Node], constants: dict, inputs: list[str], name: str) -> None:
    known = {"", *constants, *inputs}
    for node in nodes:
        for value in node.inputs:
            if value not in known:
                raise EngineError(f"{name} is malformed: {node.name!r} reads {value!r} before anything computes it.")
        for value in node.outputs:
            if value and value in known:
                raise EngineError(f"{name} is malformed: {value!r} is computed twice.")
            known.add(value)


def image_shape(value) -> tuple[int, int, int]:
    """Return channels, rows and columns of a ValueInfoProto. Raises UnsupportedError unless they are fixed."""
    tensor = value.type.tensor_type
    if tensor.elem_type != 1:
        raise UnsupportedError(f"its input {value.name!r} is not float32")
    sizes = [entry.dim_value if entry.HasField("dim_value") else 0 for entry in tensor.shape.dim]
    if len(sizes) != 4:
        raise UnsupportedError(
            f"its input {value.name!r} has {len(sizes)} dimensions, not [batch, channels, rows, columns]"
        )
    if min(sizes[1:]) < 1 or max(sizes[1:]) > 1 << 16:
        raise UnsupportedError(
            f"its input's channels, rows and columns are not fixed, or beyond 1 to 65536: {sizes[1:]}"
        )
    return sizes[1], sizes[2], sizes[3]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(" .")

"""An ONNX model in the shapes that kernels for int8 are made for.

Engines compute channels in blocks of the processor's vectors. ONNX Runtime takes longer for an int8 convolution of 8
channels than for one of 16, because its fast kernels begin there. So neighbouring columns of narrow layers are packed
into channels: a tensor [B, C, H, W] becomes [B, f C, H, W / f], in which channel a C + c of column q is channel c of
column f q + a. A convolution of packed tensors is again a convolution, of f times as many channels on an f-th of the
columns, with zeros in its kernel. It computes the same sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Operations on each value by itself, or on values of the same place of two tensors.
ELEMENTWISE = {
    "Add", "Clip", "Elu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh",
}  # fmt: skip
WIDE_ENOUGH = 16  # channels
PRODUCTS = 4  # that one instruction for int8 adds up, each of another input channel


def pack_columns(model: Any) -> int:
    """Pack the tensors of fewer than 16 channels of an ONNX model, in place, where that needs no further operation.

    model: an `onnx.ModelProto` for images of a fixed size. Inputs and outputs stay as they are: a convolution packs
    what it writes, and one with a stride unpacks what it reads. Returns the number of convolutions that changed.
    """
    import onnx

    graph = model.graph
    if _has_branches(graph):
        return 0
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: _shape(value) for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    constants = _constants(graph)
    factors = _factors(graph, shapes, constants)
    count = 0
    for node in graph.node:
        if node.op_type == "Conv":
            before, after = factors.get(node.input[0], 1), factors.get(node.output[0], 1)
            if (before, after) != (1, 1):
                _pack_convolution(graph, node, constants, shapes, before, after)
                count += 1
    del graph.value_info[:]  # their shapes are those of before
    return count


def pad_images(model: Any) -> bool:
    """Give images channels of zeros up to a multiple of four, in place, if only convolutions read them.

    model: an `onnx.ModelProto` of opset 11 or newer, whose first input is the images. Returns whether it did so.
    """
    import onnx

    graph = model.graph
    images, constants = graph.input[0], _constants(graph)
    readers = [node for node in graph.node if images.name in node.input]
    missing = -_shape(images)[1] % PRODUCTS
    if not missing or _has_branches(graph) or not all(_is_plain(node, constants) for node in readers):
        return False
    padded, amounts = f"{images.name}:padded", f"{images.name}:pads"
    for node in readers:
        weight = onnx.numpy_helper.to_array(constants[node.input[1]])
        _replace(graph, node, 1, np.pad(weight, [(0, 0), (0, missing), (0, 0), (0, 0)]), "padded")
        node.input[0] = padded
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 0, 0, 0, 0, missing, 0, 0]), amounts))
    graph.node.insert(0, onnx.helper.make_node("Pad", [images.name, amounts], [padded], name=padded))
    return True


def _has_branches(graph: Any) -> bool:
    """Return whether a node has graphs of its own, which read tensors that the node does not name."""
    return any(each.type in (each.GRAPH, each.GRAPHS) for node in graph.node for each in node.attribute)


def _replace(graph: Any, node: Any, index: int, value: np.ndarray, how: str) -> None:
    """Give a node a constant of its own as an input, and drop the old one unless something else reads it.

    how: a word for its name.
    """
    import onnx

    old, name = node.input[index], f"{node.output[0]}:{how}{index}"
    graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    node.input[index] = name
    if old not in {each for node in graph.node for each in node.input} | {each.name for each in graph.output}:
        for each in [each for each in graph.initializer if each.name == old]:
            graph.initializer.remove(each)


def _constants(graph: Any) -> dict[str, Any]:
    """Return {name: TensorProto} of a graph's constants."""
    constants = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and (value := _attribute(node, "value", None)) is not None:
            constants[node.output[0]] = value
        elif node.op_type == "Identity" and node.input[0] in constants:  # torch writes equal parameters once
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def _shape(value: Any) -> tuple[int, ...]:
    """Return the dimensions of an ONNX value; those that are not known, as that of the batch, are 0."""
    return tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)


def _factors(graph: Any, shapes: dict[str, tuple[int, ...]], constants: dict[str, Any]) -> dict[str, int]:
    """Return {tensor: columns packed into one} of the tensors to pack.

    All tensors that elementwise operations tie together have one factor. They stay as they are if anything but a
    convolution reads or writes them. The factor is halved until no convolution that reads them would write to places
    between two columns.
    """
    tied: dict[str, str] = {}

    def root(name: str) -> str:
        while tied.setdefault(name, name) != name:
            name = tied[name]
        return name

    fixed = {value.name for value in (*graph.input, *graph.output)}
    convolutions = []
    for node in graph.node:
        tensors = [name for name in (*node.input, *node.output) if name and name not in constants]
        if _is_plain(node, constants):
            convolutions.append(node)
            tied.update({name: root(name) for name in (node.input[0], node.output[0])})
        elif _is_elementwise(node, tensors, shapes, constants):
            for name in tensors[1:]:
                tied[root(name)] = root(tensors[0])
        else:
            fixed.update(tensors)
    members: dict[str, list[str]] = {}
    for name in list(tied):
        members.setdefault(root(name), []).append(name)
    factors = {
        group: 1 if fixed.intersection(names) else min(_factor(shapes.get(name, ())) for name in names)
        for group, names in members.items()
    }
    while bad := {
        root(node.input[0])
        for node in convolutions
        if _stride(node)[1] * factors[root(node.output[0])] % factors[root(node.input[0])]
    }:
        factors.update({group: factors[group] // 2 for group in bad})
    return {name: factors[root(name)] for name in tied if factors[root(name)] > 1}


def _factor(shape: tuple[int, ...]) -> int:
    """Return how many columns of a tensor of this shape make one, so that it has 16 channels or more if that can be."""
    if len(shape) != 4 or not shape[1] or not shape[3]:
        return 1
    factor = 1
    while shape[1] * factor < WIDE_ENOUGH and shape[3] % (factor * 2) == 0:
        factor *= 2
    return factor


def _is_elementwise(
    node: Any, tensors: list[str], shapes: dict[str, tuple[int, ...]], constants: dict[str, Any]
) -> bool:
    """Return whether a node does the same in all places: it reads tensors of one shape, and constants of one number."""
    numbers = [constants[name] for name in node.input if name in constants]
    return (
        node.op_type in ELEMENTWISE
        and len({shapes.get(name) for name in tensors}) == 1
        and all(np.prod(number.dims) == 1 for number in numbers)
    )


def _attribute(node: Any, name: str, default: Any) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _is_plain(node: Any, constants: dict[str, Any]) -> bool:
    """Return whether a node is a convolution of images without groups and dilations, of constant weights."""
    return (
        node.op_type == "Conv"
        and all(name in constants for name in node.input[1:] if name)
        and len(constants[node.input[1]].dims) == 4
        and _attribute(node, "group", 1) == 1
        and list(_attribute(node, "dilations", [1, 1])) == [1, 1]
        and _attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
    )


def _stride(node: Any) -> list[int]:
    return list(_attribute(node, "strides", [1, 1]))


def _pack_convolution(
    graph: Any, node: Any, constants: dict[str, Any], shapes: dict[str, tuple[int, ...]], before: int, after: int
) -> None:
    """Give a convolution the kernel for an input and an output of which `before` and `after` columns are packed.

    Column `after` q + b of the output reads column stride (`after` q + b) + t - pad of the input by column t of the
    kernel. With offset = stride b + t - pad, that is column offset mod `before` of those in the packed column
    (stride `after` / `before`) q + floor(offset / `before`).
    """
    import onnx

    weight = onnx.numpy_helper.to_array(constants[node.input[1]])
    outputs, inputs, height, width = weight.shape
    top, left, bottom, _ = _attribute(node, "pads", [0, 0, 0, 0])
    rows, columns = _stride(node)
    offsets = {(b, t): columns * b + t - left for b in range(after) for t in range(width)}
    first, last = (pick(offset // before for offset in offsets.values()) for pick in (min, max))
    packed = np.zeros((after, outputs, before, inputs, height, last - first + 1), weight.dtype)
    for (b, t), offset in offsets.items():
        packed[b, :, offset % before, :, :, offset // before - first] = weight[:, :, :, t]
    packed = packed.reshape(after * outputs, before * inputs, height, last - first + 1)
    stride = columns * after // before
    right = (shapes[node.output[0]][3] // after - 1) * stride + last + 1 - shapes[node.input[0]][3] // before
    attributes = {
        "kernel_shape": [height, last - first + 1],
        "strides": [rows, stride],
        "pads": [top, -first, bottom, max(right, 0)],
    }
    for each in [each for each in node.attribute if each.name in attributes]:
        node.attribute.remove(each)
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
    _replace(graph, node, 1, packed, "packed")
    if len(node.input) > 2 and node.input[2]:
        _replace(graph, node, 2, np.tile(onnx.numpy_helper.to_array(constants[node.input[2]]), after), "packed")

"""Columns packed into channels: the model computes the same, and nothing is packed where it would not."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from seam.cost.export import export
from seam.cost.packing import pack_columns, pad_images
from seam.cost.quantization import quantize


class Block(nn.Module):
    """The residual block of a ResNet, with a convolution beside it if its shape changes."""

    def __init__(self, inputs, outputs, stride=1, activation=nn.ReLU):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.beside = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()
        self.activation = activation()

    def forward(self, x):
        return self.activation(self.second(self.activation(self.first(x))) + self.beside(x))


def head(*layers, width):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def packed(module, tmp_path, size=32, channels=3, change=lambda model: None):
    """Return (convolutions that changed, the model before, the model after), whose outputs are the same.

    change: what is done to the exported model first.
    """
    torch.manual_seed(0)
    height, width = (size, size) if isinstance(size, int) else size
    export(module, tmp_path / "model.onnx", (channels, height, width), 2)
    before = onnx.load(tmp_path / "model.onnx")
    change(before)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    count = pack_columns(after)
    onnx.checker.check_model(after, full_check=True)
    images = np.random.default_rng(0).standard_normal((2, channels, height, width), np.float32)
    expected = run(before, images)
    assert np.abs(run(after, images) - expected).max() <= 1e-5 * np.abs(expected).max()
    return count, before, after


def widths(model):
    """Return the shape of the kernel of each convolution."""
    shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    return [shapes[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]


def stem(width, activation=nn.ReLU):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), activation(), Block(width, width, activation=activation))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.SiLU, nn.LeakyReLU, nn.Hardswish])
def test_the_narrow_stage_of_a_resnet_is_packed_and_the_next_one_unpacks_it(tmp_path, activation):
    count, before, after = packed(head(stem(8, activation), Block(8, 24, 2), width=24), tmp_path)
    assert count == 5  # the first, two of the narrow block, and both that read it with a stride
    shapes = widths(after)
    assert shapes[:3] == [(16, 3, 3, 4), (16, 16, 3, 3), (16, 16, 3, 3)]
    assert sorted(shapes[3:]) == [(24, 16, 1, 1), (24, 16, 3, 2), (24, 24, 3, 3)]
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]


@pytest.mark.parametrize(("width", "factor"), [(1, 16), (2, 8), (3, 8), (4, 4), (5, 4), (8, 2), (9, 2), (16, 1)])
def test_columns_are_packed_until_there_are_sixteen_channels(tmp_path, width, factor):
    count, _, after = packed(head(stem(width), nn.Conv2d(width, 20, 5, 16, padding=2), width=20), tmp_path)
    assert count == (0 if factor == 1 else 4) and widths(after)[1][:2] == (width * factor, width * factor)


@pytest.mark.parametrize(("stride", "factor"), [(1, 1), (2, 2), (4, 4), (6, 2)])
def test_as_many_columns_are_packed_as_the_next_stride_unpacks(tmp_path, stride, factor):
    count, _, after = packed(head(stem(4), nn.Conv2d(4, 20, 3, stride, padding=1), width=20), tmp_path)
    assert count == (4 if factor > 1 else 0) and widths(after)[1][0] == 4 * factor


@pytest.mark.parametrize("size", [30, 32, 33, 36])
def test_as_many_columns_are_packed_as_divide_the_width(tmp_path, size):
    count, _, after = packed(head(stem(4), nn.Conv2d(4, 20, 3, 4, padding=1), width=20), tmp_path, size)
    factor = {30: 2, 32: 4, 33: 1, 36: 4}[size]
    assert count == (4 if factor > 1 else 0) and widths(after)[1][0] == 4 * factor


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(8, 20, 3, padding=1)],  # it would write to columns between two packed ones
        [nn.MaxPool2d(2), nn.Conv2d(8, 20, 3, 2)],
        [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 20, 3, 2)],
        [nn.Conv2d(8, 20, 3, 2, padding=2, dilation=2)],
        [nn.BatchNorm2d(8), nn.Softmax(1), nn.Conv2d(8, 20, 3, 2)],
        [nn.PReLU(8), nn.Conv2d(8, 20, 3, 2)],
    ],
)
def test_what_cannot_be_packed_stays_as_it_is(tmp_path, layers):
    count, before, after = packed(head(nn.Conv2d(3, 8, 3, padding=1), *layers, width=20), tmp_path)
    assert count == 0
    del before.graph.value_info[:]
    assert after == before


class Scaled(nn.Module):
    """A product with another value for each channel, or for each place."""

    def __init__(self, by_channel):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 20, 3, 2)
        self.scale = nn.Parameter(torch.rand(8, 1, 1)) if by_channel else None
        self.gate = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x):
        return self.last(self.first(x) * (self.gate(x) if self.scale is None else self.scale))


@pytest.mark.parametrize("by_channel", [True, False])
def test_products_that_differ_by_channel_or_place_are_not_packed(tmp_path, by_channel):
    count, _, _ = packed(head(Scaled(by_channel), width=20), tmp_path)
    assert count == 0


def test_kernels_and_images_need_not_be_square(tmp_path):
    layers = [
        nn.Conv2d(3, 8, (3, 5), padding=(1, 2)), nn.ReLU(), nn.Conv2d(8, 6, (5, 1), (2, 1), padding=(2, 0)),
        nn.Conv2d(6, 8, (1, 7), (1, 2), padding=(0, 3)), nn.Conv2d(8, 20, (1, 4), (3, 8)),
    ]  # fmt: skip
    count, _, _ = packed(head(*layers, width=20), tmp_path, (24, 40))
    assert count == 4


def test_padding_may_differ_from_side_to_side(tmp_path):
    def uneven(model):
        for node, pads in zip([node for node in model.graph.node if node.op_type == "Conv"], PADS, strict=False):
            attribute = next(each for each in node.attribute if each.name == "pads")
            attribute.ints[:] = pads

    PADS = [[2, 0, 0, 2], [0, 2, 2, 0]]
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 20, 3, 2)]
    count, _, _ = packed(head(*layers, width=20), tmp_path, change=uneven)
    assert count == 3


def test_a_model_with_branches_stays_as_it_is(tmp_path):
    """A branch reads tensors and constants that its node does not name."""

    def branch(model):
        helper, graph = onnx.helper, model.graph
        first = next(node for node in graph.node if node.op_type == "Conv")
        value = helper.make_tensor_value_info("taken", onnx.TensorProto.FLOAT, None)
        bodies = [
            helper.make_graph([helper.make_node(name, inputs, ["taken"])], name, [], [value])
            for name, inputs in (("Mul", [first.output[0], "scale"]), ("Identity", [first.output[0]]))
        ]
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2), "scale"))
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "whether"))
        node = helper.make_node("If", ["whether"], ["chosen"], then_branch=bodies[0], else_branch=bodies[1])
        for reader in graph.node:
            reader.input[:] = ["chosen" if name == first.output[0] else name for name in reader.input]
        graph.node.insert(1, node)
        del graph.value_info[:]

    count, before, after = packed(head(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 20, 3, 2), width=20), tmp_path, change=branch)
    assert count == 0 and not pad_images(after) and after == before


def test_a_constant_that_two_convolutions_share_stays_for_the_other(tmp_path):
    shared = nn.Conv2d(8, 8, 3, padding=1)
    count, _, _ = packed(head(stem(8), shared, nn.ReLU(), shared, nn.Conv2d(8, 20, 3, 2), width=20), tmp_path)
    assert count == 6


def test_models_in_int8_are_packed_and_answer_the_same(tmp_path, monkeypatch):
    count, _, _ = packed(head(stem(8), Block(8, 24, 2), width=24), tmp_path)
    images = np.random.default_rng(0).standard_normal((16, 3, 32, 32), np.float32)
    quantize(tmp_path / "model.onnx", tmp_path / "packed.onnx", [images])
    for name in ("pack_columns", "pad_images"):
        monkeypatch.setattr(f"seam.cost.quantization.{name}", lambda model: None)
    quantize(tmp_path / "model.onnx", tmp_path / "plain.onnx", [images])
    models = {name: onnx.load(tmp_path / f"{name}.onnx") for name in ("packed", "plain")}
    kernels = {name: {tuple(each.dims) for each in model.graph.initializer} for name, model in models.items()}
    assert count and {(16, 4, 3, 4), (16, 16, 3, 3)} <= kernels["packed"] and (8, 8, 3, 3) in kernels["plain"]
    outputs = {name: run(model, images) for name, model in models.items()}
    assert np.abs(outputs["packed"] - outputs["plain"]).max() < 0.02 * np.abs(outputs["plain"]).max()


def test_a_tensor_that_is_an_output_of_the_model_stays_as_it_is(tmp_path):
    count, _, _ = packed(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)), tmp_path)
    assert count == 0


def test_random_chains_of_convolutions_compute_the_same(tmp_path):
    """Kernels, strides and padding of all kinds, in front of and behind residual additions."""
    generator, changed = np.random.default_rng(0), 0

    def pick(*values):
        return int(generator.choice(values))

    for _ in range(40):
        layers, channels, size = [], pick(1, 3, 4), pick(24, 32, 40)
        width, columns = channels, size
        for _ in range(pick(2, 3, 4)):
            outputs, kernel, stride = pick(2, 4, 6, 8, 12), pick(1, 2, 3, 5), pick(1, 1, 2, 4)
            padding = pick(*range(kernel // 2 + 1))
            if (columns + 2 * padding - kernel) // stride < 4:
                break
            layers += [nn.Conv2d(width, outputs, kernel, stride, padding), nn.ReLU()]
            columns, width = (columns + 2 * padding - kernel) // stride + 1, outputs
            if pick(0, 1):
                layers.append(Block(width, width))
        layers += [nn.Conv2d(width, 17, 3, 2, 1)]
        changed += packed(head(*layers, width=17), tmp_path, size, channels)[0]
    assert changed > 50


def test_images_get_a_channel_of_zeros(tmp_path):
    count, before, after = packed(head(stem(8), Block(8, 24, 2), width=24), tmp_path)
    assert count and pad_images(after) and not pad_images(after)
    onnx.checker.check_model(after, full_check=True)
    images = np.random.default_rng(1).standard_normal((2, 3, 32, 32), np.float32)
    np.testing.assert_allclose(run(after, images), run(before, images), atol=1e-5)
    assert widths(after)[0] == (16, 4, 3, 4)


@pytest.mark.parametrize(("channels", "layer"), [(4, nn.Identity()), (3, nn.ReLU()), (3, nn.MaxPool2d(2))])
def test_images_stay_as_they_are_if_it_would_not_help(tmp_path, channels, layer):
    _, _, model = packed(head(layer, nn.Conv2d(channels, 24, 3), width=24), tmp_path, channels=channels)
    same = onnx.ModelProto()
    same.CopyFrom(model)
    assert not pad_images(model) and model == same


def test_parameters_that_the_exporter_writes_once_are_constants(tmp_path):
    network = head(stem(8), nn.Conv2d(8, 24, 3, 2), width=24)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    count, before, _ = packed(network, tmp_path)
    assert count == 4 and "Identity" in {node.op_type for node in before.graph.node}

"""Columns packed into channels: the model computes the same, and nothing is packed where it would not."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from seam.cost.export import export
from seam.cost.packing import pack_columns, pad_images


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


def packed(module, tmp_path, size=32, channels=3):
    """Return (convolutions that changed, the model before, the model after), whose outputs are the same."""
    torch.manual_seed(0)
    export(module, tmp_path / "model.onnx", (channels, size, size), 2)
    before, after = onnx.load(tmp_path / "model.onnx"), onnx.load(tmp_path / "model.onnx")
    count = pack_columns(after)
    onnx.checker.check_model(after, full_check=True)
    images = np.random.default_rng(0).standard_normal((2, channels, size, size), np.float32)
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


@pytest.mark.parametrize(("width", "factor"), [(1, 16), (2, 8), (3, 4), (4, 4), (5, 2), (8, 2), (9, 1), (16, 1)])
def test_columns_are_packed_up_to_sixteen_channels(tmp_path, width, factor):
    count, _, after = packed(head(stem(width), nn.Conv2d(width, 20, 5, 16, padding=2), width=20), tmp_path)
    assert count == (0 if factor == 1 else 4) and widths(after)[1][:2] == (width * factor, width * factor)


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

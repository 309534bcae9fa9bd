"""Adaptive average pooling of any size, as ONNX Runtime and the engine for zeros compute it from the exported file."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from seam.cost.export import export
from seam.cost.symbolics import pooling_matrix
from seam.engine import UnsupportedError, load


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 7), (5, 3), (7, 7), (9, 1), (1, 4), (12, 8)])
def test_the_matrix_pools_as_torch_does(inputs, outputs):
    values = torch.randn(4, inputs, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.adaptive_avg_pool1d(values, outputs)
    torch.testing.assert_close(values @ pooling_matrix(inputs, outputs), expected)


def pooled(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), *layers).eval()


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]


@pytest.mark.parametrize(
    ("size", "output"), [((2, 2), (7, 7)), ((4, 6), (6, 6)), ((5, 3), (3, 2)), ((7, 7), (3, 7)), ((10, 12), (1, 5))]
)
def test_windows_of_several_sizes_are_exported(size, output, tmp_path):
    module = pooled(nn.AdaptiveAvgPool2d(output), nn.Flatten(), nn.Linear(6 * output[0] * output[1], 4))
    export(module, tmp_path / "model.onnx", (3, *size))
    for number in (1, 5):
        images = torch.randn(number, 3, *size)
        expected = module(images).detach().numpy()
        np.testing.assert_allclose(run(tmp_path / "model.onnx", images), expected, atol=1e-6)
        engine = load(tmp_path / "model.onnx", threads=1, fallback=False)
        np.testing.assert_allclose(engine(images.numpy()), expected, atol=1e-6)


class Viewed(nn.Module):
    """Flattens a pooled map by a view, with the sizes that it reads from it."""

    def __init__(self):
        super().__init__()
        self.body, self.head = pooled(nn.AdaptiveAvgPool2d((4, None))), nn.Linear(6 * 4 * 5, 2)

    def forward(self, images):
        maps = self.body(images)
        return self.head(maps.view(maps.size(0), maps.size(1) * maps.size(2) * maps.size(3)))


def test_a_view_of_pooled_maps_runs_in_both_engines(tmp_path):
    module, images = Viewed().eval(), torch.randn(3, 3, 6, 5)
    export(module, tmp_path / "model.onnx", (3, 6, 5))
    expected = module(images).detach().numpy()
    np.testing.assert_allclose(run(tmp_path / "model.onnx", images), expected, atol=1e-6)
    engine = load(tmp_path / "model.onnx", threads=1, fallback=False)
    np.testing.assert_allclose(engine(images.numpy()), expected, atol=1e-6)


def test_one_dimension(tmp_path):
    module, images = (
        pooled(nn.Flatten(2), nn.AdaptiveAvgPool1d(7), nn.Flatten(), nn.Linear(42, 3)),
        torch.randn(2, 3, 4, 4),
    )
    export(module, tmp_path / "model.onnx", (3, 4, 4))
    np.testing.assert_allclose(run(tmp_path / "model.onnx", images), module(images).detach().numpy(), atol=1e-6)


def test_windows_of_one_size_stay_a_pooling(tmp_path):
    module = pooled(nn.AdaptiveAvgPool2d((2, 4)), nn.Flatten(), nn.Linear(48, 3))
    export(module, tmp_path / "model.onnx", (3, 8, 8))
    operations = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "AveragePool" in operations and "MatMul" not in operations


@pytest.mark.parametrize("after", [nn.Conv2d(6, 2, 1), nn.ReLU()])
def test_the_engine_says_what_it_leaves_to_others(after, tmp_path):
    module = pooled(nn.AdaptiveAvgPool2d((3, 3)), after, nn.Flatten())
    export(module, tmp_path / "model.onnx", (3, 5, 5))
    with pytest.raises(UnsupportedError, match="reads a map whose rows or columns are multiplied by a matrix"):
        load(tmp_path / "model.onnx", threads=1, fallback=False)

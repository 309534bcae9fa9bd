"""Random models give what ONNX Runtime gives.

SEAM_ENGINE_MODELS: how many models (default 120); there are three times as many graphs.
"""

import os

import numpy as np
import onnx
import pytest
from conftest import INSTRUCTIONS, assert_agrees, needs_compiler
from onnx import TensorProto, helper, numpy_helper
from random_models import ComputedModel, RandomGraph, RandomModel

from seam.engine import engine
from seam.engine.layout import Split

MODELS = int(os.environ.get("SEAM_ENGINE_MODELS", 120))
COUNTS = (1, 2, 3, 4, 7, 8, 15, 16, 17, 33)


@needs_compiler
@pytest.mark.parametrize("block", range(8))
def test_random_models(block, tmp_path):
    path = tmp_path / "model.onnx"
    for seed in range(block, MODELS, 8):
        random = np.random.default_rng(seed)
        path.write_bytes(RandomModel(seed).draw(int(random.integers(1, 7))))
        counts = sorted({int(n) for n in random.choice(COUNTS, 3)})
        try:
            assert_agrees(path, counts, instructions=INSTRUCTIONS[seed % len(INSTRUCTIONS)], threads=1 + seed % 3)
        except Exception as error:
            raise AssertionError(f"RandomModel({seed})") from error


@needs_compiler
@pytest.mark.parametrize("seed", range(12))
def test_padding_computed_from_the_shape(seed, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(ComputedModel(seed, largest=17).draw(2))
    assert_agrees(path, (1, 3), instructions=INSTRUCTIONS[0])


@pytest.fixture
def poisoned(monkeypatch):
    """Let every workspace begin with values that no result may contain."""

    def poison(count, dtype=np.float32):
        array = allocate(count, dtype)
        array.fill(np.nan if array.dtype == np.float32 else 0)
        return array

    allocate = engine.aligned
    monkeypatch.setattr(engine, "aligned", poison)


@needs_compiler
@pytest.mark.parametrize("block", range(8))
def test_random_graphs(block, tmp_path, poisoned):
    """Tensors of one pixel meet windows, residuals and gates, and are pooled once more."""
    path = tmp_path / "model.onnx"
    for seed in range(block, 3 * MODELS, 8):
        random = np.random.default_rng(seed)
        path.write_bytes(RandomGraph(seed, largest=17).draw(int(random.integers(2, 10))))
        try:
            assert_agrees(path, (1, int(random.choice(COUNTS))), instructions=INSTRUCTIONS[seed % len(INSTRUCTIONS)])
        except Exception as error:
            raise AssertionError(f"RandomGraph({seed})") from error


def made(path, nodes, shape, **weights):
    """Write a model from `images` to `y` of some nodes, and return its path."""
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", *shape])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "made", [images], [result], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@needs_compiler
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_a_window_over_a_pooled_map(instructions, tmp_path, poisoned):
    """A pooled map has one pixel in memory: a window over it reads the padding around it."""
    random = np.random.default_rng(0)
    for size in (8, 32, 40):
        pads = [size // 2, size // 2, size - size // 2 + 1, size - size // 2 + 1]
        nodes = [
            helper.make_node("Relu", ["images"], ["r"]),
            helper.make_node("GlobalAveragePool", ["images"], ["g"]),
            helper.make_node("Conv", ["g", "w"], ["c"], pads=pads),
            helper.make_node("Add", ["c", "r"], ["y"]),
        ]
        path = made(tmp_path / "window.onnx", nodes, (4, size, size), w=random.standard_normal((4, 4, 3, 3)))
        assert_agrees(path, (1, 2, 16), instructions=instructions)


@needs_compiler
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("again", ["GlobalAveragePool", "ReduceMean", "AveragePool", "MaxPool"])
def test_a_pooled_map_is_pooled_again(again, instructions, tmp_path, poisoned):
    """Pooling a map of one pixel changes nothing, wherever that pixel is in memory."""
    options = {"ReduceMean": {"axes": [2, 3]}, "GlobalAveragePool": {}}.get(again, {"kernel_shape": [1, 1]})
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["g"]),
        helper.make_node("Conv", ["g", "w"], ["c"]),
        helper.make_node(again, ["c"], ["p"], **options),
        helper.make_node("Mul", ["images", "p"], ["y"]),
    ]
    weight = np.random.default_rng(0).standard_normal((4, 4, 1, 1))
    path = made(tmp_path / "pooled.onnx", nodes, (4, 32, 32), w=weight)
    pooled = assert_agrees(path, (1, 2, 16), instructions=instructions)
    assert pooled.plan().count(" pool") == 1


@needs_compiler
def test_a_pooled_map_is_added_to_a_map_whose_cells_have_more_pixels(tmp_path):
    """Kernels pass over whole cells, so that they would read beyond the pooled map's only pixel."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["g"]),
        helper.make_node("Conv", ["images", "w"], ["c"]),
        helper.make_node("Add", ["g", "c"], ["y"]),
    ]
    path = made(tmp_path / "sum.onnx", nodes, (4, 32, 32), w=np.ones((4, 4, 32, 32)))
    planner = assert_agrees(path, (1, 2, 16))._run.planner
    assert planner.segment(0, 1, Split(1, 2, 2)) is None and planner.segment(0, 1, Split(1, 1, 1))

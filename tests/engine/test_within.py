"""Sparse parts of a model run inside ONNX Runtime."""

import threading

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import images, needs_compiler, reference
from onnx import TensorProto, helper
from random_models import RandomModel, SparseModel

import seam.engine
from seam.engine import EngineError, native, within
from seam.engine.worth import is_sparse

pytestmark = needs_compiler


def write(path, seed, layers=4, foreign=True, second_output=True):
    """Write a model of a sparse part, an operation that the engine does not have, and another sparse part."""
    model = SparseModel(seed, largest=17)
    for _ in range(layers):
        model.convolution()
        model.activation()
    if foreign:
        model.name = model.node("Tanh", [model.name])
        middle, shape = model.name, model.shape
        model.convolution()
        model.head()
    outputs = [(model.name, ["batch", model.shape[0]] if foreign else ["batch", *model.shape])]
    if foreign and second_output:
        outputs.append((middle, ["batch", *shape]))
    graph = helper.make_graph(
        model.nodes, "two",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *model.input_shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in outputs],
        model.constants,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return model.input_shape


def operators(data):
    """Return the rewritten model's operations."""
    return [node.op_type for node in onnx.load_model_from_string(data).graph.node]


@pytest.mark.parametrize("seed", range(8))
def test_a_session_gives_what_onnxruntime_gives(seed, tmp_path):
    path = tmp_path / "model.onnx"
    shape = write(path, seed, foreign=seed % 2 == 0, second_output=seed % 4 == 0)
    data, numbers = within.rewrite(path)
    assert numbers and operators(data).count("Zeros") == len(numbers)
    assert ("Tanh" in operators(data)) == (seed % 2 == 0) and operators(data).count("Conv") <= 1
    within._release(numbers)
    session = seam.engine.session(path)
    assert isinstance(session, onnxruntime.InferenceSession)
    ordinary = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3, 16, 0):
        batch = images(count, shape, count)
        expected, actual = ordinary.run(None, {"images": batch}), session.run(None, {"images": batch})
        for a, b in zip(expected, actual, strict=True):
            assert a.shape == b.shape
            assert np.abs(a - b).max(initial=0) <= 1e-4 * np.abs(a).max(initial=1e-6)


def test_dense_models_stay_as_they_are(tmp_path):
    path = tmp_path / "model.onnx"
    model = RandomModel(1)
    model.weights = lambda *shape: np.ones(shape, np.float32)
    path.write_bytes(model.draw(3))
    assert within.rewrite(path) == (b"", [])
    batch = images(2, model.input_shape)
    assert np.array_equal(seam.engine.session(path).run(None, {"images": batch})[0], reference(path)(batch))


def test_sessions_share_nothing_and_leave_nothing(tmp_path):
    before = len(within._runners)
    sessions = []
    for seed in range(3):
        shape = write(tmp_path / "model.onnx", 10 + seed)
        session = seam.engine.session(tmp_path / "model.onnx", threads=2)
        sessions.append((session, images(4, shape), reference(tmp_path / "model.onnx")(images(4, shape))))
    assert len(within._runners) > before
    wrong = []

    def call(session, batch, expected):
        for _ in range(20):
            actual = session.run(None, {"images": batch})[0]
            if np.abs(actual - expected).max() > 1e-4 * np.abs(expected).max():
                wrong.append(1)

    threads = [threading.Thread(target=call, args=case) for case in sessions for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    del session, sessions, threads
    assert len(within._runners) == before


def test_a_rewritten_model_is_of_no_use_elsewhere(tmp_path):
    shape = write(tmp_path / "model.onnx", 20)
    data, numbers = within.rewrite(tmp_path / "model.onnx")
    within._release(numbers)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(native.library().path))
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="rewritten in another process, or its session is closed"):
        session.run(None, {"images": images(1, shape)})


def test_wrong_models(tmp_path, monkeypatch):
    with pytest.raises(EngineError, match="Cannot read"):
        seam.engine.session(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(EngineError, match="Cannot read"):
        seam.engine.session(tmp_path / "text.onnx")
    monkeypatch.setattr(onnxruntime, "__version__", "1.16.3")
    with pytest.raises(EngineError, match="too old"):
        seam.engine.session(tmp_path / "missing.onnx")


def test_a_machine_without_kernels_gets_an_ordinary_session(tmp_path, monkeypatch):
    def fail(name=None):
        raise EngineError("There is no C compiler.")

    shape = write(tmp_path / "model.onnx", 30)
    monkeypatch.setattr(native, "library", fail)
    batch = images(2, shape)
    actual = seam.engine.session(tmp_path / "model.onnx").run(None, {"images": batch})[0]
    assert np.array_equal(actual, reference(tmp_path / "model.onnx")(batch))


def test_what_is_sparse(tmp_path):
    path = tmp_path / "model.onnx"
    write(path, 40, foreign=False)
    (part,) = within.sparse_parts(onnx.load(path))
    assert is_sparse(part[2])
    for layer in part[2].layers:
        layer.weight = np.ones_like(layer.weight)
    assert not is_sparse(part[2])

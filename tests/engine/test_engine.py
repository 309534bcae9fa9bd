"""Loading, calling, messages, threads and the fallback."""

import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import INSTRUCTIONS, assert_agrees, images, needs_compiler, reference
from onnx import TensorProto, helper, numpy_helper
from random_models import RandomModel, SparseModel

import seam.engine
from seam.engine import EngineError, UnsupportedError, load, native
from seam.engine.compiler import build_all, find_compiler
from seam.engine.emit import emit

ROOM = Path(native.__file__).parents[2]


class DenseModel(RandomModel):
    """A random model without zeros."""

    def weights(self, *shape):
        return np.full(shape, 1 / np.prod(shape[1:]), np.float32)


@pytest.fixture
def model(tmp_path):
    """A small model's file, for images of a fixed shape."""
    path = tmp_path / "model.onnx"
    path.write_bytes(RandomModel(3, largest=17).draw(4))
    return path


def one_operation(path, node, shape=(3, 8, 8), output=("n", 3, 8, 8), opset=13):
    """Write a model of a single operation from `images` to `y`."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(output))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@needs_compiler
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_each_instruction_set(model, instructions):
    engine = assert_agrees(model, (0, 1, 2, 5, 16, 33), instructions=instructions)
    assert engine.backend == "seam" and engine.reason == ""
    assert "lanes" in engine.plan(16)


@needs_compiler
def test_same_result_each_time_and_for_any_number_of_threads(model):
    engine = load(model, fallback=False)
    batch = images(37, engine.input_shape)
    first = engine(batch)
    for threads in (1, 2, 3, 4):
        again = load(model, threads=threads, fallback=False)
        for _ in range(3):
            assert np.array_equal(again(batch), first)


@needs_compiler
def test_images_do_not_see_each_other(model):
    engine = load(model, fallback=False)
    batch = images(16, engine.input_shape)
    noisy = batch.copy()
    noisy[1:] = np.inf
    assert np.array_equal(engine(noisy)[0], engine(batch)[0])


@needs_compiler
def test_calls_from_several_threads(model):
    engine = load(model, threads=2, fallback=False)
    batches = [images(1 + n, engine.input_shape, n) for n in range(8)]
    expected = [engine(batch) for batch in batches]
    wrong = []

    def call(n):
        for _ in range(20):
            if not np.array_equal(engine(batches[n]), expected[n]):
                wrong.append(n)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_call_in_a_forked_child(model):
    engine = load(model, threads=2, fallback=False)
    batch = images(40, engine.input_shape)
    expected = engine(batch)
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(engine(batch), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@needs_compiler
def test_images_that_are_not_contiguous(model):
    engine = load(model, fallback=False)
    batch = images(6, engine.input_shape)
    assert np.array_equal(engine(batch[::2]), engine(np.ascontiguousarray(batch[::2])))


@needs_compiler
def test_wrong_images(model):
    engine = load(model, fallback=False)
    channels, height, width = engine.input_shape
    with pytest.raises(EngineError, match="must be a NumPy array, not list"):
        engine([1, 2])
    with pytest.raises(EngineError, match="must be float32, not float64"):
        engine(np.zeros((1, *engine.input_shape)))
    with pytest.raises(EngineError, match=rf"must have the shape \[n, {channels}, {height}, {width}\]"):
        engine(np.zeros((1, channels, height, width + 1), np.float32))


def test_wrong_number_of_threads(model):
    for threads in (0, -1, 1.5, True, 10**6):
        with pytest.raises(EngineError, match="number of threads"):
            load(model, threads=threads)


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(EngineError, match="Cannot read .*: No such file"):
        load(tmp_path / "missing.onnx")
    path = tmp_path / "text.onnx"
    path.write_text("no model")
    with pytest.raises(EngineError, match="is not an ONNX file|does not say which version|has no operations"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(EngineError, match="does not say which version|has no operations"):
        load(path)


def test_malformed_models(tmp_path, model):
    damaged = onnx.load(model)
    damaged.graph.node[0].input[0] = "nothing"
    onnx.save(damaged, model)
    with pytest.raises(EngineError, match="reads 'nothing' before anything computes it"):
        load(model)
    node = helper.make_node("MaxPool", ["images"], ["y"], kernel_shape=[1 << 40, 2])
    with pytest.raises(EngineError, match="kernel_shape is out of range"):
        load(one_operation(tmp_path / "pool.onnx", node))
    node = helper.make_node("MaxPool", ["images"], ["y"], kernel_shape=[9, 2])
    with pytest.raises(UnsupportedError, match="does not fit into a map of 8 x 8"):
        load(one_operation(tmp_path / "pool.onnx", node), fallback=False)


def test_onnxruntime_runs_what_only_the_engine_lacks(tmp_path):
    """Among them poolings whose numbers differ between versions of the operation, and windows of padding alone."""
    pools = [
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [5, 5], "pads": [1, 1, 1, 1]}, (3, 7, 4), "padding alone"),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [5, 5], "auto_pad": "SAME_UPPER"}, (3, 8, 8), "end out"),
    ]
    for operation, attributes, shape, words in pools:
        node = helper.make_node(operation, ["images"], ["y"], **attributes)
        path = one_operation(tmp_path / "pool.onnx", node, shape, ("n", 3, "h", "w"), opset=19)
        with pytest.raises(UnsupportedError, match=words):
            load(path, fallback=False)
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32)[:, :, None, None], "w")
    node = helper.make_node("Conv", ["images", "w"], ["y"], strides=[2, 2], auto_pad="SAME_UPPER")
    path = one_operation(tmp_path / "conv.onnx", node, (3, 8, 8), ("n", 3, "h", "w"))
    model = onnx.load(path)
    model.graph.initializer.append(weight)
    onnx.save(model, path)
    assert_agrees(path, (2,))  # a convolution of that kind is in many networks
    vector = numpy_helper.from_array(np.ones(192, np.float32), "vector")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["images"], ["flat"]), helper.make_node("MatMul", ["flat", "vector"], ["y"])],
        "vector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [vector],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "v.onnx")
    with pytest.raises(UnsupportedError, match="input 1 of MatMul is a float32 array of rank 1"):
        load(tmp_path / "v.onnx", fallback=False)


def test_a_compiler_that_is_no_command(monkeypatch):
    monkeypatch.setenv("CC", 'gcc "')
    with pytest.raises(EngineError, match="CC is .*, which is no command .No closing quotation.: correct it"):
        find_compiler()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        for call in (load, seam.engine.session, lambda path: emit(path, tmp_path / "out")):
            with pytest.raises(EngineError, match="is a pipe, a socket or a device, not a file"):
                call(path)
    with pytest.raises(EngineError, match="Cannot read .*: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("operation", "attribute"),
    [
        ("AveragePool", "auto_pad"),
        ("AveragePool", "ceil_mode"),
        ("AveragePool", "count_include_pad"),
        ("AveragePool", "dilations"),
        ("AveragePool", "kernel_shape"),
        ("Flatten", "axis"),
        ("LeakyRelu", "alpha"),
        ("ReduceMean", "axes"),
        ("ReduceMean", "keepdims"),
    ],
)
def test_a_tensor_in_the_place_of_an_attribute(operation, attribute, tmp_path):
    attributes = {"AveragePool": {"kernel_shape": [2, 2]}, "ReduceMean": {"axes": [2, 3]}}.get(operation, {})
    attributes = {**attributes, attribute: numpy_helper.from_array(np.ones(2, np.int64))}
    path = one_operation(tmp_path / "tensor.onnx", helper.make_node(operation, ["images"], ["y"], **attributes))
    with pytest.raises(EngineError, match=f"its attribute {attribute} is a tensor"):
        load(path, fallback=False)
    with pytest.raises(Exception, match="onnxruntime|ONNXRuntimeError"):  # which judges the model itself
        seam.engine.session(path)


def test_a_constant_without_values_that_is_too_large_for_any_array(tmp_path, model):
    damaged = onnx.load(model)
    damaged.graph.initializer.append(TensorProto(name="none", data_type=TensorProto.FLOAT, dims=[0] + 3 * [1 << 31]))
    onnx.save(damaged, model)
    with pytest.raises(EngineError, match=r"'none' has the impossible shape \[0, 2147483648"):
        load(model)


def test_a_model_without_inputs(tmp_path):
    node = helper.make_node("Constant", [], ["y"], value_float=1.0)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph([node], "constant", [], [result])
    path = tmp_path / "constant.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    with pytest.raises(EngineError, match="has 0 inputs .* Its inputs are not one batch of images"):
        load(path)


@needs_compiler
def test_a_large_window_takes_no_memory_per_pixel_of_it(tmp_path):
    node = helper.make_node("AveragePool", ["images"], ["y"], kernel_shape=[32768, 1])
    path = one_operation(tmp_path / "pool.onnx", node, (1, 65536, 1), ("n", 1, 32769, 1))
    runner = load(path, fallback=False)._run
    tracemalloc.start()
    try:
        runner.program(1)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_maps_times_matrices(tmp_path):
    """Products as adaptive average pooling becomes, with matrices that do not fit, are too large, or stand alone."""

    def write(left: tuple[int, ...], right: tuple[int, ...], output: str = "y"):
        path = tmp_path / "matrices.onnx"
        nodes = [
            helper.make_node("MatMul", ["images", "right"], ["m"]),
            helper.make_node("MatMul", ["left", "m"], ["f"]),
        ]
        nodes.append(helper.make_node("Flatten", ["f"], ["y"]))
        matrices = {"left": left, "right": right}
        tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in matrices.items()]
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "matrices", [images], [result], tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
        return path

    for left, right, message in (((2, 8), (7, 3), "does not fit 8 columns"), ((2, 9), (8, 3), "does not fit 8 rows")):
        with pytest.raises(EngineError, match=message):
            load(write(left, right), fallback=False)
    for left, right, output, message in (
        ((900, 8), (8, 900), "y", "pools to 900 x 900 places"),
        ((1, 3, 2, 8), (8, 3), "y", "other than a matrix"),
        ((2, 8), (8, 3), "f", "its output is a map whose rows"),
        ((2, 8), (8, 3), "m", "its output does not depend"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            load(write(left, right, output), fallback=False)


def test_a_tensor_too_large(tmp_path):
    node = helper.make_node("Relu", ["images"], ["y"])
    path = one_operation(tmp_path / "large.onnx", node, (3, 60000, 60000), ("n", 3, 60000, 60000))
    with pytest.raises(UnsupportedError, match="values per image"):
        load(path, fallback=False)


def test_other_operations_go_to_onnxruntime(tmp_path):
    path = one_operation(tmp_path / "tanh.onnx", helper.make_node("Tanh", ["images"], ["y"], name="last"))
    with pytest.warns(UserWarning, match="ONNX Runtime runs it instead"):
        engine = load(path)
    assert engine.backend == "onnxruntime"
    assert "the operation Tanh" in engine.reason and "'last'" in engine.reason
    batch = images(2, (3, 8, 8))
    assert np.allclose(engine(batch), np.tanh(batch), atol=1e-6)
    assert "ONNX Runtime" in engine.plan()
    with pytest.raises(UnsupportedError, match="Tanh"):
        load(path, fallback=False)


@needs_compiler
def test_models_with_few_zeros_go_to_onnxruntime(tmp_path, recwarn):
    path = tmp_path / "model.onnx"
    for model, backend in ((SparseModel(5, largest=17), "seam"), (DenseModel(5, largest=17), "onnxruntime")):
        path.write_bytes(model.draw(4))
        engine = load(path)
        assert (engine.backend, engine.reason) == (backend, "")
        batch = images(3, engine.input_shape)
        assert np.allclose(engine(batch), reference(path)(batch), rtol=1e-4, atol=1e-4)
    assert "100 % of its multiply-adds are with weights that are not zero" in engine.plan()
    assert load(path, fallback=False).backend == load(path, instructions=INSTRUCTIONS[0]).backend == "seam"
    assert not recwarn.list


def test_no_compiler(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(native, "BUILT", tmp_path / "built")
    native.library.cache_clear()
    with pytest.warns(UserWarning, match="There is no C compiler: install gcc or clang"):
        engine = load(model)
    native.library.cache_clear()
    assert engine.backend == "onnxruntime"
    batch = images(2, engine.input_shape)
    assert np.allclose(engine(batch), reference(model)(batch))


@needs_compiler
def test_the_compiled_kernels_are_kept(model, tmp_path, monkeypatch):
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(native, "BUILT", tmp_path / "built")
    monkeypatch.setenv(native.FLAGS_VARIABLE, "-O0")
    native.library.cache_clear()
    load(model, fallback=False)
    (library,) = (tmp_path / "cache").iterdir()
    written = library.stat().st_mtime_ns
    native.library.cache_clear()
    load(model, fallback=False)
    native.library.cache_clear()
    assert library.stat().st_mtime_ns == written


@needs_compiler
def test_kernels_built_in_advance_need_no_compiler(model, tmp_path, monkeypatch):
    built = build_all(tmp_path / "built")
    assert all(library.exists() for library in built)
    monkeypatch.setattr(native, "BUILT", tmp_path / "built")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "empty"))
    monkeypatch.delenv(native.FLAGS_VARIABLE, raising=False)
    native.library.cache_clear()
    engine = load(model, fallback=False)
    native.library.cache_clear()
    assert engine.backend == "seam" and not (tmp_path / "empty").exists()


def test_an_instruction_set_that_is_missing(model):
    with pytest.raises(EngineError, match="does not have the instruction set 'mmx'"):
        load(model, instructions="mmx")


def test_needs_neither_torch_nor_onnxruntime(model):
    code = (
        "import sys; from seam.engine import load; load(sys.argv[1], fallback=False);"
        "print([m for m in ('torch', 'onnxruntime', 'seam.files') if m in sys.modules])"
    )
    if not INSTRUCTIONS:
        code = code.replace("load(sys.argv[1], fallback=False)", "pass")
    environment = {**os.environ, "PYTHONPATH": str(ROOM)}
    command = [sys.executable, "-c", code, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"

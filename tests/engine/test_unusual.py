"""The engine where programs and files are unusual: interrupts, forks, NaN, rounded pools, damaged caches."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import INSTRUCTIONS, images, needs_compiler, reference
from onnx import TensorProto, helper, numpy_helper

import seam.engine
from seam.engine import EngineError, compiler, native
from seam.engine.emit import emit

pytestmark = needs_compiler


def sparse(*shape, keep=0.2, seed=0):
    random = np.random.default_rng(seed)
    return np.where(random.random(shape) < keep, random.standard_normal(shape), 0).astype(np.float32)


def save(path, nodes, constants, shape=("n", 3, 8, 8), **options):
    """Write a model with the input x and the output y."""
    kind = options.pop("kind", TensorProto.FLOAT)
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in options.pop("outputs", ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, list(shape))], outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    options = {"ir_version": 8, "opset_imports": [helper.make_opsetid("", 13)]} | options
    onnx.save(helper.make_model(graph, **options), path)
    return path


def chain(path, layers=3, channels=16, keep=0.2, **options):
    """Write convolutions one after the other."""
    nodes, constants, name, inputs = [], {}, "x", 3
    for layer in range(layers):
        constants[f"w{layer}"] = sparse(channels, inputs, 3, 3, keep=keep, seed=layer)
        output = "y" if layer == layers - 1 else f"a{layer}"
        nodes.append(helper.make_node("Conv", [name, f"w{layer}"], [output], pads=[1, 1, 1, 1]))
        name, inputs = output, channels
    return save(path, nodes, constants, **options)


def python(code, *arguments):
    """Run a program in a process of its own; return it."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("threads", [0, -1, 257, 1.0, True])
def test_threads_of_a_session_are_checked(tmp_path, threads):
    path = chain(tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="number of threads must be from 1 to 256"):
        seam.engine.session(path, threads=threads)
    assert not native.library().pool_new(0)


def test_an_interrupt_during_a_session_is_no_result(tmp_path):
    path = chain(tmp_path / "m.onnx", layers=6, channels=96, keep=0.4, shape=("n", 3, 64, 64))
    session, batch = seam.engine.session(path), images(24, (3, 64, 64))
    expected = session.run(None, {"x": batch})[0]
    begin = time.perf_counter()
    session.run(None, {"x": -batch})
    seconds = time.perf_counter() - begin
    timer = threading.Timer(0.4 * seconds, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        session.run(None, {"x": batch})
        time.sleep(5)  # where Ctrl-C comes if the call was faster than expected
    timer.join()
    assert np.array_equal(session.run(None, {"x": batch})[0], expected)


def test_a_process_can_end_while_a_thread_computes(tmp_path):
    path = chain(tmp_path / "m.onnx", channels=48, shape=("n", 3, 48, 48))
    done = python(
        """
        import sys, threading, time, numpy as np, seam.engine
        engine = seam.engine.load(sys.argv[1], threads=2)
        batch = np.ones((16, 3, 48, 48), np.float32)
        engine(batch)
        def loop():
            while True:
                engine(batch)
        threading.Thread(target=loop, daemon=True).start()
        time.sleep(0.2)
        """,
        path,
    )
    assert done.returncode == 0, done.stderr


def test_a_child_of_a_process_that_prepares_a_program_can_compute(tmp_path, monkeypatch):
    engine = seam.engine.load(chain(tmp_path / "m.onnx"), fallback=False)
    runner, batch = engine._run, images(4, (3, 8, 8))
    engine(batch[:1])
    preparing, forked = threading.Event(), threading.Event()
    made = seam.engine.engine.Program

    def slow(*arguments):
        preparing.set()
        forked.wait(10)
        return made(*arguments)

    monkeypatch.setattr(seam.engine.engine, "Program", slow)
    thread = threading.Thread(target=engine, args=(batch,))
    thread.start()
    assert preparing.wait(10)
    assert not runner._lock.locked()
    forked.set()
    thread.join()


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_nan_stays_nan_and_infinite_values_have_their_limits(tmp_path, instructions):
    ones = np.ones((1, 3, 1, 1), np.float32)
    conv, gate = helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Sigmoid", ["c"], ["s"])
    for name, nodes in {
        "sigmoid": [conv, gate, helper.make_node("Identity", ["s"], ["y"])],
        "silu": [conv, gate, helper.make_node("Mul", ["c", "s"], ["y"])],
    }.items():
        path = save(tmp_path / f"{name}.onnx", nodes, {"w": ones})
        batch = np.zeros((1, 3, 8, 8), np.float32)
        pixels = batch.view(np.uint32)[0, 0].reshape(-1)
        pixels[:4] = 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7FC00001
        batch[0, 0].reshape(-1)[4:9] = -np.inf, np.inf, -3e38, 3e38, -90
        actual = seam.engine.load(path, instructions=instructions)(batch)[0, 0].reshape(-1)[:9]
        expected = reference(path)(batch)[0, 0].reshape(-1)[:9]
        assert np.isnan(actual[:4]).all(), name
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-35)


@pytest.mark.parametrize("size", [2, 3, 5, 7])
@pytest.mark.parametrize("operation", ["MaxPool", "AveragePool"])
def test_pools_whose_sizes_round_up(tmp_path, size, operation):
    window = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    path = save(
        tmp_path / "session.onnx",
        [helper.make_node(operation, ["x"], ["p"], **window), helper.make_node("Tanh", ["p"], ["t"]),
         helper.make_node("Conv", ["t", "w"], ["y"], pads=[1, 1, 1, 1])],
        {"w": sparse(8, 3, 3, 3)}, shape=("n", 3, size, size),
    )  # fmt: skip
    batch = images(2, (3, size, size))
    actual = seam.engine.session(path).run(None, {"x": batch})[0]
    np.testing.assert_allclose(actual, reference(path)(batch), atol=1e-5)
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}
    path = save(
        tmp_path / "load.onnx",
        [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["r"]),
         helper.make_node(operation, ["r"], ["y"], **window)],
        {"w": sparse(8, 3, 3, 3)}, shape=("n", 3, size, size),
    )  # fmt: skip
    np.testing.assert_allclose(seam.engine.load(path, fallback=False)(batch), reference(path)(batch), atol=1e-5)


@pytest.mark.filterwarnings("ignore:The engine does not run")
def test_what_onnxruntime_cannot_run_as_images_is_refused(tmp_path):
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    half = save(tmp_path / "half.onnx", [conv], {"w": np.ones((1, 3, 1, 1), np.float16)}, kind=TensorProto.FLOAT16)
    with pytest.raises(EngineError, match="one input and one output, both of float32"):
        seam.engine.load(half)
    nodes = [conv, helper.make_node("Tanh", ["y"], ["z"])]
    two = save(tmp_path / "two.onnx", nodes, {"w": np.ones((1, 3, 1, 1), np.float32)}, outputs=["y", "z"])
    with pytest.raises(EngineError, match="one input and one output, both of float32"):
        seam.engine.load(two)


@pytest.mark.parametrize("keep", [0.2, 1.0])
def test_a_file_of_a_fixed_batch_size_runs_any_number_of_images(tmp_path, keep):
    path = chain(tmp_path / "m.onnx", keep=keep, shape=(2, 3, 8, 8))
    engine, batch = seam.engine.load(path), images(5, (3, 8, 8))
    assert engine.backend == ("seam" if keep < 1 else "onnxruntime")
    whole = engine(batch)
    assert whole.shape == (5, 16, 8, 8) and engine(batch[:0]).shape == (0, 16, 8, 8)
    parts = np.concatenate([engine(batch[:2]), engine(batch[2:4])])
    np.testing.assert_allclose(whole[:4], parts, atol=1e-5 * np.abs(whole).max())


def test_a_dense_file_that_is_too_new_for_onnxruntime_runs_here(tmp_path):
    path = chain(tmp_path / "m.onnx", keep=1.0, ir_version=99)
    assert seam.engine.load(path).backend == "seam"


def test_c_code_of_any_name_compiles(tmp_path):
    path = chain(tmp_path / "m.onnx")
    for name in ("seam", "seam_h", "main_model"):
        emit(path, tmp_path / name, name, instructions="portable")
        done = subprocess.run(["make", "-C", str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("spoil", (lambda _: b"", lambda code: code[: len(code) // 2], lambda code: code[:-1] + b"x"))
def test_a_damaged_library_is_compiled_anew(tmp_path, monkeypatch, spoil):
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(native, "BUILT", tmp_path / "none")
    instructions = compiler.instruction_set()
    damaged = tmp_path / compiler.file_name(instructions)
    compiler.build(instructions, damaged)
    assert compiler.is_whole(damaged)
    damaged.write_bytes(spoil(damaged.read_bytes()))  # a file of code that is cut would end the process
    native.library.cache_clear()
    try:
        assert seam.engine.load(chain(tmp_path / "m.onnx")).backend == "seam"
        assert compiler.is_whole(damaged)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv(native.CACHE_VARIABLE, ".")
        native.library.cache_clear()
        assert native.library().path.is_absolute()
    finally:
        native.library.cache_clear()


def test_a_cache_that_cannot_be_read_gives_onnxruntime_and_a_reason(tmp_path, monkeypatch):
    class Closed(type(tmp_path)):
        def exists(self, *, follow_symlinks=True):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(native, "BUILT", tmp_path / "none")
    monkeypatch.setattr(native, "cache_folder", lambda: Closed(tmp_path))
    native.library.cache_clear()
    path = chain(tmp_path / "m.onnx")
    try:
        with pytest.warns(UserWarning, match="cannot be read .Permission denied.: set SEAM_ENGINE_CACHE to another"):
            assert seam.engine.load(path).backend == "onnxruntime"
        with pytest.warns(UserWarning, match="ONNX Runtime runs the whole model, zeros included"):
            seam.engine.session(path)
    finally:
        native.library.cache_clear()


def test_options_serve_several_sessions(tmp_path):
    path, options, batch = chain(tmp_path / "m.onnx"), onnxruntime.SessionOptions(), images(2, (3, 8, 8))
    sessions = [seam.engine.session(path, options=options) for _ in range(2)]
    first, second = (session.run(None, {"x": batch})[0] for session in sessions)
    assert np.array_equal(first, second)
    ordinary = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(ordinary.run(None, {"x": batch})[0], first, atol=1e-5 * np.abs(first).max())


def test_a_failure_within_a_session_has_its_own_words(tmp_path, monkeypatch):
    session = seam.engine.session(chain(tmp_path / "m.onnx"))

    def fail(self, program):
        raise EngineError("There is not enough memory to run the model.")

    monkeypatch.setattr(seam.engine.engine.Runner, "_workspace", fail)
    with pytest.raises(EngineError, match="not enough memory"):
        session.run(None, {"x": images(7, (3, 8, 8))})

"""What the engine's tests share: comparison with ONNX Runtime, and a skip where the kernels cannot be compiled."""

import numpy as np
import onnxruntime
import pytest

from seam.engine import EngineError, load, native
from seam.engine.compiler import INSTRUCTION_SETS

TOLERANCE = 1e-4  # of the largest output


def usable_instructions() -> list[str]:
    """Return the names of the instruction sets that this machine can compile and run."""
    names = []
    for candidate in INSTRUCTION_SETS:
        try:
            native.library(candidate.name)
        except EngineError:
            continue
        names.append(candidate.name)
    return names


INSTRUCTIONS = usable_instructions()
needs_compiler = pytest.mark.skipif(not INSTRUCTIONS, reason="the engine's kernels need a C compiler")


def images(count: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Return normal noise as images."""
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def reference(path):
    """Return a function that runs a model in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {session.get_inputs()[0].name: batch})[0]


def assert_agrees(path, counts, *, tolerance=TOLERANCE, **options):
    """Check an engine's outputs for batches of several sizes against ONNX Runtime's, and return the engine."""
    expect, engine = reference(path), load(path, fallback=False, **options)
    for count in counts:
        batch = images(count, engine.input_shape, count)
        expected, actual = expect(batch), engine(batch)
        assert actual.shape == expected.shape
        scale = np.abs(expected).max(initial=1e-6)
        difference = np.abs(actual - expected).max(initial=0) / scale
        assert difference <= tolerance, f"{path}, {count} images, {options}: {difference:.1e}\n{engine.plan(count)}"
    return engine

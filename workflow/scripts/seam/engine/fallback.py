"""Runs in ONNX Runtime what this engine does not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from seam.engine.errors import EngineError


def load_onnxruntime(path: str | Path, threads: int, reason: str) -> tuple[Callable, tuple[int, int, int]]:
    """Return a function from images to outputs, and an image's (channels, height, width).

    reason: why ONNX Runtime is asked. Raises EngineError if it is not installed or cannot run the model.
    """
    prefix = f"{reason} " if reason else ""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"{prefix}ONNX Runtime, which could run it, is not installed.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # its log would quote names from the file to the terminal
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common class
        raise EngineError(f"{prefix}ONNX Runtime does not run {path}: {_first_line(error)}.") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = tuple(inputs[0].shape[1:]) if len(inputs) == 1 else ()
    if len(shape) != 3 or not all(isinstance(size, int) for size in shape):
        raise EngineError(f"{prefix}Its inputs are not one batch of images of a fixed size.")
    if inputs[0].type != "tensor(float)" or [output.type for output in outputs] != ["tensor(float)"]:
        raise EngineError(f"{prefix}It does not have one input and one output, both of float32.")
    name, batch = inputs[0].name, inputs[0].shape[0]

    def run(images: np.ndarray) -> np.ndarray:
        try:
            if not isinstance(batch, int) or batch < 1:
                return np.asarray(session.run(None, {name: images})[0])
            parts = []  # a file of a fixed batch size runs any number of images, too, as in this engine
            for begin in range(0, max(len(images), 1), batch):
                part = images[begin : begin + batch]
                filled = np.concatenate([part, np.zeros((batch - len(part), *shape), np.float32)])
                parts.append(np.asarray(session.run(None, {name: filled})[0])[: len(part)])
            return np.concatenate(parts)
        except Exception as error:
            raise EngineError(f"ONNX Runtime cannot run {path}: {_first_line(error)}.") from error

    return run, shape


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(" .")

"""ONNX Runtime, with float32 or int8 weights, as the model has them.

The engines of other modules are compared with it. So this module also runs in DeepSparse's environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.cost.processor import describe_cpu, widest_instructions
from seam.errors import UserError, first_line

if TYPE_CHECKING:
    import numpy as np

    from seam.cost.latency import Load, Run


def open_engine(threads: int, batch_size: int) -> tuple[dict[str, Any], Load]:
    """Return ONNX Runtime's description and its function that loads a model. Raises UserError if it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"ONNX Runtime cannot be imported ({first_line(error)}): install envs/seam.txt.") from error

    def load(path: Path) -> tuple[Run, str]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_free_dimension_override_by_name("batch", batch_size)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def run(images: np.ndarray) -> np.ndarray:
            return session.run(None, {name: images})[0]  # pyright: ignore[reportReturnType]

        return run, ""

    instructions = widest_instructions(describe_cpu()[1])
    return {"version": onnxruntime.__version__, "instruction_set": instructions}, load


def image_shape(path: Path) -> tuple[int, ...]:
    """Return the (channels, height, width) of an ONNX model's images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return tuple(session.get_inputs()[0].shape[1:])

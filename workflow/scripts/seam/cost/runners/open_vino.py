"""OpenVINO on the processor, with float32 or int8 weights, as the model has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.cost.processor import describe_cpu, widest_instructions
from seam.errors import UserError, first_line

if TYPE_CHECKING:
    import numpy as np

    from seam.cost.latency import Load, Run


def open_engine(threads: int, batch_size: int) -> tuple[dict[str, Any], Load]:
    """Return OpenVINO's description and its function that loads a model. Raises UserError if it is missing."""
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"OpenVINO cannot be imported ({first_line(error)}): run make .venv/openvino.") from error
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        # Where the processor has bfloat16, OpenVINO otherwise rounds to it. int8 layers stay int8.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",  # all threads work on one batch
    }

    def load(path: Path) -> tuple[Run, str]:
        model = core.read_model(path)
        model.reshape([batch_size, *(dimension.get_length() for dimension in list(model.input(0).partial_shape)[1:])])
        request = core.compile_model(model, "CPU", settings).create_infer_request()

        def run(images: np.ndarray) -> np.ndarray:
            return request.infer({0: images}, share_inputs=True)[0]

        return run, ""

    instructions = widest_instructions(describe_cpu()[1])
    return {"version": openvino.__version__.partition("-")[0], "instruction_set": instructions}, load

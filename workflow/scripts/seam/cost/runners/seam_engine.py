"""seam.engine, this project's own engine for zeros."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam import __version__
from seam.errors import UserError
from seam.log import log

if TYPE_CHECKING:
    from seam.cost.latency import Load, Run


def open_engine(threads: int, batch_size: int) -> tuple[dict[str, Any], Load]:
    """Return the engine's description and its function that loads a model; it runs batches of any size.

    A model with operations that the engine lacks runs in ONNX Runtime, and so does every model on a machine on which
    the kernels cannot be compiled. The reason is logged and returned with the model. A model with few zeros runs there,
    too, because that is faster; its plan, which is logged, says so.
    """
    from seam.engine.engine import load as load_model
    from seam.engine.errors import EngineError
    from seam.engine.native import instruction_set

    def load(path: Path) -> tuple[Run, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the log says it
            try:
                engine = load_model(path, threads=threads)
            except EngineError as error:
                raise UserError(str(error)) from error
        if engine.reason:
            log.warning("%s", engine.reason)
        else:
            log.info("%s, %d images:\n%s", path, batch_size, engine.plan(batch_size))
        return engine, engine.reason

    return {"version": __version__, "instruction_set": instruction_set().name}, load

"""DeepSparse, the published engine. This module runs in its environment: Python 3.9, numpy and the engine alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.errors import UserError, first_line
from seam.log import log

if TYPE_CHECKING:
    import numpy as np

    from seam.cost.latency import Load, Run


def open_engine(threads: int, batch_size: int) -> tuple[dict[str, Any], Load]:
    """Return DeepSparse's description and its function that loads a model. Raises UserError if it is missing."""
    # Without this, DeepSparse asks two servers where this machine is, and reports each use to its maker.
    os.environ["NM_DISABLE_ANALYTICS"] = "True"
    try:
        import deepsparse  # pyright: ignore[reportMissingImports]
        from deepsparse.cpu import cpu_architecture  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"DeepSparse cannot be imported ({first_line(error)}): delete envs/.built/deepsparse and run again."
        ) from error

    def load(path: Path) -> tuple[Run, str]:
        model = deepsparse.Engine(str(path), batch_size=batch_size, num_cores=threads)
        if model.fraction_of_supported_ops < 1:
            percent = 100 * model.fraction_of_supported_ops
            log.warning("DeepSparse optimises only %.0f %% of the operations of %s", percent, path)

        def run(images: np.ndarray) -> np.ndarray:
            # val_inp=False: checking the input takes time that is not the model's.
            return model.run([images], val_inp=False)[0]

        return run, ""

    return {"version": deepsparse.__version__, "instruction_set": cpu_architecture().isa}, load

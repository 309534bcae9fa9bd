"""Inference that skips zeros: runs a model.onnx, and is the faster the more of its weights are zero.

>>> import seam.engine  # doctest: +SKIP
>>> engine = seam.engine.load("model.onnx", threads=1)  # doctest: +SKIP
>>> logits = engine(images)  # float32 [n, channels, height, width]  # doctest: +SKIP

Needs NumPy, onnx to read the file, and a C compiler at first use; docs/engine.md explains how it works.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seam.engine.engine import Engine, load
    from seam.engine.errors import EngineError, UnsupportedError
    from seam.engine.within import session

__all__ = ["Engine", "EngineError", "UnsupportedError", "load", "session"]

# Loaded at their first use, as in `seam/__init__.py`: every module of the engine runs this file.
_PUBLIC = {
    "Engine": "seam.engine.engine",
    "EngineError": "seam.engine.errors",
    "UnsupportedError": "seam.engine.errors",
    "load": "seam.engine.engine",
    "session": "seam.engine.within",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)

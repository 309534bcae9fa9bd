"""Inference that skips zeros: runs a model.onnx, and is the faster the more of its weights are zero.

>>> import seam.engine  # doctest: +SKIP
>>> engine = seam.engine.load("model.onnx", threads=1)  # doctest: +SKIP
>>> logits = engine(images)  # float32 [n, channels, height, width]  # doctest: +SKIP

Needs NumPy, onnx to read the file, and a C compiler at first use; docs/engine.md explains how it works.
"""

from .engine import Engine, load
from .errors import EngineError, UnsupportedError

__all__ = ["Engine", "EngineError", "UnsupportedError", "load"]

"""Finds the module of an engine by the engine's name."""

from __future__ import annotations

from typing import Any

from seam.cost.engines import ENGINES
from seam.cost.latency import OpenEngine
from seam.cost.runners import deep_sparse, onnx_runtime, open_vino, seam_engine

MODULES: dict[str, Any] = {
    "deep_sparse": deep_sparse,
    "onnx_runtime": onnx_runtime,
    "open_vino": open_vino,
    "seam_engine": seam_engine,
}


def find_engine(name: str) -> OpenEngine:
    """Return the function that opens an engine of the config, as `seam.cost.runners` describes it."""
    return MODULES[ENGINES[name].runner].open_engine

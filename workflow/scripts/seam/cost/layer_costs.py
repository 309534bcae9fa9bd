"""What each weight of a source model costs in the engine for zeros, measured on this machine: for latency budgets."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seam.cost.export import export
from seam.cost.processor import describe_cpu
from seam.engine import engine
from seam.engine.costs import convolution_costs
from seam.engine.errors import EngineError
from seam.errors import UserError
from seam.files import write_json
from seam.log import log
from seam.models.surgery import copy_module
from seam.models.uses import calls_of

DENSITIES = (0.05, 0.1, 0.2)  # of the weights that are not zero in the models that are measured
PASSES = 60  # of each model, in turn


def measure_layer_costs(module: nn.Module, image_shape: tuple[int, ...], batch: int) -> dict[str, Any]:
    """Return what weights cost in the engine for zeros, on one thread, for a batch of `batch` images.

    The result has `fixed_ms` and `weight_ms`, {name: milliseconds of one kept weight}. The engine's cost model says how
    a layer's time grows with its weights. Models with random masks are timed, and the fastest tenth of the passes,
    which other programs disturb least, sets the scale and the fixed part. The table holds near the `densities`: a dense
    layer takes less than its weights add up to.

    module: the source model, which stays as it is. image_shape: (channels, height, width). Raises UserError if the
    engine does not run the model.
    """
    names = calls_of(module, torch.zeros(1, *image_shape))
    parameters = dict(module.named_parameters(remove_duplicate=False))
    sizes = [parameters[name].numel() for name in names]
    passes, expected = {}, {}
    images = np.random.default_rng(0).standard_normal((batch, *image_shape), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for density in DENSITIES:
            path = Path(folder, f"{density}.onnx")
            export(_with_random_zeros(module, density), path, image_shape, batch)
            try:
                run = engine.load(path, fallback=False)
                costs = convolution_costs(path, batch)
            except EngineError as error:
                raise UserError(f"A latency budget needs the engine for zeros, and {error}") from error
            if [cost.size for cost in costs] != sizes:
                raise UserError(
                    "A latency budget needs the time of each layer, and the engine for zeros runs this model's layers "
                    "otherwise than torch: set a budget in weights or macs."
                )
            passes[density], expected[density] = run, costs
        low, high = (expected[density] for density in (DENSITIES[0], DENSITIES[-1]))
        slopes = [
            max(0.0, (many.cycles - few.cycles) / more) if (more := many.nonzeros - few.nonzeros) else 0.0
            for few, many in zip(low, high, strict=True)
        ]
        times: dict[float, list[float]] = {density: [] for density in DENSITIES}
        for _ in range(PASSES):
            for density, run in passes.items():
                start = time.perf_counter()
                run(images)
                times[density].append(1000 * (time.perf_counter() - start))
    quiet = {density: float(np.percentile(values, 10)) for density, values in times.items()}
    removable = {
        density: sum(slope * cost.nonzeros for slope, cost in zip(slopes, expected[density], strict=True))
        for density in DENSITIES
    }
    scale, fixed = np.polyfit([removable[density] for density in DENSITIES], [quiet[d] for d in DENSITIES], 1)
    if scale <= 0 or fixed < 0:  # noise: the line through the origin
        scale, fixed = quiet[DENSITIES[-1]] / max(removable[DENSITIES[-1]], 1e-9), 0.0
    weight_ms = dict.fromkeys(names, 0.0)
    for name, slope in zip(names, slopes, strict=True):  # a weight that several layers share costs in each of them
        weight_ms[name] += float(scale * slope)
    log.info("%s ms at %s of the weights; %.3f ms are fixed", list(quiet.values()), list(DENSITIES), fixed)
    return {
        "engine": "seam",
        "batch": batch,
        "cpu": describe_cpu()[0],
        "densities": list(DENSITIES),
        "measured_ms": list(quiet.values()),
        "fixed_ms": float(fixed),
        "weight_ms": weight_ms,
    }


def write_layer_costs(
    path: str | os.PathLike[str], module: nn.Module, image_shape: tuple[int, ...], batch: int
) -> None:
    """Write `measure_layer_costs` as JSON."""
    write_json(path, measure_layer_costs(module, image_shape, batch))


@torch.no_grad()
def _with_random_zeros(module: nn.Module, density: float) -> nn.Module:
    module = copy_module(module).cpu()
    generator = torch.Generator().manual_seed(0)
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))]
    for weight in {layer.weight: None for layer in layers}:  # once, if layers share it
        weight.mul_(torch.rand(weight.shape, generator=generator) < density)
    return module

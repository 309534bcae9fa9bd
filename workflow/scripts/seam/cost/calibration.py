"""The images on which a model is calibrated before its quantization: never test images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from seam.cost.quantization import quantize, read_metadata
from seam.data.batches import batches
from seam.data.drawing import problem_of_result
from seam.data.storage import open_dataset
from seam.files import read_json
from seam.log import log
from seam.seeds import derive_seed

IMAGES = 256  # more change the ranges of the activations little
BATCH_SIZE = 32


def quantize_source(
    model: str | os.PathLike[str], target: str | os.PathLike[str], dataset_folder: str | Path, seed: int
) -> None:
    """Write the quantized source model to `target`, calibrated on training images of its data set."""
    dataset = open_dataset(dataset_folder)
    positions = np.arange(len(dataset.train.labels))
    _quantize(model, target, dataset, positions, derive_seed(seed, "calibration", Path(dataset_folder).name))


def quantize_reengineered(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dataset_folder: str | Path,
    metrics: str | os.PathLike[str],
) -> None:
    """Write the quantized re-engineered model to `target`, calibrated on the held-out images of its problem.

    metrics: the metrics.json of its search. A search that held out no images (`selection: test`) leaves its training
    images for calibration.
    """
    dataset, record = open_dataset(dataset_folder), read_json(metrics)
    problem = problem_of_result(dataset, record)
    subset = problem.holdout if len(problem.holdout) else problem.train
    names = [record[name] for name in ("dataset", "problem", "target")]
    _quantize(model, target, dataset, subset.indices, derive_seed(record["seed"], "calibration", *names))


def _quantize(
    model: str | os.PathLike[str], target: str | os.PathLike[str], dataset: Any, positions: np.ndarray, seed: int
) -> None:
    """Quantize with at most IMAGES of the training images at `positions`, drawn without repetition."""
    drawn = np.sort(np.random.default_rng(seed).choice(positions, min(len(positions), IMAGES), replace=False))
    log.info("calibration on %d training images", len(drawn))
    about = read_metadata(model)
    normalization = about["mean"], about["std"]
    images = batches(dataset.train, drawn, np.zeros(len(drawn)), BATCH_SIZE, normalization=normalization)
    quantize(model, target, (np.ascontiguousarray(batch.numpy()) for batch, _ in images))

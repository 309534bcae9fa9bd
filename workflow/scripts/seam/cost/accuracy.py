"""Accuracy of ONNX models as an inference engine computes them, for engines that round: int8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seam.cost.quantization import read_metadata
from seam.data.batches import batches
from seam.data.drawing import problem_of_result
from seam.data.storage import open_dataset
from seam.errors import UserError, first_line
from seam.evaluation import accuracy, source_accuracy
from seam.files import check_onnx_seal, read_json, sha256, write_json

if TYPE_CHECKING:
    from seam.cost.latency import OpenEngine

BATCH_SIZE = 32


def write_accuracy(
    path: str | os.PathLike[str],
    engine: str,
    open_engine: OpenEngine,
    models: dict[str, str],
    dataset_folder: str | Path,
    metrics: str | os.PathLike[str],
) -> None:
    """Write the accuracy of both models on the test images of a target problem to accuracy_{engine}.json.

    models: {"source": path, "reengineered": path} of the ONNX files that the engine runs. metrics: the metrics.json of
    the problem's search, from which its test images follow.
    """
    dataset, record = open_dataset(dataset_folder), read_json(metrics)
    problem = problem_of_result(dataset, record)
    description, load = open_engine(1, BATCH_SIZE)
    logits, about = {}, {}
    for name, file in models.items():
        check_onnx_seal(file)
        try:
            run, _ = load(Path(file))
            about[name] = read_metadata(file)
            images = batches(
                dataset.test,
                problem.test.indices,
                problem.test.labels,
                BATCH_SIZE,
                normalization=(about[name]["mean"], about[name]["std"]),
            )
            logits[name] = torch.cat([_outputs(run, batch.numpy()) for batch, _ in images])
        except UserError:
            raise
        except Exception as error:  # engines' errors have no common class
            raise UserError(
                f"{engine} cannot run {file} ({first_line(error)}): delete it, and the workflow makes it again."
            ) from error
    labels = torch.as_tensor(problem.test.labels)
    source = source_accuracy(logits["source"], labels, problem, about["source"]["classes"])
    write_json(
        path,
        {
            "engine": engine,
            **description,
            "images": len(problem.test),
            "model_digests": {name: sha256(file) for name, file in models.items()},
            "accuracy": {
                "source": source[0],
                "source_restricted": source[1],
                "reengineered": accuracy(logits["reengineered"], labels),
            },
        },
    )


def _outputs(run: Any, images: np.ndarray) -> torch.Tensor:
    """Return the outputs for at most BATCH_SIZE images. Engines run whole batches: zeros fill up the last one."""
    batch = np.zeros((BATCH_SIZE, *images.shape[1:]), np.float32)
    batch[: len(images)] = images
    return torch.from_numpy(np.array(run(batch)[: len(images)]))

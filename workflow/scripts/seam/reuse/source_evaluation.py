"""Evaluate a source model on the test images of its own data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from seam.data.batches import batches
from seam.data.problems import are_unequal, require_every_class
from seam.data.storage import open_dataset
from seam.device import select_device
from seam.errors import UserError
from seam.evaluation import mean_recall, predict, require_better_than_guessing, share
from seam.files import write_json
from seam.models.architectures import require_classifier
from seam.models.surgery import to_channels_last
from seam.models.weights import open_source, weights_origin

BATCH_SIZE = 256


def evaluate_source(
    metrics: str | Path, model: str, weights: str | Path, dataset: str | Path, settings: dict[str, Any], device: str
) -> None:
    """Write the accuracy of a source model over all of its data set's classes, and of each, to the file `metrics`.

    weights: the path of its weights. dataset: the folder of the data set. settings: the model's config entry. Raises
    UserError if the model does not know a class, or is worse than guessing.
    """
    images, torch_device = open_dataset(dataset), select_device(device)
    source = open_source(Path(weights).parent, architecture=settings["architecture"])
    unknown = [name for name in images.classes if name not in source.classes]
    if unknown:
        raise UserError(f"The source model {model} does not know the class {unknown[0]} of its data set.")
    require_classifier(source.module, len(source.classes), images.size, f"The source model {model}")
    # The data set may have some of the classes that the model was trained on.
    position = np.array([source.classes.index(name) for name in images.classes])
    test = images.test
    require_every_class(test.labels, images.classes, f"The test images of {settings['dataset']}")
    test_batches = batches(
        test, np.arange(len(test)), position[test.labels], BATCH_SIZE,
        normalization=source.normalization, device=torch_device,
    )  # fmt: skip
    logits, labels = predict(to_channels_last(source.module, torch_device, images.size), test_batches)
    correct = logits.argmax(1) == labels
    subject = f"The source model {model} on {settings['dataset']}"
    accuracy, counts = share(correct), None
    if are_unequal(test.labels, len(images.classes)):
        accuracy, counts = mean_recall(logits.argmax(1), labels), np.bincount(test.labels).tolist()
    require_better_than_guessing(accuracy, len(source.classes), len(test), subject, counts)
    write_json(
        metrics,
        {
            "model": model,
            "dataset": settings["dataset"],
            "architecture": settings["architecture"],
            "weights_origin": weights_origin(settings["weights"]),
            "accuracy": share(correct),
            "per_class": {
                name: share(correct[labels == int(index)]) for name, index in zip(images.classes, position, strict=True)
            },
            "images": len(test),
        },
    )

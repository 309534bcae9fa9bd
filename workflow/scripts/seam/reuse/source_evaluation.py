"""Judge a source model on the test images of its own data set."""

from pathlib import Path

import numpy as np
import torch

from seam.data.batches import batches as batches_of
from seam.data.problems import require_every_class
from seam.data.storage import open_dataset
from seam.device import select_device
from seam.errors import UserError
from seam.evaluation import predict, require_better_than_guessing, share
from seam.files import write_json
from seam.models.architectures import require_classifier
from seam.models.weights import open_source, weights_origin


def evaluate_source(metrics, model, weights, dataset, settings, device):
    """Write the accuracy over all of the data set's classes, and per class."""
    images, source, device = open_dataset(dataset), open_source(Path(weights).parent), select_device(device)
    unknown = [name for name in images.classes if name not in source.classes]
    if unknown:
        raise UserError(f"The source model {model} does not know the class {unknown[0]} of its data set.")
    require_classifier(source.module, len(source.classes), images.size, f"The source model {model}")
    # The data set may be a subset of the classes that the model was trained on.
    position = np.array([source.classes.index(name) for name in images.classes])
    test = images.test
    require_every_class(test.labels, images.classes, f"The test images of {settings['dataset']}")
    logits, labels = predict(
        source.module.to(device, memory_format=torch.channels_last),
        batches_of(
            test, np.arange(len(test)), position[test.labels], 256, normalization=source.normalization, device=device
        ),
    )
    right = logits.argmax(1) == labels
    what = f"The source model {model} on {settings['dataset']}"
    require_better_than_guessing(share(right), len(source.classes), len(test), what)
    write_json(
        metrics,
        {
            "model": model,
            "dataset": settings["dataset"],
            "architecture": settings["architecture"],
            "weights_origin": weights_origin(settings["weights"]),
            "accuracy": share(right),
            "per_class": {
                name: share(right[labels == index]) for name, index in zip(images.classes, position, strict=True)
            },
            "images": len(test),
        },
    )

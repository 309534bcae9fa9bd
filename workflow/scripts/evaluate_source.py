"""What a source model achieves on the test images of its own data set."""

from pathlib import Path


def evaluate_source(metrics, model, weights, dataset, settings, device):
    """Write the accuracy over all of the data set's classes, and per class."""
    import numpy as np
    import torch

    from seam import data, models
    from seam.data.batches import batches as batches_of
    from seam.device import select
    from seam.evaluate import outputs, require_better_than_guessing, share
    from seam.files import UserError, write_json
    from seam.problems import require_all

    images, source, device = data.open(dataset), models.open(Path(weights).parent), select(device)
    unknown = [name for name in images.classes if name not in source.classes]
    if unknown:
        raise UserError(f"The source model {model} does not know the class {unknown[0]} of its data set.")
    models.require_classifier(source.module, len(source.classes), images.size, f"The source model {model}")
    # The data set may be a subset of the classes that the model was trained on.
    position = np.array([source.classes.index(name) for name in images.classes])
    test = images.test
    require_all(test.labels, images.classes, f"The test images of {settings['dataset']}")
    logits, labels = outputs(
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
            "weights_origin": models.weights_origin(settings["weights"]),
            "accuracy": share(right),
            "per_class": {
                name: share(right[labels == index]) for name, index in zip(images.classes, position, strict=True)
            },
            "images": len(test),
        },
    )


if "snakemake" in globals():
    from seam.progress import job

    with job(snakemake.log[0], torch_threads=2):
        evaluate_source(
            snakemake.output.metrics,
            snakemake.wildcards.model,
            snakemake.input.weights,
            Path(snakemake.input.manifest).parent,
            snakemake.params.settings,
            snakemake.params.device,
        )

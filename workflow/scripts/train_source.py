"""Train a source model on its data set."""

from pathlib import Path


def train_source(weights, history, model, dataset, settings, device, checkpoint):
    """Train the model of a config entry (`settings`), and write its weights and its history.

    checkpoint: the path of a file from which a training that was interrupted goes on; it is removed in the end.
    """
    import numpy as np
    import pandas as pd
    import torch

    from seam import data, models
    from seam.checkpoint import Checkpoint
    from seam.data.batches import batches as batches_of
    from seam.device import derive_seed, describe, select
    from seam.files import sha256, write_csv
    from seam.masking import unused
    from seam.train import Settings, train

    images, device, training = data.open(dataset), select(device), Settings(**settings["training"])
    seed = derive_seed(settings["seed"], "train", model)
    torch.manual_seed(seed)
    given = settings["normalization"]
    normalization = (given["mean"], given["std"]) if given else (images.mean, images.std)
    module = models.build(settings["architecture"], len(images.classes))
    module = module.to(device, memory_format=torch.channels_last)
    models.require_classifier(module, len(images.classes), images.size, f"The model {model}")
    # Before a training that would be of no use.
    unused(module, torch.zeros(2, 3, *images.size, device=device))

    def batches(split, **options):
        everything = np.arange(len(split))
        return batches_of(
            split, everything, split.labels, training.batch_size, normalization=normalization, device=device, **options
        )

    data_now = sha256(Path(dataset) / "dataset.json")
    about = {"names": [model], "hyper-parameters": settings, "data": data_now, **describe(device)}
    about["architecture"] = models.architecture_file(settings["architecture"])
    kept = Checkpoint(checkpoint, about)
    generator = torch.Generator().manual_seed(seed)
    rows = train(
        module,
        batches(images.train, augmentation=images.augmentation, generator=generator, shuffle=True),
        training,
        batches(images.test),
        kept,
    )
    models.save(weights, models.Source(module.cpu(), images.classes, normalization, settings["architecture"]))
    write_csv(history, pd.DataFrame(rows))
    kept.remove()


if "snakemake" in globals():
    from seam.progress import job

    with job(snakemake.log[0], torch_threads=2):
        train_source(
            snakemake.output.weights,
            snakemake.output.history,
            snakemake.wildcards.model,
            Path(snakemake.input.manifest).parent,
            snakemake.params.settings,
            snakemake.params.device,
            snakemake.params.checkpoint,
        )

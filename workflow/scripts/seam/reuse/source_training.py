"""Train a source model on its data set."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from seam.data.batches import batches as batches_of
from seam.data.storage import open_dataset
from seam.device import describe_device, select_device
from seam.files import sha256, write_csv
from seam.masks.layers import unused_parameters
from seam.models.architectures import architecture_file, build_model, require_classifier
from seam.models.weights import Source, save_source
from seam.seeds import derive_seed
from seam.settings import TrainingSettings
from seam.training.checkpoint import Checkpoint
from seam.training.supervised import train


def train_source(weights, history, model, dataset, settings, device, checkpoint):
    """Train the model of a config entry (`settings`), and write its weights and its history.

    checkpoint: the path of a file from which a training that was interrupted goes on; it is removed in the end.
    """
    images, device, training = open_dataset(dataset), select_device(device), TrainingSettings(**settings["training"])
    seed = derive_seed(settings["seed"], "train", model)
    torch.manual_seed(seed)
    given = settings["normalization"]
    normalization = (given["mean"], given["std"]) if given else (images.mean, images.std)
    module = build_model(settings["architecture"], len(images.classes))
    module = module.to(device, memory_format=torch.channels_last)
    require_classifier(module, len(images.classes), images.size, f"The model {model}")
    # Before a training that would be of no use.
    unused_parameters(module, torch.zeros(2, 3, *images.size, device=device))

    def batches(split, **options):
        everything = np.arange(len(split))
        return batches_of(
            split, everything, split.labels, training.batch_size, normalization=normalization, device=device, **options
        )

    data_now = sha256(Path(dataset) / "dataset.json")
    about = {"names": [model], "hyper-parameters": settings, "data": data_now, **describe_device(device)}
    about["architecture"] = architecture_file(settings["architecture"])
    kept = Checkpoint(checkpoint, about, __file__)
    generator = torch.Generator().manual_seed(seed)
    rows = train(
        module,
        batches(images.train, augmentation=images.augmentation, generator=generator, shuffle=True),
        training,
        batches(images.test),
        kept,
    )
    save_source(weights, Source(module.cpu(), images.classes, normalization, settings["architecture"]))
    write_csv(history, pd.DataFrame(rows))
    kept.remove()

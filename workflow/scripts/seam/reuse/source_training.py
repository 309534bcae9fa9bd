"""Train a source model on its data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seam.data.batches import batches
from seam.data.storage import Split, open_dataset
from seam.device import select_device
from seam.files import write_csv
from seam.masks.layers import unused_parameters
from seam.models.architectures import architecture_file, build_model, require_classifier
from seam.models.surgery import to_channels_last
from seam.models.weights import Source, save_source
from seam.reuse.provenance import provenance
from seam.seeds import derive_seed
from seam.settings import TrainingSettings
from seam.training.checkpoint import Checkpoint
from seam.training.supervised import train


def train_source(
    weights: str | Path,
    history: str | Path,
    model: str,
    dataset: str | Path,
    settings: dict[str, Any],
    device: str,
    checkpoint: str | Path,
) -> None:
    """Train the source model `model`; write its `weights` and its `history`.

    dataset: the folder of the data set. settings: the model's config entry, with its training and seed. checkpoint: the
    path of the file to resume from. Raises UserError if the architecture cannot be trained or searched.
    """
    images, training = open_dataset(dataset), TrainingSettings(**settings["training"])
    torch_device = select_device(device)
    seed = derive_seed(settings["seed"], "train", model)
    torch.manual_seed(seed)
    given = settings["normalization"]
    normalization = (given["mean"], given["std"]) if given else (images.mean, images.std)
    architecture = settings["architecture"]
    checksum = architecture_file(architecture)  # of the code that runs, whatever happens to the file until the end
    module = build_model(architecture, len(images.classes), checksum)
    module = to_channels_last(module, torch_device, images.size)
    require_classifier(module, len(images.classes), images.size, f"The model {model}")
    # Raises for a model that could not be searched, before the training is spent on it.
    unused_parameters(module, torch.zeros(2, 3, *images.size, device=torch_device))

    def batches_of(split: Split, **options: Any) -> Any:
        return batches(
            split, np.arange(len(split)), split.labels, training.batch_size,
            normalization=normalization, device=torch_device, **options,
        )  # fmt: skip

    origin = provenance(
        [model], settings, settings["seed"], torch_device, dataset,
        architecture=checksum,
    )  # fmt: skip
    state = Checkpoint(checkpoint, origin, __file__)
    generator = torch.Generator().manual_seed(seed)
    rows = train(
        module,
        batches_of(images.train, augmentation=images.augmentation, generator=generator, shuffle=True),
        training,
        batches_of(images.test),
        state,
    )
    save_source(weights, Source(module.cpu(), images.classes, normalization, architecture, checksum))
    write_csv(history, pd.DataFrame(rows))
    state.remove()

"""The images, the source model and the seeds that all procedures of indirect reuse share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seam.data.batches import batches
from seam.data.problems import Subset, hold_out, require_every_class
from seam.data.storage import Split, open_dataset
from seam.device import select_device
from seam.models.architectures import build_model, require_classifier
from seam.models.surgery import find_last_layer, replace_last_layer, to_channels_last
from seam.models.weights import open_source
from seam.reuse.provenance import environment, provenance
from seam.seeds import derive_seed
from seam.settings import TransferSettings


class Transfer:
    """A source model and another data set, ready for one procedure of indirect reuse."""

    def __init__(
        self,
        model_folder: str | Path,
        dataset_folder: str | Path,
        names: Sequence[Any],
        common: dict[str, Any],
        seed: int,
        device: str,
        architecture: str | None = None,
    ) -> None:
        """Open both folders, draw the held-out set and seed torch.

        names: the model's, the data set's and the procedure's own, from which, with `seed`, every random choice
        derives. common: a dictionary of `TransferSettings`. architecture: the source model's, needed if it is a file.
        Raises UserError if the data set misses a class in one of its splits, or if the source model does not fit.
        """
        model, dataset, *_ = names
        self.device, self.settings = select_device(device), TransferSettings(**common)
        self.images = open_dataset(dataset_folder)
        self.source = open_source(model_folder, architecture=architecture)
        self.classes, shape = self.images.classes, (3, *self.images.size)
        source_classes = len(self.source.classes)
        require_classifier(self.source.module, source_classes, self.images.size, f"The source model {model}")
        self.last_layer = find_last_layer(self.source.module, source_classes, shape, self.settings.last_layer)
        for name, split in (("training", self.images.train), ("test", self.images.test)):
            require_every_class(split.labels, self.classes, f"The {name} images of {dataset}")
        everything = Subset(np.arange(len(self.images.train)), self.images.train.labels)
        self.uses_holdout = self.settings.selection == "holdout"
        # Drawn from the data set alone, so that all students are compared on the same images.
        share = self.settings.holdout if self.uses_holdout else 0.0
        self.train, self.holdout = hold_out(everything, share, derive_seed(seed, "transfer", dataset))
        self.test = Subset(np.arange(len(self.images.test)), self.images.test.labels)
        self.seed = derive_seed(seed, *names)
        torch.manual_seed(self.seed)
        self.provenance = provenance(list(names), common, seed, self.device, dataset_folder, model_folder)

    def student(self, pretrained: bool = True) -> nn.Module:
        """Return the source model with a new last layer for the data set's classes, on the device.

        Without `pretrained`, all its weights are random.
        """
        module = self.source.module
        if not pretrained:
            module = build_model(self.source.architecture, len(self.source.classes), self.source.checksum)
        module = replace_last_layer(module, self.last_layer, len(self.classes)).requires_grad_(True)
        return to_channels_last(module, self.device, self.images.size)

    def train_batches(self) -> Any:
        """Return the augmented and shuffled batches of the training images that are not held out."""
        generator = torch.Generator().manual_seed(self.seed)
        augmentation = self.images.augmentation
        return self._batches(
            self.images.train, self.train, augmentation=augmentation, generator=generator, shuffle=True
        )

    def plain_batches(self) -> Any:
        """Return the batches of the training images that are not held out, as they are."""
        return self._batches(self.images.train, self.train)

    def test_batches(self, enlarge: bool = True) -> Any:
        """Return the batches of all test images. enlarge: whether they may be larger than is set (`batches`)."""
        return self._batches(self.images.test, self.test, enlarge=enlarge)

    def selection_batches(self) -> Any:
        """Return the batches on which epochs are compared: of the held-out set, or of the test images."""
        return self._batches(self.images.train, self.holdout) if self.uses_holdout else self.test_batches()

    def _batches(self, split: Split, subset: Subset, **options: Any) -> Any:
        return batches(
            split, subset.indices, subset.labels, self.settings.batch_size,
            normalization=self.source.normalization, device=self.device, **options,
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Return what a result records: the numbers of images, and where it was computed."""
        images = {"train": len(self.train), "holdout": len(self.holdout), "test": len(self.test)}
        return {"images": images, **environment(self.device)}

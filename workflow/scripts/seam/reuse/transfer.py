"""The data, the source model and the seeds that all procedures of indirect reuse share."""

from pathlib import Path

import numpy as np
import torch

from seam.data.batches import batches as batches_of
from seam.data.problems import Subset, hold_out, require_every_class
from seam.data.storage import open_dataset
from seam.device import describe_device, select_device
from seam.files import sha256
from seam.models.architectures import build_model, require_classifier
from seam.models.surgery import find_last_layer, replace_last_layer
from seam.models.weights import open_source
from seam.seeds import derive_seed


class TransferTask:
    """What the procedures share: the images and their parts, the source model, the device, the seed.

    model_folder, dataset_folder: as the workflow keeps them. names: the model's, the data set's and the job's own,
    from which, with `seed`, every random choice derives. common: {"batch_size", "selection", "holdout", "last_layer"}.
    """

    def __init__(self, model_folder, dataset_folder, names, common, seed, device):
        self.device, self.common = select_device(device), common
        self.images, self.source = open_dataset(dataset_folder), open_source(model_folder)
        self.classes, self.shape = self.images.classes, (3, *self.images.size)
        what = f"The source model {names[0]}"
        require_classifier(self.source.module, len(self.source.classes), self.images.size, what)
        self.last = find_last_layer(self.source.module, len(self.source.classes), self.shape, common["last_layer"])
        model, dataset, *_ = names
        for name, part in (("training", self.images.train), ("test", self.images.test)):
            require_every_class(part.labels, self.classes, f"The {name} images of {dataset}")
        everything = Subset(np.arange(len(self.images.train)), self.images.train.labels)
        self.held_out = common["selection"] == "holdout"
        # Drawn from the data set alone, so that all students are compared on the same images.
        share = common["holdout"] if self.held_out else 0.0
        self.train_part, self.holdout_part = hold_out(everything, share, derive_seed(seed, "transfer", dataset))
        self.test_part = Subset(np.arange(len(self.images.test)), self.images.test.labels)
        self.seed = derive_seed(seed, *names)
        torch.manual_seed(self.seed)
        self.about = {
            "names": list(names),
            "hyper-parameters": common,
            "seed": seed,
            "data": sha256(Path(dataset_folder) / "dataset.json"),
            "source model": sha256(Path(model_folder) / "source.safetensors"),
        } | describe_device(self.device)

    def student(self, pretrained=True):
        """The source model with a new last layer for the data set's classes, on the device."""
        module = self.source.module
        if not pretrained:
            module = build_model(self.source.architecture, len(self.source.classes))
        module = replace_last_layer(module, self.last, len(self.classes)).requires_grad_(True)
        return module.to(self.device, memory_format=torch.channels_last)

    def batches(self, split, part, **options):
        return batches_of(
            split, part.indices, part.labels, self.common["batch_size"],
            normalization=self.source.normalization, device=self.device, **options,
        )  # fmt: skip

    def train(self):
        generator = torch.Generator().manual_seed(self.seed)
        augmentation = self.images.augmentation
        return self.batches(
            self.images.train, self.train_part, augmentation=augmentation, generator=generator, shuffle=True
        )

    def test(self):
        return self.batches(self.images.test, self.test_part)

    def selection(self):
        return self.batches(self.images.train, self.holdout_part) if self.held_out else self.test()

    def facts(self):
        return {
            "images": {
                "train": len(self.train_part),
                "holdout": len(self.holdout_part),
                "test": len(self.test_part),
            },
            **describe_device(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

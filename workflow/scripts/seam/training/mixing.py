"""Images put together from two.

Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019. A source
model has learned its training images by heart, so its answers to them say little more than their labels do. Its answers
to images that it has not seen say more, and a network that learns those cannot learn the images by heart itself (Beyer
et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import one_hot


@dataclass(frozen=True)
class Mixing:
    """Which batches of a training are mixed, and how.

    share: of the batches. classes: their number. seed: of all that is drawn.
    """

    share: float
    classes: int
    seed: int

    def apply(
        self, images: torch.Tensor, labels: torch.Tensor, epoch: int, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images to train on and their targets, for `cross_entropy`.

        images: [B, C, H, W]. labels: int64 [B]; they are the targets of a batch that is not mixed, and one that is has
        each class's share of each image, [B, classes]. epoch, batch: their numbers. Each batch has a generator of its
        own, so that a training that was stopped resumes with the same mixtures.
        """
        if not self.share:
            return images, labels
        generator = np.random.default_rng([self.seed, epoch, batch])
        if generator.random() >= self.share:
            return images, labels
        return cut_and_paste(images, one_hot(labels, self.classes).to(images.dtype), generator)


UNMIXED = Mixing(0.0, 1, 0)


def cut_and_paste(
    images: torch.Tensor, targets: torch.Tensor, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a rectangle of another image of the batch into each; return new images, and targets by area.

    images: [B, C, H, W], in random order: the other image is so many places further. targets: [B, n], each class's
    share of an image. The rectangle is the same for the whole batch. Its area is a uniformly drawn share of the image,
    less what lies beyond an edge.
    """
    height, width = images.shape[-2:]
    side = generator.random() ** 0.5  # of the image's sides, so that the area is uniform
    rows, columns = (_span(size, side, int(generator.integers(size))) for size in (height, width))
    shift = int(generator.integers(1, len(images))) if len(images) > 1 else 0
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[:, :, rows, columns].roll(shift, 0)
    share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, torch.lerp(targets, targets.roll(shift, 0), share)


def _span(size: int, side: float, middle: int) -> slice:
    """Return the places of a side of so large a share of `size`, around `middle`, that are within the image."""
    length = round(size * side)
    start = middle - length // 2
    return slice(max(start, 0), min(start + length, size))

"""Images put together from two.

Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019. A source
model has learned its training images by heart, so that its answers to them say little more than their labels do. What
it answers to images that it has not seen says more, and a network that learns such answers cannot learn the images by
heart itself (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022).
"""

from __future__ import annotations

import numpy as np
import torch


def cut_and_paste(
    images: torch.Tensor, targets: torch.Tensor, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a rectangle of another image of the batch into each; return new images, and targets by area.

    images: [B, C, H, W]. targets: [B, n], each class's share of an image. The rectangle is the same for the whole
    batch. Its area is a uniformly drawn share of the image, less what lies beyond an edge.
    """
    height, width = images.shape[-2:]
    side = generator.random() ** 0.5  # of the image's sides, so that the area is uniform
    spans = []
    for size in (height, width):
        middle, half = generator.integers(size), round(size * side) / 2
        spans.append(slice(max(round(middle - half), 0), min(round(middle + half), size)))
    others = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    rows, columns = spans
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[others][:, :, rows, columns]
    share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, torch.lerp(targets, targets[others], share)

"""Images put together from two: which pixels are whose, and what the targets say of them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from seam.training.mixing import cut_and_paste


def batch(count=6, height=8, width=12):
    """Images whose pixels are all their number."""
    images = torch.arange(float(count)).reshape(-1, 1, 1, 1).expand(-1, 3, height, width).contiguous()
    return images, one_hot(torch.arange(count), count).float()


@pytest.mark.parametrize("seed", range(20))
def test_a_rectangle_of_another_image_is_in_each_and_the_targets_are_the_areas(seed):
    images, targets = batch()
    mixed, shares = cut_and_paste(images, targets, np.random.default_rng(seed))
    assert mixed.shape == images.shape and torch.equal(images, batch()[0])
    for number, (image, share) in enumerate(zip(mixed, shares, strict=True)):
        assert all(torch.equal(channel, image[0]) for channel in image)
        for other in range(len(images)):
            assert share[other].item() == pytest.approx((image[0] == other).float().mean().item(), abs=1e-6)
        rows, columns = (image[0] != number).nonzero(as_tuple=True)
        if len(rows):
            pasted = image[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (pasted != number).all()  # one rectangle
    assert torch.allclose(shares.sum(1), torch.ones(len(images)))


def test_areas_are_of_all_sizes_and_images_of_all_others():
    images, targets = batch(2)
    areas, generator = [], np.random.default_rng(0)
    for _ in range(400):
        mixed, _ = cut_and_paste(images, targets, generator)
        areas.append((mixed[0] == 1).float().mean().item())
    pasted = [area for area in areas if area]
    assert 120 < len(pasted) < 280  # one of two images is often pasted into itself
    assert min(pasted) < 0.1 and max(pasted) > 0.9 and 0.25 < np.mean(pasted) < 0.5  # less what lies beyond an edge


def test_the_same_generator_gives_the_same_images_in_the_same_layout():
    images, targets = batch()
    images = images.to(memory_format=torch.channels_last)
    first, second = (cut_and_paste(images, targets, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert first[0].is_contiguous(memory_format=torch.channels_last)

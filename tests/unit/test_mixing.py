"""Images put together from two: which pixels are whose, and what the targets say of them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from seam.training.mixing import Mixing, cut_and_paste


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


def test_areas_are_of_all_sizes_and_uniform_before_they_are_cut_off():
    images, targets = batch(2)
    areas, generator = [], np.random.default_rng(0)
    for _ in range(4000):
        mixed, _ = cut_and_paste(images, targets, generator)
        areas.append((mixed[0] == 1).float().mean().item())
    # A side drawn uniformly would give 0.26, and a fourth root 0.42.
    assert min(areas) < 0.05 and max(areas) > 0.95 and 0.30 < np.mean(areas) < 0.35


def test_what_is_pasted_comes_from_the_same_place_of_one_other_image():
    images = torch.arange(5 * 3 * 8 * 8.0).reshape(5, 3, 8, 8)
    seen = set()
    for seed in range(40):
        mixed, shares = cut_and_paste(images, one_hot(torch.arange(5), 5).float(), np.random.default_rng(seed))
        number, channel, row, column = np.unravel_index(mixed.long().numpy(), images.shape)
        assert (channel == np.arange(3)[:, None, None]).all()
        assert (row == np.arange(8)[:, None]).all() and (column == np.arange(8)).all()
        others = [set(number[index].ravel()) - {index} for index in range(5)]
        assert {len(other) for other in others} <= {0, 1} and len({len(other) for other in others}) == 1
        seen |= {(int(min(other)) - index) % 5 for index, other in enumerate(others) if other}
    assert seen == {1, 2, 3, 4}


def test_a_batch_of_one_image_stays_as_it_is():
    images, targets = batch(1)
    mixed, shares = cut_and_paste(images, targets, np.random.default_rng(0))
    assert torch.equal(mixed, images) and torch.equal(shares, targets)


def test_so_large_a_share_of_the_batches_is_mixed_each_in_its_own_way():
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    mixing, found = Mixing(0.5, 2, seed=1), []
    for epoch in (1, 2):
        for number in range(200):
            mixed, targets = mixing.apply(images, labels, epoch, number)
            if targets is labels:
                assert mixed is images
            else:
                assert targets.shape == (4, 2)
                found.append((mixed - images).abs().sum().item())
    assert 160 < len(found) < 240 and len(set(found)) > 0.75 * len(found)  # some rectangles are empty
    again = mixing.apply(images, labels, 2, 7), mixing.apply(images, labels, 2, 7)
    assert torch.equal(again[0][0], again[1][0])
    assert Mixing(0.0, 2, 1).apply(images, labels, 1, 0)[1] is labels
    everything = [Mixing(1.0, 2, seed).apply(images, labels, 1, 0) for seed in (1, 2)]
    assert not torch.equal(everything[0][0], everything[1][0])


def test_the_same_generator_gives_the_same_images_in_the_same_layout():
    images, targets = batch()
    images = images.to(memory_format=torch.channels_last)
    first, second = (cut_and_paste(images, targets, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert first[0].is_contiguous(memory_format=torch.channels_last)

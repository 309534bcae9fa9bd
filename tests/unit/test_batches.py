import numpy as np
import pytest
import torch
from PIL import Image

import seam
from seam.data import batches as module
from seam.data.batches import batches, crop, resized_crop
from seam.data.decoding import read_image, stored_size
from seam.data.storage import Split
from seam.errors import UserError

COUNT, SIZE = 50, 16
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
ALL = np.arange(COUNT)


@pytest.fixture
def split():
    images = np.random.default_rng(0).integers(1, 256, (COUNT, SIZE, SIZE, 3), np.uint8)  # 0 is the padding's alone
    return Split(np.arange(COUNT) % 5, (SIZE, SIZE), images)


@pytest.fixture
def files(split, tmp_path):
    """The same images as files, without loss."""
    paths = [str(tmp_path / f"{number}.png") for number in range(COUNT)]
    for path, image in zip(paths, split.images, strict=True):
        Image.fromarray(image).save(path)
    return Split(split.labels, split.size, files=paths)


def normalized(images):
    """[N, H, W, 3] in 0..255 -> [N, 3, H, W], as torchvision's ToTensor and Normalize do it."""
    return torch.from_numpy(((images / 255 - MEAN) / STD).astype(np.float32)).permute(0, 3, 1, 2)


def pixels(batch):
    """Back to uint8 [N, H, W, 3]."""
    return ((batch.permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)) * 255).round().to(torch.uint8).numpy()


def epoch(split, indices=ALL, labels=None, batch_size=8, seed=0, **options):
    labels = split.labels[indices] if labels is None else labels
    generator = torch.Generator().manual_seed(seed)
    found = list(batches(split, indices, labels, batch_size, normalization=(MEAN, STD), generator=generator, **options))
    return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found])


def test_without_augmentation_the_batches_are_the_normalised_images_in_order(split):
    found = list(batches(split, ALL, split.labels, 8, normalization=(MEAN, STD)))
    assert [len(labels) for _, labels in found] == [8] * 6 + [2]
    images, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    torch.testing.assert_close(images, normalized(split.images))
    assert labels.tolist() == split.labels.tolist()
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch, _ in found)


@pytest.mark.parametrize("augmentation", [(), ("crop", "flip"), ("resized-crop", "flip")])
@pytest.mark.parametrize("count", [50, 49])  # the last batch is smaller, or has one image more
def test_batches_made_several_at_once_are_those_made_one_by_one(split, augmentation, count):
    def made(several, first=0):
        generator = torch.Generator().manual_seed(0)
        options = {"normalization": (MEAN, STD), "augmentation": augmentation, "generator": generator, "shuffle": True}
        loader = batches(split, ALL[:count], split.labels[:count], 8, **options)
        loader.group_bytes = several * 12 * 8 * SIZE * SIZE  # as on a GPU
        return list(loader.starting_at(first))

    expected = made(1)
    for several, first in ((2, 0), (4, 0), (100, 0), (4, 3)):
        found = made(several, first)
        assert len(found) == len(expected) - first
        for one, other in zip(found, expected[first:], strict=True):
            exact = "resized-crop" not in augmentation  # whose sums of floats go by the batch
            torch.testing.assert_close(one[0], other[0], rtol=0, atol=0 if exact else 1e-5)
            assert torch.equal(one[1], other[1])
            assert one[0].is_contiguous(memory_format=torch.channels_last)


def test_indices_choose_images_and_labels_are_the_problem_s_own(split):
    indices = np.array([40, 3, 17])
    images, labels = epoch(split, indices, np.array([1, 0, 1]))
    torch.testing.assert_close(images, normalized(split.images[indices]))
    assert labels.tolist() == [1, 0, 1]


def test_length(split):
    assert [len(batches(split, ALL[:n], ALL[:n], 8, normalization=(MEAN, STD))) for n in (1, 8, 9)] == [1, 1, 2]


@pytest.mark.parametrize("kind", ["split", "files"])
def test_a_single_image_that_is_left_joins_the_batch_before(kind, request):
    """Of one image no batch norm can be trained."""
    images = request.getfixturevalue(kind)
    common = {"normalization": (MEAN, STD), "generator": torch.Generator().manual_seed(0)}
    loader = batches(images, ALL[:17], ALL[:17], 8, shuffle=True, **common)
    found = [labels for _, labels in loader]
    assert [len(labels) for labels in found] == [8, 9] and len(loader) == 2
    assert sorted(torch.cat(found).tolist()) == list(range(17))
    assert [len(labels) for _, labels in batches(images, ALL[:17], ALL[:17], 8, **common)] == [8, 8, 1]
    assert [len(labels) for _, labels in batches(images, ALL[:1], ALL[:1], 8, shuffle=True, **common)] == [1]
    assert [len(labels) for _, labels in batches(images, ALL[:3], ALL[:3], 1, shuffle=True, **common)] == [1, 1, 1]


@pytest.mark.parametrize("augmentation", [(), ("crop",), ("flip",), ("crop", "flip"), ("resized-crop", "flip")])
def test_the_same_seed_gives_the_same_batches(split, augmentation):
    first, again, other = (epoch(split, seed=seed, shuffle=True, augmentation=augmentation) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_the_global_random_numbers_are_left_alone(split):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch(split, shuffle=True, augmentation=("crop", "flip"))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_epoch_is_another_order_of_the_same_images(split):
    generator = torch.Generator().manual_seed(0)
    loader = batches(split, ALL, ALL, 8, normalization=(MEAN, STD), generator=generator, shuffle=True)
    epochs = [torch.cat([labels for _, labels in loader]).tolist() for _ in range(3)]
    assert all(sorted(labels) == ALL.tolist() for labels in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_shuffled_images_keep_their_labels(split):
    images, labels = epoch(split, labels=ALL, shuffle=True)
    torch.testing.assert_close(images, normalized(split.images[labels.numpy()]))


def test_flip_only_mirrors(split):
    found = pixels(epoch(split, augmentation=("flip",))[0])
    mirrored = np.array([not np.array_equal(a, b) for a, b in zip(found, split.images, strict=True)])
    np.testing.assert_array_equal(found[mirrored], split.images[mirrored][:, :, ::-1])
    assert 0.2 < mirrored.mean() < 0.8


def test_crop_stays_inside_the_padding(split):
    found = pixels(epoch(split, augmentation=("crop",))[0])
    padding = SIZE // 8
    padded = np.pad(split.images, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    places = set()
    for image, whole in zip(found, padded, strict=True):
        windows = {
            (top, left): whole[top : top + SIZE, left : left + SIZE]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        }
        places.add(next(place for place, window in windows.items() if np.array_equal(image, window)))
    assert {top for top, _ in places} == {left for _, left in places} == set(range(2 * padding + 1))


def test_crop_and_flip_at_their_limits():
    image = torch.arange(1, 49, dtype=torch.uint8).view(1, 4, 4, 3)
    first, last = torch.tensor([0.0]), torch.tensor([1.0])
    assert torch.equal(crop(image, 1, first, first)[0, 1:, 1:], image[0, :3, :3])
    assert crop(image, 1, first, first)[0, 0].sum() == 0
    assert torch.equal(crop(image, 1, last, last)[0, :3, :3], image[0, 1:, 1:])
    assert torch.equal(crop(image, 0, first, last, torch.tensor([True])), image.flip(2))
    mirrored = crop(image, 1, first, first, torch.tensor([True]))  # the crop's place is chosen before the mirror
    assert torch.equal(mirrored, crop(image, 1, first, first).flip(2))


def test_a_resized_crop_of_the_whole_is_the_image():
    image = torch.randint(0, 256, (1, 8, 8, 3), dtype=torch.uint8)
    half, whole = torch.tensor([0.5]), torch.tensor([1.0])
    torch.testing.assert_close(resized_crop(image, half, half, half, whole, half), image.float(), atol=1e-3, rtol=0)
    mirrored = resized_crop(image, half, half, half, whole, half, torch.tensor([True]))
    torch.testing.assert_close(mirrored, image.flip(2).float(), atol=1e-3, rtol=0)


def test_a_resized_crop_is_a_part_of_the_image():
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 64, 1).expand(1, 64, 64, 3).contiguous()
    first, last, small = torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([0.0])  # 8 % of the area
    left = resized_crop(ramp, first, first, first, small, torch.tensor([0.5]))
    right = resized_crop(ramp, first, last, first, small, torch.tensor([0.5]))
    width = 64 * 0.08**0.5
    assert left.min() < 1 and left.max() == pytest.approx(width, abs=1)
    assert right.max() > 62 and right.min() == pytest.approx(64 - width, abs=1)


def test_a_resized_crop_to_another_size_is_as_pillow_resizes():
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).view(1, 1, 64, 1).expand(1, 64, 64, 3).contiguous()
    half, whole = torch.tensor([0.5]), torch.tensor([1.0])
    found = resized_crop(ramp, half, half, half, whole, half, size=56)[0]
    expected = np.asarray(Image.fromarray(ramp[0].numpy()).resize((56, 56), Image.Resampling.BILINEAR), np.float32)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1, rtol=0)


def test_images_too_many_for_the_device_give_the_same_batches(split, monkeypatch):
    options = {"shuffle": True, "augmentation": ("crop", "flip")}
    expected = epoch(split, ALL[::-1], **options)
    monkeypatch.setattr(module, "RESIDENT_BYTES", 0)
    found = epoch(split, ALL[::-1], **options)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("kind", ["split", "files"])
def test_an_epoch_may_begin_at_any_batch(kind, request):
    split = request.getfixturevalue(kind)
    generator = torch.Generator().manual_seed(0)
    options = {"normalization": (MEAN, STD), "augmentation": ("crop", "flip"), "generator": generator, "shuffle": True}
    loader = batches(split, ALL, ALL, 8, **options, **({"workers": 1} if kind == "files" else {}))
    state = generator.get_state()
    whole, after = list(loader), generator.get_state()
    for first in (0, 3, len(loader) - 1, len(loader)):
        generator.set_state(state)
        rest = list(loader.starting_at(first))
        assert len(rest) == len(loader) - first
        for (images, labels), (same_images, same_labels) in zip(rest, whole[first:], strict=True):
            assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
        assert torch.equal(generator.get_state(), after)
    assert len(list(loader)) == len(loader)  # the next epoch is whole again


@pytest.mark.parametrize("augmentation", [(), ("crop", "flip"), ("resized-crop", "flip")])
def test_files_and_arrays_give_the_same_batches(split, files, augmentation):
    options = {"labels": ALL, "shuffle": True, "augmentation": augmentation}
    found, expected = epoch(files, workers=1, **options), epoch(split, **options)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_what_is_stored_beyond_the_size_is_for_training(split):
    """The centre is what a test image is; a part of all of it what a training image is."""
    inner = Split(split.labels, (12, 12), split.images)
    torch.testing.assert_close(epoch(inner)[0], normalized(split.images[:, 2:14, 2:14]))
    found = pixels(epoch(inner, augmentation=("flip",))[0])
    for image, original in zip(found, split.images[:, 2:14, 2:14], strict=True):
        assert np.array_equal(image, original) or np.array_equal(image, original[:, ::-1])
    assert epoch(inner, augmentation=("crop",))[0].shape == (COUNT, 3, 12, 12)
    assert epoch(inner, augmentation=("resized-crop",))[0].shape == (COUNT, 3, 12, 12)


def test_files_without_augmentation_are_the_normalised_images(split, files):
    torch.testing.assert_close(epoch(files, workers=0)[0], normalized(split.images))


@pytest.mark.parametrize("augmentation", [("crop", "flip"), ("resized-crop", "flip")])
def test_files_give_the_same_batches_with_any_number_of_workers(files, augmentation):
    options = {"labels": ALL, "shuffle": True, "augmentation": augmentation}
    alone, together = epoch(files, workers=0, **options), epoch(files, workers=2, **options)
    assert torch.equal(alone[0], together[0]) and torch.equal(alone[1], together[1])
    assert not torch.equal(epoch(files, workers=0, seed=1, **options)[0], alone[0])


@pytest.mark.parametrize("size", [16, 128])
def test_an_image_alone_is_prepared_as_those_of_a_data_set(size, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (150, 180, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    found = seam.image(tmp_path / "photo.png", size, (MEAN, STD))
    margin = (stored_size(size) - size) // 2
    assert margin == (9 if size == 128 else 0)
    square = read_image(tmp_path / "photo.png", stored_size(size))[margin : margin + size, margin : margin + size]
    torch.testing.assert_close(found, normalized(square[None]))


def test_a_flipped_file_is_mirrored(split, files):
    found = pixels(epoch(files, augmentation=("flip",), workers=0)[0])
    for image, original in zip(found, split.images, strict=True):
        assert np.array_equal(image, original) or np.array_equal(image, original[:, ::-1])


def test_each_epoch_of_files_is_another(files):
    generator = torch.Generator().manual_seed(0)
    options = {"normalization": (MEAN, STD), "augmentation": ("crop",), "generator": generator, "workers": 1}
    loader = batches(files, ALL, ALL, 50, **options)
    (first, _), (second, _) = (next(iter(loader)) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_sentence(files, workers):
    with open(files.files[9], "w") as file:
        file.write("no image")
    with pytest.raises(UserError, match=r"^[^\n]*9.png cannot be read as an image[^\n]*$"):
        epoch(files, workers=workers)


def test_an_unknown_augmentation_is_named(split):
    with pytest.raises(UserError, match="augmentation: mixup is unknown"):
        epoch(split, augmentation=("mixup",))


def test_labels_must_match_the_images(split):
    with pytest.raises(ValueError, match="3 images, but 2 labels"):
        batches(split, [1, 2, 3], [0, 1], 8, normalization=(MEAN, STD))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_batches(split):
    options = {"shuffle": True, "augmentation": ("crop", "flip")}
    found, expected = epoch(split, device="cuda", **options), epoch(split, **options)
    torch.testing.assert_close(found[0].cpu(), expected[0])
    assert torch.equal(found[1].cpu(), expected[1])

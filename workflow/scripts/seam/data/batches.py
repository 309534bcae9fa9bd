"""Batches of images, augmented as a whole on the device they are needed on.

>>> for images, labels in batches(data.train, indices, labels, 64, normalization=(mean, std)):   # doctest: +SKIP
...     loss = cross_entropy(model(images), labels)
"""

import math
import sys

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from seam.data.decoding import cores, open_image, read_image
from seam.files import UserError

RESIDENT = 4 << 30  # bytes of images that are kept on the device; what is more is read batch by batch


def batches(
    split,
    indices,
    labels,
    batch_size,
    *,
    normalization,
    device="cpu",
    augmentation=(),
    generator=None,
    shuffle=False,
    workers=None,
):
    """Batches of the images `indices` of a split, each epoch anew: an iterable with a length.

    indices: integers [N] into the split; labels: their labels in the problem at hand [N];
    normalization: (mean, std), each of 3 values for images in 0..1;
    augmentation: any of "crop" (zero padding of an eighth of the size, then a random crop), "flip",
    "resized-crop" (a random part of 8 to 100 % of the area, resized);
    generator: the torch.Generator of every random choice (order, crop, flip): the same seed gives the same batches;
    workers: processes that decode images which are stored as files.

    Gives (images, labels): float32 [B, 3, H, W] in channels_last memory format and int64 [B]. The last
    batch may be smaller.
    """
    if unknown := set(augmentation) - {"crop", "flip", "resized-crop"}:
        raise UserError(f"augmentation: {min(unknown)} is unknown: choose among crop, flip, resized-crop.")
    common = (split, indices, labels, batch_size, normalization, device, augmentation, generator, shuffle)
    return ArrayBatches(*common) if split.images is not None else FileBatches(*common, workers)


class _Batches:
    def __init__(self, split, indices, labels, batch_size, normalization, device, augmentation, generator, shuffle):
        self.split, self.indices = split, np.asarray(indices, np.int64)
        self.batch_size, self.device = batch_size, torch.device(device)
        self.augmentation, self.generator, self.shuffle = frozenset(augmentation), generator, shuffle
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in normalization)
        self.scale = (1 / (255 * std)).float().to(self.device)
        self.shift = (-mean / std).float().to(self.device)
        self.labels = torch.as_tensor(np.asarray(labels, np.int64)).to(self.device)
        if len(self.labels) != len(self.indices):
            raise ValueError(f"{len(self.indices)} images, but {len(self.labels)} labels")

    def __len__(self):
        return math.ceil(len(self.indices) / self.batch_size)

    def _order(self):
        """The positions 0..N-1 in this epoch's order, on the CPU."""
        if not self.shuffle:
            return torch.arange(len(self.indices))
        return torch.randperm(len(self.indices), **self._source()).cpu()

    def _source(self):
        return {"generator": self.generator, "device": self.generator.device} if self.generator is not None else {}

    def _normalized(self, images):
        """uint8 or float [B, H, W, 3] in 0..255 -> float32 [B, 3, H, W], channels last in memory."""
        return torch.addcmul(self.shift, images.float(), self.scale).permute(0, 3, 1, 2)


class ArrayBatches(_Batches):
    """Of images in an array. They lie on the device, as uint8, and an epoch's random numbers are drawn at once:
    no step waits for the host."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        size = len(self.indices) * math.prod(self.split.images.shape[1:])
        self.images = torch.from_numpy(self.split.images[self.indices]).to(self.device) if size <= RESIDENT else None

    def __iter__(self):
        order = self._order()
        choices = self._choices(len(order))
        rows = order.to(self.device)
        for start in range(0, len(order), self.batch_size):
            part = slice(start, start + self.batch_size)
            if self.images is None:
                images = torch.from_numpy(self.split.images[self.indices[order[part].numpy()]]).to(self.device)
            else:
                images = self.images.index_select(0, rows[part])
            images = self._augmented(images, *(choice[part] for choice in choices))
            yield self._normalized(images), self.labels.index_select(0, rows[part])

    def _choices(self, count):
        """Random numbers in 0..1 for the vertical and horizontal place, the flip, the area and the aspect: 5 of [N]."""
        if not self.augmentation:
            return []
        return list(torch.rand(5, count, **self._source()).to(self.device))

    def _augmented(self, images, *choices):
        if not choices:
            return images
        flip = choices[2] < 0.5 if "flip" in self.augmentation else None
        if "resized-crop" in self.augmentation:
            return resized_crop(images, *choices, flip)
        padding = images.shape[1] // 8 if "crop" in self.augmentation else 0
        return crop(images, padding, choices[0], choices[1], flip)


def crop(images, padding, vertical, horizontal, flip=None):
    """Zero padding on all sides, then a crop of the first size; mirrored where `flip`: all in one gather.

    images: uint8 [B, H, W, 3]; vertical, horizontal: 0..1 [B], the place; flip: bool [B].
    """
    count, height, width, channels = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    places = 2 * padding + 1
    row = torch.arange(height, device=images.device) + (vertical * places).long().clamp(max=places - 1)[:, None]
    column = torch.arange(width, device=images.device).expand(count, width)
    if flip is not None:
        column = torch.where(flip[:, None], width - 1 - column, column)
    column = column + (horizontal * places).long().clamp(max=places - 1)[:, None]
    row = row + torch.arange(count, device=images.device)[:, None] * padded.shape[1]
    pixels = row[:, :, None] * padded.shape[2] + column[:, None, :]
    return padded.reshape(-1, channels).index_select(0, pixels.reshape(-1)).view(images.shape)


def resized_crop(images, vertical, horizontal, _, area, aspect, flip=None):
    """A random part of each image at the full size, bilinear; its area 8 to 100 %, its aspect 3/4 to 4/3.

    images: uint8 [B, H, W, 3]; the others: [B], in 0..1 or bool. Gives float [B, H, W, 3] in 0..255.
    """
    area = 0.08 + 0.92 * area
    aspect = torch.exp((2 * aspect - 1) * math.log(4 / 3))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    transform = torch.zeros(len(images), 2, 3, device=images.device)
    transform[:, 0, 0] = width if flip is None else torch.where(flip, -width, width)
    transform[:, 1, 1] = height
    transform[:, 0, 2] = (1 - width) * (2 * horizontal - 1)
    transform[:, 1, 2] = (1 - height) * (2 * vertical - 1)
    planes = images.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(transform, planes.shape, align_corners=False)
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)


class FileBatches(_Batches):
    """Of images in files, decoded by worker processes. Each image has a seed of its own, so that the number of
    processes changes nothing."""

    def __init__(self, *common_and_workers):
        *common, workers = common_and_workers
        super().__init__(*common)
        if workers is None:
            workers = min(cores(), 16)
        if sys.platform != "linux":  # a spawned process would run a script's main part again
            workers = 0
        self.keys = [None] * len(self.indices)  # of this epoch, in its order: (position, seed)
        self.loader = torch.utils.data.DataLoader(
            _Files(self.split, self.indices, self.augmentation),
            sampler=self.keys,
            batch_size=self.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # the loader's own draw leaves the global one alone
        )

    def __iter__(self):
        self.keys[:] = self._keys()
        try:
            for images, positions in self.loader:
                images = images.to(self.device, non_blocking=True)
                yield self._normalized(images), self.labels.index_select(0, positions.to(self.device))
        except UserError as error:  # one of a worker comes with the worker's traceback
            raise UserError(str(error).strip().rpartition("\n")[2].removeprefix("seam.files.UserError: ")) from None

    def _keys(self):
        order = self._order().tolist()
        if not self.augmentation:
            return [(position, 0) for position in order]
        seeds = torch.randint(2**62, (len(order),), **self._source()).tolist()
        return list(zip(order, seeds, strict=True))


class _Files(torch.utils.data.Dataset):
    """(position, seed) -> uint8 [H, W, 3] and the position."""

    def __init__(self, split, indices, augmentation):
        self.files, self.size = [split.files[index] for index in indices], split.size[0]
        self.transform = _transform(self.size, augmentation)
        self.whole = "resized-crop" in augmentation

    def __len__(self):
        return len(self.files)

    def __getitem__(self, key):
        position, seed = key
        if not self.transform:
            return np.array(read_image(self.files[position], self.size)), position
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            file = self.files[position]
            image = open_image(file) if self.whole else Image.fromarray(read_image(file, self.size))
            return np.array(self.transform(image)), position


def _transform(size, augmentation):
    """The augmentation of one Pillow image, None where there is none."""
    if not augmentation:
        return None
    from torchvision.transforms import v2

    steps = {
        "resized-crop": v2.RandomResizedCrop(size, antialias=True),
        "crop": v2.RandomCrop(size, padding=size // 8),
        "flip": v2.RandomHorizontalFlip(),
    }
    return v2.Compose([step for name, step in steps.items() if name in augmentation])

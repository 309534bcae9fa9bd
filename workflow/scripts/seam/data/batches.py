"""Batches of images, augmented as a whole on the device they are needed on.

>>> for images, labels in batches(data.train, indices, labels, 64, normalization=(mean, std)):   # doctest: +SKIP
...     loss = cross_entropy(model(images), labels)
"""

import itertools
import math
import sys

import numpy as np
import torch
from torch.nn import functional as F

from seam.data.decoding import cores, read_image, stored
from seam.data.storage import Split
from seam.errors import UserError

RESIDENT = 4 << 30  # bytes of images that are kept on the device; what is more is read batch by batch
AT_ONCE = 4 << 20  # bytes of batches that a GPU makes at once, where each launch of a kernel costs
UNSHUFFLED = 256  # images of a batch that is not for training, at least, on a GPU: it would be idle with fewer


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
    batch_size: in the order of the indices, without `shuffle`, it is 256 at least on a GPU;
    normalization: (mean, std), each of 3 values for images in 0..1;
    augmentation: any of "crop" (zero padding of an eighth of the size, then a random crop), "flip",
    "resized-crop" (a random part of 8 to 100 % of the stored image, resized);
    generator: the torch.Generator of every random choice (order, crop, flip): the same seed gives the same batches;
    workers: processes that decode images which are stored as files.

    Gives (images, labels): float32 [B, 3, H, W] in channels_last memory format and int64 [B]. The last
    batch may be smaller; a single image that would be left of a shuffled epoch, of which batch norm cannot be trained,
    joins the batch before it. Images in an array and images in files give the same batches, bit for bit.
    """
    if unknown := set(augmentation) - {"crop", "flip", "resized-crop"}:
        raise UserError(f"augmentation: {min(unknown)} is unknown: choose among crop, flip, resized-crop.")
    common = (split, indices, labels, batch_size, normalization, device, augmentation, generator, shuffle)
    return ArrayBatches(*common) if split.images is not None else FileBatches(*common, workers)


def load_image(path, size, normalization):
    """Return an image file as a model takes it: float32 [1, 3, size, size], prepared as the workflow's test images.

    size: of the model's data set, in pixels; normalization: the model's (mean, standard deviation) per channel. Raises
    UserError where the file is no image.
    """
    one = Split([0], (size, size), files=[str(path)])
    return next(iter(batches(one, [0], [0], 1, normalization=normalization, workers=0)))[0]


class _Batches:
    def __init__(self, split, indices, labels, batch_size, normalization, device, augmentation, generator, shuffle):
        self.split, self.indices = split, np.asarray(indices, np.int64)
        self.device = torch.device(device)
        self.batch_size = max(batch_size, UNSHUFFLED) if self.device.type == "cuda" and not shuffle else batch_size
        self.augmentation, self.generator, self.shuffle = frozenset(augmentation), generator, shuffle
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in normalization)
        self.scale = (1 / (255 * std)).float().to(self.device)
        self.shift = (-mean / std).float().to(self.device)
        self.labels = torch.as_tensor(np.asarray(labels, np.int64)).to(self.device)
        self.first, self.at_once = 0, 0
        if len(self.labels) != len(self.indices):
            raise ValueError(f"{len(self.indices)} images, but {len(self.labels)} labels")

    def starting_at(self, batch):
        """Let the next epoch, and only that, begin with its batch number `batch`; gives itself.

        The epoch's random numbers are drawn as always, so that what is left of it is equal bit for bit to the
        end of a whole epoch from the same state of the generator.
        """
        self.first = batch
        return self

    def __len__(self):
        return len(self._parts())

    def _parts(self):
        """The slices of an epoch's order that are its batches."""
        count = len(self.indices)
        starts = list(range(0, count, self.batch_size))
        if self.shuffle and len(starts) > 1 and starts[-1] == count - 1 and self.batch_size > 1:
            starts.pop()
        return [slice(start, end) for start, end in itertools.pairwise([*starts, count])]

    def __iter__(self):
        first, self.first = self.first, 0
        order = self._order()
        choices = self._choices(len(order))  # of the whole epoch at once: no step waits for the host
        rows = order.to(self.device)
        several = list(self._several(self._parts()[first:]))
        wholes = [slice(parts[0].start, parts[-1].stop) for parts in several]
        for parts, whole, images in zip(several, wholes, self._images(order, rows, wholes), strict=True):
            images = self._normalized(self._augmented(images, *(choice[whole] for choice in choices)))
            labels = self.labels.index_select(0, rows[whole])
            for part in parts:
                part = slice(part.start - whole.start, part.stop - whole.start)
                yield images[part], labels[part]

    def _several(self, parts):
        """Of the batches those that are made together."""
        one = 12 * self.batch_size * math.prod(self.split.size)
        count = max(1, self.at_once // one)
        for first in range(0, len(parts), count):
            yield parts[first : first + count]

    def _order(self):
        """The positions 0..N-1 in this epoch's order, on the CPU."""
        if not self.shuffle:
            return torch.arange(len(self.indices))
        return torch.randperm(len(self.indices), **self._source()).cpu()

    def _choices(self, count):
        """Random numbers in 0..1 for the vertical and horizontal place, the flip, the area and the aspect: 5 of [N]."""
        if not self.augmentation:
            return []
        return list(torch.rand(5, count, **self._source()).to(self.device))

    def _source(self):
        return {"generator": self.generator, "device": self.generator.device} if self.generator is not None else {}

    def _augmented(self, images, *choices):
        """uint8 [B, stored, stored, 3] -> uint8 or float [B, size, size, 3] in 0..255."""
        size = self.split.size[0]
        flip = choices[2] < 0.5 if "flip" in self.augmentation else None
        if "resized-crop" in self.augmentation:
            return resized_crop(images, *choices, flip, size)
        margin = (images.shape[1] - size) // 2
        images = images[:, margin : margin + size, margin : margin + size]
        if not choices:
            return images
        return crop(images, size // 8 if "crop" in self.augmentation else 0, choices[0], choices[1], flip)

    def _normalized(self, images):
        """uint8 or float [B, H, W, 3] in 0..255 -> float32 [B, 3, H, W], channels last in memory."""
        images = torch.addcmul(self.shift, images.float(), self.scale).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=torch.channels_last)  # a resized crop is not


class ArrayBatches(_Batches):
    """Of images in an array. They lie on the device, as uint8, if there is room for them."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        size = len(self.indices) * math.prod(self.split.images.shape[1:])
        fits = size <= _room(self.device)
        self.images = torch.from_numpy(self.split.images[self.indices]).to(self.device) if fits else None
        self.at_once = AT_ONCE if self.device.type == "cuda" else 0

    def _images(self, order, rows, parts):
        for part in parts:
            if self.images is None:
                yield self._read(self.indices[order[part].numpy()])
            else:
                yield self.images.index_select(0, rows[part])

    def _read(self, indices):
        images = torch.from_numpy(self.split.images[indices])
        if self.device.type == "cuda":
            return images.pin_memory().to(self.device, non_blocking=True)
        return images.to(self.device)


def _room(device):
    """Bytes of images that one loader may keep on the device."""
    if device.type == "cuda":
        return min(RESIDENT, torch.cuda.mem_get_info(device)[0] // 8)
    return RESIDENT // 4  # beyond that the memory-mapped file itself serves as well


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


def resized_crop(images, vertical, horizontal, _, area, aspect, flip=None, size=None):
    """A random part of each image, bilinear; its area 8 to 100 %, its aspect 3/4 to 4/3.

    images: uint8 [B, H, H, 3]; the others: [B], in 0..1 or bool; size: of the result, H by default.
    Gives float [B, size, size, 3] in 0..255.
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
    size = size or images.shape[1]
    grid = F.affine_grid(transform, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)


class FileBatches(_Batches):
    """Of images in files: worker processes only decode them, to the square that an array would hold."""

    def __init__(self, *common_and_workers):
        *common, workers = common_and_workers
        super().__init__(*common)
        if workers is None:
            workers = min(cores(), 16)
        if sys.platform != "linux":  # a spawned process would run a script's main part again
            workers = 0
        self.order = []  # the positions of this epoch, by batches
        self.loader = torch.utils.data.DataLoader(
            _Files(self.split, self.indices),
            batch_sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # the loader's own draw leaves the global one alone
        )

    def _images(self, order, rows, parts):
        self.order[:] = [order[part].tolist() for part in parts]
        try:
            for images in self.loader:
                yield images.to(self.device, non_blocking=True)
        except UserError as error:  # one of a worker comes with the worker's traceback
            raise UserError(str(error).strip().rpartition("\n")[2].removeprefix("seam.errors.UserError: ")) from None


class _Files(torch.utils.data.Dataset):
    """Position -> uint8 [stored, stored, 3]."""

    def __init__(self, split, indices):
        self.files, self.side = [split.files[index] for index in indices], stored(split.size[0])

    def __len__(self):
        return len(self.files)

    def __getitem__(self, position):
        return torch.from_numpy(read_image(self.files[position], self.side).copy())

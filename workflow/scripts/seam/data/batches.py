"""Mini-batches of images, augmented a whole mini-batch at a time on the device that needs them.

>>> for images, labels in batches(data.train, indices, labels, 64, normalization=(mean, std)):   # doctest: +SKIP
...     loss = cross_entropy(model(images), labels)
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from seam.data.decoding import count_cores, read_image, stored_size
from seam.data.storage import Split
from seam.errors import UserError
from seam.process import die_with_parent

WORKER_BYTES = 32 << 10  # of /dev/shm, for the semaphores of one worker
RESIDENT_BYTES = 4 << 30  # images up to this size stay on the device; more are read batch by batch
GROUP_BYTES = 4 << 20  # a GPU makes batches of this size in one go, because each kernel launch costs time
AUGMENTATIONS = ("crop", "flip", "resized-crop")
MIN_UNSHUFFLED = 256  # least batch size on a GPU without training, which would be idle with smaller batches


def batches(
    split: Split,
    indices: Sequence[int] | np.ndarray | range,
    labels: Sequence[int] | np.ndarray | range,
    batch_size: int,
    *,
    normalization: Sequence[Sequence[float]],
    device: str | torch.device = "cpu",
    augmentation: Iterable[str] = (),
    generator: torch.Generator | None = None,
    shuffle: bool = False,
    workers: int | None = None,
    enlarge: bool = True,
) -> Batches:
    """Return the mini-batches of the images `indices` of a split: an iterable with a length, new in each epoch.

    indices: integers [N] into the split; labels: their labels in the problem at hand [N];
    batch_size: without `shuffle`, it is at least 256 on a GPU;
    enlarge: if false, it is as given, as where gradients are computed;
    normalization: (mean, std), each of 3 values, for images in 0..1;
    augmentation: any of "crop" (zero padding of an eighth of the size, then a random crop), "flip",
    "resized-crop" (a random part of 8 to 100 % of the stored image, resized);
    generator: the source of every random choice (order, crop, flip): the same seed gives the same batches;
    workers: processes that decode images which are stored as files.

    Each batch is (images, labels): float32 [B, 3, H, W] in channels_last memory format, and int64 [B]. The last batch
    may be smaller. In a shuffled epoch, a last batch of one image joins the batch before it, because batch norm cannot
    be trained on one image. Images in an array and images in files give the same batches, bit for bit.

    Raises UserError if an augmentation is unknown.
    """
    if unknown := set(augmentation) - set(AUGMENTATIONS):
        raise UserError(f"augmentation: {min(unknown)} is unknown: choose among {', '.join(AUGMENTATIONS)}.")
    if enlarge and not shuffle and torch.device(device).type == "cuda":
        batch_size = max(batch_size, MIN_UNSHUFFLED)
    common = (split, indices, labels, batch_size, normalization, device, augmentation, generator, shuffle)
    return ArrayBatches(*common) if split.images is not None else FileBatches(*common, workers)


def load_image(path: str | os.PathLike[str], size: int, normalization: Sequence[Sequence[float]]) -> torch.Tensor:
    """Return an image file as a model takes it: float32 [1, 3, size, size], prepared like the workflow's test images.

    size: of the model's data set, in pixels; normalization: the model's (mean, standard deviation) per channel. Raises
    UserError if the file is not an image.
    """
    split = Split(np.zeros(1, np.int64), (size, size), files=[str(path)])
    return next(iter(batches(split, [0], [0], 1, normalization=normalization, workers=0)))[0]


class Batches:
    """The mini-batches of one epoch after the other. A subclass gives the images."""

    def __init__(
        self,
        split: Split,
        indices: Any,
        labels: Any,
        batch_size: int,
        normalization: Sequence[Sequence[float]],
        device: str | torch.device,
        augmentation: Iterable[str],
        generator: torch.Generator | None,
        shuffle: bool,
    ) -> None:
        self.split, self.indices = split, np.asarray(indices, np.int64)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.augmentation, self.generator, self.shuffle = frozenset(augmentation), generator, shuffle
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in normalization)
        self.scale = (1 / (255 * std)).float().to(self.device)
        self.shift = (-mean / std).float().to(self.device)
        self.labels = torch.as_tensor(np.asarray(labels, np.int64)).to(self.device)
        self.first = 0  # the number of the batch that the next epoch begins with
        self.group_bytes = 0  # batches up to this size are made in one go
        if len(self.labels) != len(self.indices):
            raise ValueError(f"{len(self.indices)} images, but {len(self.labels)} labels")

    def starting_at(self, batch: int) -> Batches:
        """Let the next epoch, and only that one, begin with its batch number `batch`. Returns self.

        All random numbers of the epoch are drawn as usual. So the remaining batches equal, bit for bit, the end of a
        complete epoch that starts with the same state of the generator.
        """
        self.first = batch
        return self

    def __len__(self) -> int:
        return len(self._slices())

    def _slices(self) -> list[slice]:
        """Return the slices of an epoch's order that are its batches."""
        count = len(self.indices)
        starts = list(range(0, count, self.batch_size))
        if self.shuffle and len(starts) > 1 and starts[-1] == count - 1 and self.batch_size > 1:
            starts.pop()
        return [slice(start, end) for start, end in itertools.pairwise([*starts, count])]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        first, self.first = self.first, 0
        order = self._order()
        choices = self._choices(len(order))  # for the whole epoch: no step waits for the CPU
        rows = order.to(self.device)
        groups = list(self._groups(self._slices()[first:]))
        spans = [slice(group[0].start, group[-1].stop) for group in groups]
        for group, span, images in zip(groups, spans, self._images(order, rows, spans), strict=True):
            images = self._normalized(self._augmented(images, *(choice[span] for choice in choices)))
            labels = self.labels.index_select(0, rows[span])
            for part in group:
                part = slice(part.start - span.start, part.stop - span.start)
                yield images[part], labels[part]

    def _groups(self, slices: list[slice]) -> Iterator[list[slice]]:
        """Yield the batches in groups that are made in one go."""
        batch_bytes = 12 * self.batch_size * math.prod(self.split.size)
        count = max(1, self.group_bytes // batch_bytes)
        for first in range(0, len(slices), count):
            yield slices[first : first + count]

    def _images(self, order: torch.Tensor, rows: torch.Tensor, spans: list[slice]) -> Iterator[torch.Tensor]:
        """Yield the stored images of each span of the order, uint8 [B, stored, stored, 3] on the device.

        rows: the order on the device.
        """
        raise NotImplementedError

    def _order(self) -> torch.Tensor:
        """Return the positions 0..N-1 in this epoch's order, on the CPU."""
        if not self.shuffle:
            return torch.arange(len(self.indices))
        return torch.randperm(len(self.indices), **self._source()).cpu()

    def _choices(self, count: int) -> list[torch.Tensor]:
        """Return random numbers in 0..1 for vertical and horizontal place, flip, area and aspect: 5 of [N]."""
        if not self.augmentation:
            return []
        return list(torch.rand(5, count, **self._source()).to(self.device))

    def _source(self) -> dict[str, Any]:
        return {"generator": self.generator, "device": self.generator.device} if self.generator is not None else {}

    def _augmented(self, images: torch.Tensor, *choices: torch.Tensor) -> torch.Tensor:
        """Return uint8 [B, stored, stored, 3] as uint8 or float [B, size, size, 3] in 0..255."""
        size = self.split.size[0]
        flip = choices[2] < 0.5 if "flip" in self.augmentation else None
        if "resized-crop" in self.augmentation:
            return resized_crop(images, *choices, flip=flip, size=size)
        margin = (images.shape[1] - size) // 2
        images = images[:, margin : margin + size, margin : margin + size]
        if not choices:
            return images
        return crop(images, size // 8 if "crop" in self.augmentation else 0, choices[0], choices[1], flip)

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        """Return uint8 or float [B, H, W, 3] in 0..255 as float32 [B, 3, H, W], channels last in memory."""
        images = torch.addcmul(self.shift, images.float(), self.scale).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=torch.channels_last)  # a resized crop is not yet


class ArrayBatches(Batches):
    """Batches of images in an array. The images stay on the device, as uint8, if there is room for them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        assert self.split.images is not None
        self.array = self.split.images
        fits = len(self.indices) * math.prod(self.array.shape[1:]) <= _room(self.device)
        self.resident = torch.from_numpy(self.array[self.indices]).to(self.device) if fits else None
        self.group_bytes = GROUP_BYTES if self.device.type == "cuda" else 0

    def _images(self, order: torch.Tensor, rows: torch.Tensor, spans: list[slice]) -> Iterator[torch.Tensor]:
        for span in spans:
            if self.resident is None:
                yield self._read(self.indices[order[span].numpy()])
            else:
                yield self.resident.index_select(0, rows[span])

    def _read(self, indices: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(self.array[indices])
        if self.device.type == "cuda":
            return images.pin_memory().to(self.device, non_blocking=True)
        return images.to(self.device)


def _room(device: torch.device) -> int:
    """Return how many bytes of images one ArrayBatches may keep on the device."""
    if device.type == "cuda":
        return min(RESIDENT_BYTES, torch.cuda.mem_get_info(device)[0] // 8)
    return RESIDENT_BYTES // 4  # beyond that, the memory-mapped file is as fast


def crop(
    images: torch.Tensor,
    padding: int,
    vertical: torch.Tensor,
    horizontal: torch.Tensor,
    flip: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return random crops, of the same size, of zero-padded images; mirrored where `flip`. It is a single gather.

    images: uint8 [B, H, W, 3]; vertical, horizontal: the place in 0..1, [B]; flip: bool [B].
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


def resized_crop(
    images: torch.Tensor,
    vertical: torch.Tensor,
    horizontal: torch.Tensor,
    _: torch.Tensor,
    area: torch.Tensor,
    aspect: torch.Tensor,
    flip: torch.Tensor | None = None,
    size: int | None = None,
) -> torch.Tensor:
    """Return a random part of each image, resized bilinearly; its area is 8 to 100 %, its aspect 3/4 to 4/3.

    images: uint8 [B, H, H, 3]; vertical, horizontal, area, aspect: in 0..1, [B]; flip: bool [B]; size: of the result,
    H by default. The result is float [B, size, size, 3] in 0..255.
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


class FileBatches(Batches):
    """Batches of images in files. Worker processes only decode them, to the square that an array would hold."""

    def __init__(self, *arguments: Any) -> None:
        *common, workers = arguments
        super().__init__(*common)
        if workers is None:
            workers = min(count_cores(), 16)
        if sys.platform != "linux":  # a spawned process would run a script's main part again
            workers = 0
        workers = min(workers, _most_workers())
        self.order: list[list[int]] = []  # the positions of this epoch, by batches
        self.loader = torch.utils.data.DataLoader(
            _StoredFiles(self.split, self.indices),
            batch_sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers else None,
            collate_fn=np.stack,  # arrays go through a pipe; tensors would need /dev/shm, which is small in containers
            worker_init_fn=die_with_parent,
            generator=torch.Generator(),  # so that the loader's own draw does not change the global generator
        )

    def _images(self, order: torch.Tensor, rows: torch.Tensor, spans: list[slice]) -> Iterator[torch.Tensor]:
        self.order[:] = [order[span].tolist() for span in spans]
        try:
            for stack in self.loader:
                images = torch.from_numpy(stack)
                if self.device.type == "cuda":
                    images = images.pin_memory()
                yield images.to(self.device, non_blocking=True)
        except UserError as error:  # a worker's error has the worker's traceback in its text
            raise UserError(str(error).strip().rpartition("\n")[2].removeprefix("seam.errors.UserError: ")) from None


def _most_workers() -> int:
    """Return for how many workers the queues' semaphores fit /dev/shm, which a container may have little of."""
    try:
        disk = os.statvfs("/dev/shm")
    except OSError:
        return sys.maxsize
    return disk.f_bavail * disk.f_frsize // WORKER_BYTES


class _StoredFiles(torch.utils.data.Dataset):
    """Maps a position to the stored image, uint8 [stored, stored, 3]."""

    def __init__(self, split: Split, indices: np.ndarray) -> None:
        assert split.files is not None
        self.files, self.side = [split.files[index] for index in indices], stored_size(split.size[0])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> np.ndarray:
        return read_image(self.files[position], self.side)

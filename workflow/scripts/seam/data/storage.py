"""Prepared data sets, as jobs open them: arrays or lists of files, and a manifest that describes them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seam.errors import UserError
from seam.files import read_json, sha256


@dataclass(frozen=True)
class Split:
    """The training or the test images of a data set, in an array or in files.

    labels: int64 [N].
    size: (height, width) of a batch's images in pixels.
    images: uint8 [N, S, S, 3] with S = `decoding.stored_size(size)` pixels, 256 for 224; None if `files` is given.
    files: N paths of images, which are decoded to the same shape at each use; None if `images` is given.
    """

    labels: np.ndarray
    size: tuple[int, int]
    images: np.ndarray | None = None
    files: list[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """An opened data set.

    mean, std: per channel, of the training images with values in 0..1; augmentation: the default for training.
    """

    kind: str
    classes: list[str]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: tuple[str, ...]
    train: Split
    test: Split


def open_dataset(folder: str | os.PathLike[str]) -> Dataset:
    """Return the data set that was prepared in `folder`; its images are memory-mapped.

    Raises UserError if it is missing or damaged: each file has the digest that the manifest records.
    """
    folder = Path(folder)
    manifest = read_json(folder / "dataset.json", sealed=True)
    try:
        height, width = manifest["size"]
        splits = {name: _open_split(folder, manifest, name, (int(height), int(width))) for name in ("train", "test")}
        mean, std = (tuple(map(float, manifest[name])) for name in ("mean", "std"))
        if (
            len(mean) != 3
            or len(std) != 3
            or not all(map(math.isfinite, mean))
            or not all(0 < x < math.inf for x in std)
        ):
            raise ValueError("its mean or standard deviation is not one of three channels")
        return Dataset(
            str(manifest["kind"]),
            [str(name) for name in manifest["classes"]],
            (int(height), int(width)),
            mean,
            std,
            tuple(map(str, manifest["augmentation"])),
            **splits,
        )
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"The data set in {folder} is damaged ({reason}): delete {folder / 'dataset.json'} and run again."
        ) from error


def _open_split(folder: Path, manifest: dict[str, Any], name: str, size: tuple[int, int]) -> Split:
    """Return a split of the data set. Raises ValueError and the like if its files are not those of the manifest."""
    arrays, digests = folder / "arrays", manifest["sha256"]
    # Mapped first: np.load would allocate whatever the file's header says.
    labels = np.array(np.load(checked(arrays / f"{name}_labels.npy", digests), mmap_mode="r"))
    classes = manifest["classes"]
    if len(labels) != sum(manifest["counts"][name].values()):
        raise ValueError("labels are missing")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError("labels are not positions in the list of classes")
    if manifest["storage"] == "arrays":
        images = np.load(checked(arrays / f"{name}_images.npy", digests), mmap_mode="r")
        if len(images) != len(labels):
            raise ValueError("images are missing")
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError("images are not of three channels with values of one byte")
        return Split(labels, size, images)
    lines = checked(arrays / f"{name}_files.jsonl", digests).read_text(encoding="utf-8").splitlines()
    return Split(labels, size, files=[json.loads(line) for line in lines])


def checked(path: Path, digests: Mapping[str, str]) -> Path:
    """Return `path`. Raises ValueError unless its content has the digest that `digests` gives for its name.

    A file is read once in a process, as long as its size, its dates and its inode stay.
    """
    status = path.stat()
    state = str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    if state not in _DIGESTS:
        if not path.is_file():
            raise ValueError(f"{path.name} is no file")
        _DIGESTS[state] = sha256(path)
    if _DIGESTS[state] != digests[path.name]:
        raise ValueError(f"{path.name} does not have its digest")
    return path


_DIGESTS: dict[tuple[str, int, int, int, int], str] = {}  # what `checked` has read

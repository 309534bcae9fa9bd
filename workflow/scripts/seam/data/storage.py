"""Prepared data sets, as jobs open them: arrays or lists of files, and a manifest that describes them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seam.errors import UserError
from seam.files import read_json


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

    Raises UserError if it is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_json(folder / "dataset.json")
    height, width = manifest["size"]
    splits = {}
    for name in ("train", "test"):
        try:
            labels = np.load(folder / "arrays" / f"{name}_labels.npy")
            if manifest["storage"] == "arrays":
                images = np.load(folder / "arrays" / f"{name}_images.npy", mmap_mode="r")
                splits[name] = Split(labels, (height, width), images)
            else:
                lines = (folder / "arrays" / f"{name}_files.jsonl").read_text(encoding="utf-8").splitlines()
                splits[name] = Split(labels, (height, width), files=[json.loads(line) for line in lines])
            if len(labels) != sum(manifest["counts"][name].values()):
                raise ValueError("labels are missing")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"The data set in {folder} is damaged ({error}): delete it and run again.") from error
    return Dataset(
        manifest["kind"],
        manifest["classes"],
        (height, width),
        tuple(manifest["mean"]),
        tuple(manifest["std"]),
        tuple(manifest["augmentation"]),
        **splits,
    )

"""Data sets as the workflow keeps them: arrays or lists of files, and a manifest that describes them."""

import errno
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from seam.errors import UserError
from seam.files import atomic_write, read_json, sha256, write_json, write_text


@dataclass(frozen=True)
class Split:
    """The training or the test images: either `images` or `files` is given.

    images: uint8 [N, S, S, 3], of S = `decoding.stored(size)` pixels: 256 for 224; files: N paths, decoded to that
    when they are asked for; labels: int64 [N]; size: (H, W) in pixels, of a batch's images.
    """

    labels: np.ndarray
    size: tuple
    images: np.ndarray | None = None
    files: list | None = None

    def __len__(self):
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """`mean` and `std` are per channel, of the training images in 0..1."""

    kind: str
    classes: list
    size: tuple
    mean: tuple
    std: tuple
    augmentation: tuple
    train: Split
    test: Split


def select_classes(images, labels, names, wanted):
    """The Split of those images whose class is in `wanted`; label i is then wanted[i].

    images: uint8 [N, H, W, 3]; labels: indices into `names`, [N].
    """
    position = np.full(len(names), -1, np.int64)
    position[[names.index(name) for name in wanted]] = np.arange(len(wanted))
    labels = position[np.asarray(labels)]
    kept = labels >= 0
    return Split(labels[kept], images.shape[1:3], images[kept])


def write_dataset(folder, splits, kind, classes, augmentation, normalization=None, decode=True, workers=None):
    """Write `splits` {"train": Split, "test": Split}; dataset.json comes last. Returns its content.

    decode: files of images become an array too.
    """
    folder = Path(folder)
    manifest, arrays = folder / "dataset.json", folder / "arrays"
    manifest.unlink(missing_ok=True)
    shutil.rmtree(arrays, ignore_errors=True)
    written = []
    for name, split in list(splits.items()):
        if split.images is not None:
            written.append(arrays / f"{name}_images.npy")
            save_array(written[-1], split.images)
        elif decode:
            written.append(arrays / f"{name}_images.npy")
            splits[name] = replace(split, images=decode_array(written[-1], split, workers))
        else:
            written.append(arrays / f"{name}_files.jsonl")
            write_text(written[-1], "".join(json.dumps(file) + "\n" for file in split.files))
        written.append(arrays / f"{name}_labels.npy")
        save_array(written[-1], split.labels.astype(np.int64))
    mean, std = normalization or statistics(splits["train"])
    content = {
        "kind": kind,
        "classes": classes,
        "size": list(splits["train"].size),
        "storage": "arrays" if splits["train"].images is not None else "files",
        "counts": {name: _counts(split.labels, classes) for name, split in splits.items()},
        "mean": list(mean),
        "std": list(std),
        "augmentation": augmentation,
        "sha256": {file.name: sha256(file) for file in written},
    }
    write_json(manifest, content)
    return content


def open_dataset(folder):
    """The Dataset in `folder`, its images memory-mapped. Raises UserError where part of it is missing."""
    folder = Path(folder)
    content = read_json(folder / "dataset.json")
    size = tuple(content["size"])
    splits = {}
    for name in ("train", "test"):
        try:
            labels = np.load(folder / "arrays" / f"{name}_labels.npy")
            if content["storage"] == "arrays":
                splits[name] = Split(labels, size, np.load(folder / "arrays" / f"{name}_images.npy", mmap_mode="r"))
            else:
                lines = (folder / "arrays" / f"{name}_files.jsonl").read_text(encoding="utf-8").splitlines()
                splits[name] = Split(labels, size, files=[json.loads(line) for line in lines])
            if len(labels) != sum(content["counts"][name].values()):
                raise ValueError("its labels are not all there")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"The data set in {folder} is damaged ({error}): delete it and run again.") from error
    return Dataset(
        content["kind"],
        content["classes"],
        size,
        tuple(content["mean"]),
        tuple(content["std"]),
        tuple(content["augmentation"]),
        **splits,
    )


def save_array(path, array):
    with atomic_write(path) as temporary, open(temporary, "w+b") as file:
        np.save(file, array)  # past a file that is "wb" it writes by itself, and does not say that the disk is full


def decode_array(path, split, workers=None):
    """Write the images of a split's files as an array; gives it memory-mapped."""
    from seam.data.decoding import read_images, stored

    side = stored(split.size[0])
    with atomic_write(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(split), side, side, 3))
        reserve(temporary)
        read_images(split.files, side, array, workers)
        array.flush()
    return np.load(path, mmap_mode="r")


def reserve(path):
    """Raises OSError where the disk is too small: a memory-mapped file that outgrows it would end the process."""
    if hasattr(os, "posix_fallocate"):
        try:
            with open(path, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as error:  # some network drives cannot reserve: they are written to as they are
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise


def decoded_bytes(splits):
    """What all images of `splits` take as arrays."""
    from seam.data.decoding import stored

    return sum(3 * len(split) * stored(split.size[0]) ** 2 for split in splits.values())


def free_bytes(folder):
    """What is free on the disk of `folder`, which need not exist yet."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def statistics(split, most=1000):
    """Mean and standard deviation per channel in 0..1: exact, but for large images of `most` of them, spread evenly."""
    from seam.data.decoding import LARGE, read_image, stored

    chosen = np.arange(0, len(split), max(1, len(split) // most) if split.size[0] >= LARGE else 1)
    counts = np.zeros((3, 256))
    for start in range(0, len(chosen), 200):
        part = chosen[start : start + 200]
        if split.images is None:
            images = np.stack([read_image(split.files[index], stored(split.size[0])) for index in part])
        else:
            images = split.images[part]
        counts += [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    share, value = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = share @ value
    std = np.sqrt(np.maximum(share @ value**2 - mean**2, 0))
    return mean.tolist(), np.maximum(std, 1 / 255).tolist()  # a channel of one single value: no division by zero


def _counts(labels, classes):
    return dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))

"""Preparation of data sets: write arrays or lists of files, statistics and the manifest that `storage` opens."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from seam.data.decoding import LARGE, count_cores, read_image, stored_size
from seam.data.storage import Split
from seam.errors import cannot_write
from seam.files import atomic_write, reserve, sha256, write_json, write_text
from seam.process import die_with_parent
from seam.progress import progress

CHUNK = 200  # images that a worker decodes in one call

Normalization = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation per channel, for images in 0..1


def select_classes(images: np.ndarray, labels: Any, names: list[str], wanted: list[str]) -> Split:
    """Return the Split of the images whose class is in `wanted`. Label i then stands for wanted[i].

    images: uint8 [N, H, W, 3]; labels: indices into `names`, [N].
    """
    position = np.full(len(names), -1, np.int64)
    position[[names.index(name) for name in wanted]] = np.arange(len(wanted))
    labels = position[np.asarray(labels)]
    selected = labels >= 0
    return Split(labels[selected], images.shape[1:3], images[selected])


def write_dataset(
    folder: str | os.PathLike[str],
    splits: Mapping[str, Split],
    kind: str,
    classes: list[str],
    augmentation: list[str],
    normalization: Normalization | None = None,
    decode: bool = True,
    workers: int | None = None,
    record: str | None = None,
) -> dict[str, Any]:
    """Write the splits "train" and "test" into `folder`. Returns the manifest.

    An error leaves the earlier data set as it was: the new arrays take the place of the earlier ones when all are
    complete. The manifest comes last.

    normalization: (mean, std), computed from the training images if None; decode: whether files of images become an
    array; workers: processes that decode, by default one for each core. record: the content of split.csv, which says
    how images were split here; without one the file is removed.
    """
    folder, splits = Path(folder), dict(splits)
    manifest, arrays, staging = folder / "dataset.json", folder / "arrays", folder / ".arrays.new"
    _remove(staging)  # left by a killed process
    try:
        written = _write_arrays(staging, splits, decode, workers)
        mean, std = normalization or channel_statistics(splits["train"])
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
        manifest.unlink(missing_ok=True)
        _remove(arrays)
        try:
            staging.rename(arrays)
        except OSError as error:
            raise cannot_write(arrays, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    (folder / "split.csv").unlink(missing_ok=True)
    if record:
        write_text(folder / "split.csv", record)
    write_json(manifest, content)
    return content


def _remove(folder: Path) -> None:
    """Remove a folder if it is there; of a link to one, the link alone: nothing is written or deleted elsewhere."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _write_arrays(folder: Path, splits: dict[str, Split], decode: bool, workers: int | None) -> list[Path]:
    """Write the images and labels of `splits` into `folder`, and return the files.

    The images of files that are decoded are in `splits` then.
    """
    written = []
    for name, split in splits.items():
        if split.images is not None:
            written.append(folder / f"{name}_images.npy")
            save_array(written[-1], split.images)
        elif decode:
            written.append(folder / f"{name}_images.npy")
            splits[name] = replace(split, images=decode_array(written[-1], split, workers))
        else:
            written.append(folder / f"{name}_files.jsonl")
            write_text(written[-1], "".join(json.dumps(file) + "\n" for file in split.files or ()))
        written.append(folder / f"{name}_labels.npy")
        save_array(written[-1], split.labels.astype(np.int64))
    return written


def save_array(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array as .npy, atomically."""
    # In mode "wb" NumPy writes past Python's file object and does not report a full disk.
    with atomic_write(path) as temporary, open(temporary, "w+b") as file:
        np.save(file, array)


def decode_array(path: str | os.PathLike[str], split: Split, workers: int | None = None) -> np.ndarray:
    """Decode the images of a split's files into an array at `path`, atomically. Returns it, memory-mapped."""
    side = stored_size(split.size[0])
    with atomic_write(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(split), side, side, 3))
        reserve(temporary)
        read_images(split.files or [], side, array, workers)
        array.flush()
    return np.load(path, mmap_mode="r")


def read_images(paths: list[str], side: int, into: np.ndarray, workers: int | None = None) -> None:
    """Decode all `paths` into the array `into`, uint8 [N, side, side, 3].

    workers: processes that decode, by default one for each core.
    """
    from tqdm import tqdm

    starts = range(0, len(paths), CHUNK)
    with (
        _pool(workers or count_cores()) as pool,
        tqdm(desc="images", total=len(paths), disable=progress.hides_bars or None) as bar,
    ):
        chunks = pool.map(_read_chunk, (paths[start : start + CHUNK] for start in starts), repeat(side))
        try:
            for start, images in zip(starts, chunks, strict=True):
                into[start : start + len(images)] = images
                bar.update(len(images))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # without waiting, Python 3.11 may print a traceback at its end
            raise


def _read_chunk(paths: list[str], side: int) -> np.ndarray:
    return np.stack([read_image(path, side) for path in paths])


def _pool(workers: int) -> Executor:
    """Return a pool of processes, twice as fast as threads on small files.

    It is of threads if forking is not safe, or if /dev/shm has no room for the semaphores of processes, as in some
    containers.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=die_with_parent)
    return ThreadPoolExecutor(workers)


def decoded_bytes(splits: Mapping[str, Split]) -> int:
    """Return the size in bytes of all images of `splits` as arrays."""
    return sum(3 * len(split) * stored_size(split.size[0]) ** 2 for split in splits.values())


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist yet."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def channel_statistics(split: Split, sample: int = 1000) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation per channel, with values in 0..1.

    Small images are all counted. Of large images, every n-th is, so that it is about `sample` images.
    """
    chosen = np.arange(0, len(split), max(1, len(split) // sample) if split.size[0] >= LARGE else 1)
    counts = np.zeros((3, 256))
    for start in range(0, len(chosen), CHUNK):
        chunk = chosen[start : start + CHUNK]
        if split.images is None:
            files, side = split.files or [], stored_size(split.size[0])
            images = np.stack([read_image(files[index], side) for index in chunk])
        else:
            images = split.images[chunk]
        counts += [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    share, value = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = share @ value
    std = np.sqrt(np.maximum(share @ value**2 - mean**2, 0))
    return mean.tolist(), np.maximum(std, 1 / 255).tolist()  # a channel may be constant: avoid division by zero


def _counts(labels: np.ndarray, classes: list[str]) -> dict[str, int]:
    return dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))

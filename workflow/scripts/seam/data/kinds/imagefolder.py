"""A folder of the user's own images: train/<class>/ and test/<class>/, sub-folders included."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from seam.data.kinds.kind import Entry, Kind
from seam.errors import UserError
from seam.log import log

if TYPE_CHECKING:
    from seam.data.storage import Split

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class ImageFolder(Kind):
    """The user's own images."""

    size = 32

    def class_names(self, entry: Entry) -> list[str]:
        if not entry.get("root"):
            raise UserError("root: it is missing: give the folder that holds train/ and test/.")
        return class_folders(entry["root"])

    def load(self, entry: Entry, wanted: list[str], cache: str) -> dict[str, Split]:
        return load_folders(entry["root"], wanted, entry.get("size") or self.size)


KIND = ImageFolder()


def class_folders(root: str | Path, train: str = "train", test: str = "test") -> list[str]:
    """Return the sorted names of the folders in root/train. Raises UserError unless root/test has the same ones."""
    names: dict[str, list[str]] = {}
    for split in (train, test):
        folder = Path(root) / split
        try:
            if not folder.is_dir():
                raise UserError(f"root: there is no folder {folder}: give the folder that holds {train}/ and {test}/.")
            with os.scandir(folder) as items:
                names[split] = sorted(item.name for item in items if not item.name.startswith(".") and item.is_dir())
        except OSError as error:
            _cannot_read(error)
        # The category of bytes that are not UTF-8 is Cs.
        if unprintable := [name for name in names[split] if {"Cc", "Cs"} & set(map(unicodedata.category, name))]:
            raise UserError(f"root: {folder} has a folder {unprintable[0]!a}, whose name cannot be printed: rename it.")
        if not names[split]:
            raise UserError(f"root: {folder} has no folders in it: put the images of each class into one of their own.")
    if single := sorted(set(names[train]) ^ set(names[test])):
        here, there = (train, test) if single[0] in names[train] else (test, train)
        raise UserError(
            f"root: {root} has {here}/{single[0]} but no {there}/{single[0]}: add the one or remove the other."
        )
    return names[train]


def load_folders(
    root: str | Path, wanted: list[str], size: int, train: str = "train", test: str = "test"
) -> dict[str, Split]:
    """Return the splits "train" and "test" of the images in root/train and root/test, sorted by class, then by name."""
    import numpy as np

    from seam.data.storage import Split

    splits = {}
    for split, folder in (("train", train), ("test", test)):
        classes = [image_files(Path(root) / folder / name) for name in wanted]
        labels = np.repeat(np.arange(len(wanted)), [len(files) for files in classes])
        splits[split] = Split(labels, (size, size), files=[file for files in classes for file in files])
    return splits


def image_files(folder: Path) -> list[str]:
    """Return the sorted paths of the images in `folder` and below. Raises UserError if there are none."""
    paths: list[str] = []
    skipped = 0
    ancestors = {str(folder): [os.path.realpath(folder)]}  # the real folders that lead to each place, and its own
    for place, folders, files in os.walk(str(folder), onerror=_cannot_read, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(place, name) for name in folders):
            real = os.path.realpath(path)
            if any(os.path.commonpath([real, ancestor]) == real for ancestor in ancestors[place]):
                raise UserError(f"root: {path} is a link back to a folder that it is in: remove the link.")
            ancestors[path] = [*ancestors[place], real]
        images = [name for name in files if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES]
        paths += [os.path.join(os.path.abspath(place), name) for name in images]
        skipped += len(files) - len(images)
    if skipped:
        log.info("%s: %d files that are not images are skipped", folder, skipped)
    if not paths:
        suffixes = " ".join(sorted(SUFFIXES))
        raise UserError(f"root: {folder} has no images in it ({suffixes}): add some or remove the folder.")
    return sorted(paths)


def _cannot_read(error: OSError) -> NoReturn:
    raise UserError(
        f"root: {error.filename} cannot be read ({error.strerror}): fix its permissions, or remove it."
    ) from error

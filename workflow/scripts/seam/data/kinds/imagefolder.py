"""A folder of images of one's own: train/<class>/ and test/<class>/, sub-folders included."""

import os
import unicodedata
from pathlib import Path

from seam.errors import UserError
from seam.log import log

SIZE = 32
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def names(entry):
    if not entry.get("root"):
        raise UserError("root: it is missing: give the folder that holds train/ and test/.")
    return class_folders(entry["root"])


def augmentation(size):
    return ["crop" if size < 128 else "resized-crop", "flip"]


def load(entry, wanted, cache):
    return load_folders(entry["root"], wanted, entry.get("size") or SIZE)


def class_folders(root, train="train", test="test"):
    """The sorted names of the folders in root/train; root/test must have the same."""
    found = {}
    for name in (train, test):
        folder = Path(root) / name
        try:
            if not folder.is_dir():
                raise UserError(f"root: there is no folder {folder}: give the folder that holds {train}/ and {test}/.")
            with os.scandir(folder) as items:
                found[name] = sorted(item.name for item in items if not item.name.startswith(".") and item.is_dir())
        except OSError as error:
            _cannot_be_read(error)
        # Bytes that are not UTF-8 are category Cs.
        if odd := [label for label in found[name] if {"Cc", "Cs"} & set(map(unicodedata.category, label))]:
            raise UserError(f"root: {folder} has a folder {odd[0]!a}, whose name cannot be printed: rename it.")
        if not found[name]:
            raise UserError(f"root: {folder} has no folders in it: put the images of each class into one of their own.")
    if odd := sorted(set(found[train]) ^ set(found[test])):
        here, there = (train, test) if odd[0] in found[train] else (test, train)
        raise UserError(f"root: {root} has {here}/{odd[0]} but no {there}/{odd[0]}: add the one or remove the other.")
    return found[train]


def load_folders(root, wanted, size, train="train", test="test"):
    """{"train": Split, "test": Split} of files, sorted by class, then by name; what is no image is left out."""
    import numpy as np

    from seam.data.storage import Split

    splits = {}
    for name, folder in (("train", train), ("test", test)):
        found = [image_files(Path(root) / folder / label) for label in wanted]
        labels = np.repeat(np.arange(len(wanted)), [len(files) for files in found])
        splits[name] = Split(labels, (size, size), files=[file for files in found for file in files])
    return splits


def image_files(folder):
    """Sorted paths of the images in `folder` and below. Raises UserError where there are none."""
    found, others = [], 0
    above = {str(folder): [os.path.realpath(folder)]}  # of each place, the real folders that lead to it and its own
    for place, folders, files in os.walk(str(folder), onerror=_cannot_be_read, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(place, name) for name in folders):
            real = os.path.realpath(path)
            if any(os.path.commonpath([real, other]) == real for other in above[place]):
                raise UserError(f"root: {path} is a link back to a folder that it is in: remove the link.")
            above[path] = [*above[place], real]
        images = [name for name in files if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES]
        found += [os.path.join(os.path.abspath(place), name) for name in images]
        others += len(files) - len(images)
    if others:
        log.info("%s: %d files that are no images are left out", folder, others)
    if not found:
        kinds = " ".join(sorted(SUFFIXES))
        raise UserError(f"root: {folder} has no images in it ({kinds}): add some or remove the folder.")
    return sorted(found)


def _cannot_be_read(error):
    raise UserError(
        f"root: {error.filename} cannot be read ({error.strerror}): mend its permissions, or remove it."
    ) from error

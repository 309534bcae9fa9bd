"""The user's own images: train/<class>/ and test/<class>/, a folder of classes, or a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from seam.data.kinds.kind import Entry, Kind
from seam.data.kinds.listing import (
    TEST_SHARE,
    Files,
    count_test_images,
    draw_test_images,
    is_line,
    is_table,
    read_table,
    table_splits,
    test_folder,
)
from seam.errors import UserError, printable
from seam.files import json_digest, sha256
from seam.log import log

if TYPE_CHECKING:
    from seam.data.storage import Split

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class ImageFolder(Kind):
    """The user's own images: root/train and root/test (or val), a folder of classes that is split, or a CSV file."""

    size = 32

    def class_names(self, entry: Entry) -> list[str]:
        root = entry.get("root")
        if not root:
            raise UserError("root: it is missing: give the folder that holds train/ and test/.")
        if is_table(root):
            train, test = table_splits(read_table(root), root)
            if single := sorted(set(train) ^ set(train if test is None else test)):
                raise UserError(f"root: {root} has images of {single[0]} in one split alone: add some to the other.")
            return sorted(train)
        folder = test_folder(root) if Path(root).is_dir() else "test"
        return folder_names(Path(root)) if folder is None else class_folders(root, "train", folder)

    def load(self, entry: Entry, wanted: list[str], cache: str) -> dict[str, Split]:
        root, size = entry["root"], entry.get("size") or self.size
        train, test = self._files(root, wanted)
        if test is not None:
            return {"train": _split(train, wanted, size), "test": _split(test, wanted, size)}
        images = _split(train, wanted, size)
        share, seed = entry.get("test_share", TEST_SHARE), entry.get("split_seed", 0)
        chosen = draw_test_images(images.labels.tolist(), wanted, share, seed)
        log.info("%d of %d images are drawn for testing, %g of each class", chosen.sum(), len(chosen), share)
        files = images.files or []
        return {
            name: replace(images, labels=images.labels[part], files=[files[place] for place in part.nonzero()[0]])
            for name, part in (("train", ~chosen), ("test", chosen))
        }

    def counts(self, entry: Entry, wanted: list[str]) -> dict[str, Mapping[str, int]]:
        """Return {"train": {class: images}, "test": ...}, without reading an image."""
        train, test = self._files(entry["root"], wanted)
        numbers = {name: len(train[name]) for name in wanted}
        if test is not None:
            return {"train": numbers, "test": {name: len(test[name]) for name in wanted}}
        share = entry.get("test_share", TEST_SHARE)
        drawn = {name: count_test_images(number, share) for name, number in numbers.items()}
        return {"train": {name: number - drawn[name] for name, number in numbers.items()}, "test": drawn}

    def record(self, entry: Entry, wanted: list[str], splits: dict[str, Split]) -> str | None:
        """Return the split that was drawn, as CSV; None if the data set came with its own."""
        if self._is_split(entry["root"]):
            return None
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label", "split"])
        for name, split in splits.items():
            for file, label in zip(split.files or (), split.labels, strict=True):
                writer.writerow([file, wanted[label], name])
        return text.getvalue()

    @staticmethod
    def _is_split(root: str) -> bool:
        return table_splits(read_table(root), root)[1] is not None if is_table(root) else test_folder(root) is not None

    @staticmethod
    def _files(root: str, wanted: list[str]) -> tuple[Files, Files | None]:
        """Return {class: paths} of the training images and of the test images, None if these are to be drawn."""
        if is_table(root):
            return table_splits(read_table(root), root)
        ignored: Counter[str] = Counter()
        train, *test = ({name: image_files(place / name, ignored) for name in wanted} for place in class_places(root))
        warn_of_ignored(root, ignored)
        return train, test[0] if test else None


KIND = ImageFolder()


def class_folders(root: str | Path, train: str = "train", test: str = "test") -> list[str]:
    """Return the sorted names of the folders in root/train. Raises UserError unless root/test has the same ones."""
    names: dict[str, list[str]] = {}
    for split in (train, test):
        folder = Path(root) / split
        try:
            if not folder.is_dir():
                raise UserError(
                    f"root: there is no folder {folder}: give the folder that holds {train}/ and {test}/, or one of "
                    "classes alone."
                )
        except OSError as error:
            _cannot_read(error)
        names[split] = folder_names(folder)
    if single := sorted(set(names[train]) ^ set(names[test])):
        present, other = (train, test) if single[0] in names[train] else (test, train)
        raise UserError(
            f"root: {root} has {present}/{single[0]} but no {other}/{single[0]}: add the one or remove the other."
        )
    return names[train]


def folder_names(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder. Raises UserError if there are none."""
    try:
        with os.scandir(folder) as items:
            names = sorted(item.name for item in items if not item.name.startswith(".") and item.is_dir())
    except OSError as error:
        _cannot_read(error)
    if unprintable := [name for name in names if not is_line(name)]:
        raise UserError(f"root: {folder} has a folder {unprintable[0]!a}, whose name cannot be printed: rename it.")
    if not names:
        raise UserError(f"root: {folder} has no folders in it: put the images of each class into one of their own.")
    return names


def load_folders(
    root: str | Path, wanted: list[str], size: int, train: str = "train", test: str = "test"
) -> dict[str, Split]:
    """Return the splits "train" and "test" of the images in root/train and root/test, sorted by class, then by name."""
    ignored: Counter[str] = Counter()
    splits = {
        split: _split({name: image_files(Path(root) / folder / name, ignored) for name in wanted}, wanted, size)
        for split, folder in (("train", train), ("test", test))
    }
    warn_of_ignored(root, ignored)
    return splits


def _split(files: Files, wanted: list[str], size: int) -> Split:
    import numpy as np

    from seam.data.storage import Split

    classes = [files[name] for name in wanted]
    labels = np.repeat(np.arange(len(wanted)), [len(paths) for paths in classes])
    return Split(labels, (size, size), files=[file for paths in classes for file in paths])


def class_places(root: str | Path) -> list[Path]:
    """Return the folders that hold the folders of the classes: those of both splits, or one that is to be split.

    There are none if the root is a CSV file.
    """
    if is_table(root):
        return []
    folder = test_folder(root)
    return [Path(root)] if folder is None else [Path(root) / "train", Path(root) / folder]


def unusable_classes(root: str, names: Sequence[str]) -> list[str]:
    """Return the classes that have no images in a split, or too few to be split."""
    if is_table(root):
        train, test = table_splits(read_table(root), root)
        return [name for name in names if test is None and len(train[name]) < 2]
    places = class_places(root)
    fewest = 2 if len(places) == 1 else 1
    return [
        name for name in names
        if any(len(list(islice(_walk(place / name, Counter()), fewest))) < fewest for place in places)
    ]  # fmt: skip


def image_files(folder: Path, ignored: Counter[str] | None = None) -> list[str]:
    """Return the sorted paths of the images in `folder` and below. Raises UserError if there are none.

    ignored: counts the endings of the other files.
    """
    paths = sorted(_walk(folder, Counter() if ignored is None else ignored))
    if not paths:
        suffixes = " ".join(sorted(SUFFIXES))
        raise UserError(f"root: {folder} has no images in it ({suffixes}): add some or remove the folder.")
    return paths


def listing_digest(root: str | Path) -> str:
    """Return a digest of the paths, sizes and dates of all images of a data set, and of its CSV file if it has one.

    Raises UserError if an image cannot be read.
    """
    if is_table(root):
        tables = read_table(root).values()
        paths = sorted(file for files in tables for listed in files.values() for file in listed)
        head = [sha256(root)]
    else:
        folders = (place / name for place in class_places(root) for name in folder_names(place))
        paths, head = sorted(file for folder in folders for file in _walk(folder, Counter())), []
    entries = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            _cannot_read(error)
        entries.append([path, status.st_size, status.st_mtime_ns])
    return json_digest({"files": [head, *entries]})


def warn_of_ignored(root: str | Path, ignored: Counter[str]) -> None:
    """Say how many files are no images by their endings, if there are any."""
    if ignored:
        endings = ", ".join(ending or "none" for ending, _ in ignored.most_common(5))
        count = ignored.total()
        words = "1 file is ignored for its ending" if count == 1 else f"{count} files are ignored for their endings"
        log.warning("%s", printable(f"{root}: {words} ({endings})"))


def _walk(folder: Path, ignored: Counter[str]) -> Iterator[str]:
    """Yield the paths of the images in `folder` and below. Adds the endings of other files to `ignored`."""
    ancestors = {str(folder): [os.path.realpath(folder)]}  # the real folders that lead to each place, and its own
    for place, folders, files in os.walk(str(folder), onerror=_cannot_read, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(place, name) for name in folders):
            real = os.path.realpath(path)
            if any(os.path.commonpath([real, ancestor]) == real for ancestor in ancestors[place]):
                raise UserError(f"root: {path} is a link back to a folder that it is in: remove the link.")
            ancestors[path] = [*ancestors[place], real]
        for name in files:
            ending = os.path.splitext(name)[1].lower()
            if ending in SUFFIXES and not name.startswith("."):
                path = os.path.join(os.path.abspath(place), name)
                if not path.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in path):
                    raise UserError(f"root: {path} has a name that is not in UTF-8: rename it.")
                yield path
            elif not name.startswith("."):
                ignored[ending] += 1


def _cannot_read(error: OSError) -> NoReturn:
    raise UserError(
        f"root: {error.filename} cannot be read ({error.strerror}): fix its permissions, or remove it."
    ) from error

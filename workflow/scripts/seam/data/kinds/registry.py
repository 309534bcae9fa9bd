"""The registry of kinds of data sets, and the functions that the config and the preparation of data call.

A data set is a config entry, `{"kind": ..., "root": ..., "size": ..., "classes": [...], ...}`. Everything that the
workflow must know before a job starts (`class_names`, `class_groups`, `why_unavailable`) needs no heavy package. One
job calls `prepare_dataset`, and every later one `seam.data.storage.open_dataset`.

>>> entry = {"kind": "digits", "classes": ["3", "8"]}
>>> class_names(entry)
['3', '8']
>>> prepare_dataset(entry, "results/datasets/digits")             # doctest: +SKIP
>>> open_dataset("results/datasets/digits").train.images.shape    # doctest: +SKIP
(285, 32, 32, 3)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.data.kinds import action40, cifar10, cifar100, cub200, digits, dog120, flower102, imagefolder, imagenet, mit67
from seam.data.kinds.groups import read_groups
from seam.data.kinds.kind import Entry, Kind
from seam.errors import UserError
from seam.log import log

if TYPE_CHECKING:
    from seam.data.storage import Split

KINDS: dict[str, Kind] = {
    "digits": digits.KIND,
    "cifar10": cifar10.KIND,
    "cifar100": cifar100.KIND,
    "imagefolder": imagefolder.KIND,
    "imagenet": imagenet.KIND,
    "mit67": mit67.KIND,
    "cub200": cub200.KIND,
    "flower102": flower102.KIND,
    "dog120": dog120.KIND,
    "action40": action40.KIND,
}
IMAGENET: Entry = {"kind": "imagenet", "root": None, "classes": None}  # its classes are known without its images
ARRAY_GB = 20.0  # the limit if an entry has no `array_gb`


def why_unavailable(entry: Entry) -> str | None:
    """Return one line that says why the data set, and everything that needs its images, is left out; else None."""
    return KINDS[entry["kind"]].why_unavailable(entry)


def class_names(entry: Entry) -> list[str]:
    """Return the class names in index order: all of the data set's, or the entry's `classes` in their order there.

    The names of published data sets are known without their images. Raises UserError if a class is unknown or listed
    twice.
    """
    names = KINDS[entry["kind"]].class_names(entry)
    wanted = entry.get("classes") or names
    if unknown := [name for name in wanted if name not in set(names)]:
        raise UserError(f"classes: {unknown[0]} is no class of this {entry['kind']}: choose among {_shorten(names)}.")
    if len(set(wanted)) < len(wanted):
        twice = next(name for name in wanted if wanted.count(name) > 1)
        raise UserError(f"classes: {twice} is listed twice: list each class once.")
    return list(wanted)


def class_groups(entry: Entry, cache: str = "data") -> dict[str, list[str]]:
    """Return the superclasses, {name: [class, ...]}, of two classes or more, all of them among `class_names(entry)`.

    They are the groups in the entry's file `groups`, with one line `name,class class ...` for each, or the data set's
    own. Raises UserError if there are neither.
    """
    kind = KINDS[entry["kind"]]
    available = set(class_names(entry))
    if entry.get("groups"):
        groups = read_groups(entry["groups"])
        names = set(kind.class_names(entry))
        for name, members in groups.items():
            if unknown := [member for member in members if member not in names]:
                raise UserError(
                    f"groups: {entry['groups']} puts {unknown[0]} into {name}, which is no class of the data set: "
                    "correct its name."
                )
    else:
        groups = kind.class_groups(entry, cache)
        if groups is None:
            raise UserError(f"{entry['kind']} has no superclasses of its own: name the groups of classes yourself.")
    return {name: members for name, members in groups.items() if len(members) > 1 and available.issuperset(members)}


def prepare_dataset(
    entry: Entry, folder: str | Path, cache: str | Path = "data", workers: int | None = None
) -> dict[str, Any]:
    """Make the data set in `folder`: arrays/ and, last, dataset.json. Returns the content of dataset.json.

    Large images become arrays, too, if all of them take at most the entry's `array_gb` gigabytes and the disk has
    room. Otherwise they stay files, which are decoded at each use. The entry's `storage` ("arrays" or "files")
    overrides this choice. Both give the same batches.

    cache: the folder that keeps downloads, in `cache`/<kind>; workers: processes that decode, by default one for each
    core.
    """
    from seam.data.preparation import write_dataset

    if reason := why_unavailable(entry):
        raise UserError(f"{reason}.")
    kind, wanted = KINDS[entry["kind"]], class_names(entry)
    splits = kind.load(entry, wanted, str(cache))
    size = splits["train"].size[0]
    return write_dataset(
        folder,
        splits,
        record=kind.record(entry, wanted, splits),
        decode=_decodes(entry, splits, folder),
        kind=entry["kind"],
        classes=wanted,
        augmentation=list(kind.augmentation(size) if entry.get("augmentation") is None else entry["augmentation"]),
        normalization=kind.normalization,
        workers=workers,
    )


def _decodes(entry: Entry, splits: dict[str, Split], folder: str | Path) -> bool:
    """Return whether images in files are to become arrays."""
    from seam.data.decoding import LARGE
    from seam.data.preparation import decoded_bytes, free_bytes

    if entry.get("storage") or splits["train"].images is not None or splits["train"].size[0] < LARGE:
        return entry.get("storage") != "files"
    needed, allowed = decoded_bytes(splits) / 1e9, entry.get("array_gb", ARRAY_GB)
    free = free_bytes(folder) / 1e9
    if needed > allowed:
        log.info("%.1f GB as arrays are more than array_gb allows (%g): the images stay files", needed, allowed)
    elif needed > 0.9 * free:
        log.info("%.1f GB as arrays are too much for the disk (%.1f GB free): the images stay files", needed, free)
    return needed <= min(allowed, 0.9 * free)


def _shorten(names: list[str], count: int = 10) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")

"""Data sets: one module for each kind, all with the same interface.

A data set is a config entry, `{"kind": ..., "root": ..., "size": ..., "classes": [...], ...}`. What the
workflow must know before any job starts (`classes`, `groups`, `available`) needs no heavy package; a
job calls `prepare` once, and every later one `open`. Batches for training come from `seam.data.batches`.

>>> entry = {"kind": "digits", "classes": ["3", "8"]}
>>> classes(entry)
['3', '8']
>>> prepare(entry, "results/datasets/eights")            # doctest: +SKIP
>>> open("results/datasets/eights").train.images.shape   # doctest: +SKIP
(285, 32, 32, 3)

A module of a kind has:
    SIZE                          its working size in pixels, unless the entry's `size` says another
    names(entry)                  all its class names, in index order; UserError where a given root lacks something
    missing(entry)                None, or one line that says what is not there (only if it can be missing)
    groups(entry, cache)          its predefined superclasses: {name: [class, ...]} (only if it has some)
    augmentation(size)            the default augmentation of training images at this size
    load(entry, wanted, cache)    {"train": Split, "test": Split} with the classes `wanted` alone
"""

from seam.data.kinds import action40, cifar10, cifar100, cub200, digits, dog120, flower102, imagefolder, imagenet, mit67
from seam.errors import UserError
from seam.log import log

KINDS = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagefolder": imagefolder,
    "imagenet": imagenet,
    "mit67": mit67,
    "cub200": cub200,
    "flower102": flower102,
    "dog120": dog120,
    "action40": action40,
}
ARRAY_GB = 20.0  # of an entry without `array_gb`


def why_unavailable(entry):
    """None, or one line that says why the data set, and what needs its images, is left out."""
    module = KINDS[entry["kind"]]
    return module.missing(entry) if hasattr(module, "missing") else None


def class_names(entry):
    """Class names in index order: all of the data set's, or the entry's own `classes` in the order given there.

    Those of published data sets are known without their images.
    """
    names = KINDS[entry["kind"]].names(entry)
    wanted = entry.get("classes") or names
    if unknown := [name for name in wanted if name not in set(names)]:
        raise UserError(f"classes: {unknown[0]} is no class of this {entry['kind']}: choose among {_some(names)}.")
    if len(set(wanted)) < len(wanted):
        twice = next(name for name in wanted if wanted.count(name) > 1)
        raise UserError(f"classes: {twice} is listed twice: list each class once.")
    return list(wanted)


def class_groups(entry, cache="data"):
    """The predefined superclasses, {name: [class, ...]}, of two classes or more, all of them among `classes(entry)`.

    They are the data set's own, or those of the entry's file `groups`, one a line: `name,class class ...`.
    """
    module = KINDS[entry["kind"]]
    known = set(class_names(entry))
    if entry.get("groups"):
        found = imagenet.read_groups(entry["groups"])
        names = set(module.names(entry))
        for name, members in found.items():
            if unknown := [member for member in members if member not in names]:
                raise UserError(
                    f"groups: {entry['groups']} puts {unknown[0]} into {name}, which is no class of the data set: "
                    "correct its name."
                )
    elif hasattr(module, "groups"):
        found = module.groups(entry, cache)
    else:
        raise UserError(f"{entry['kind']} has no superclasses of its own: name the groups of classes yourself.")
    return {name: members for name, members in found.items() if len(members) > 1 and known.issuperset(members)}


def prepare_dataset(entry, folder, cache="data", workers=None):
    """Make the data set in `folder`: arrays/ and, last, dataset.json. Downloads are kept in `cache`/<kind>/.

    Large images become arrays too if all of them take at most the entry's `array_gb` gigabytes and the disk has
    the room; else they stay files, decoded at each use. The entry's `storage` ("arrays" or "files") decides it
    otherwise. Both give the same batches.
    workers: processes that decode; by default one for each core.
    """
    from seam.data.storage import write_dataset

    if reason := why_unavailable(entry):
        raise UserError(f"{reason}.")
    module, wanted = KINDS[entry["kind"]], class_names(entry)
    splits = module.load(entry, wanted, cache)
    size = splits["train"].size[0]
    return write_dataset(
        folder,
        splits,
        decode=_decode(entry, splits, folder),
        kind=entry["kind"],
        classes=wanted,
        augmentation=list(module.augmentation(size) if entry.get("augmentation") is None else entry["augmentation"]),
        normalization=getattr(module, "NORMALIZATION", None),
        workers=workers,
    )


def _decode(entry, splits, folder):
    """Whether images in files are to become arrays."""
    from seam.data.decoding import LARGE
    from seam.data.storage import decoded_bytes, free_bytes

    if entry.get("storage") or splits["train"].images is not None or splits["train"].size[0] < LARGE:
        return entry.get("storage") != "files"
    needed, allowed = decoded_bytes(splits) / 1e9, entry.get("array_gb", ARRAY_GB)
    free = free_bytes(folder) / 1e9
    if needed > allowed:
        log.info("%.1f GB as arrays are more than array_gb allows (%g): the images stay files", needed, allowed)
    elif needed > 0.9 * free:
        log.info("%.1f GB as arrays are too much for the disk (%.1f GB free): the images stay files", needed, free)
    return needed <= min(allowed, 0.9 * free)


def _some(names, most=10):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

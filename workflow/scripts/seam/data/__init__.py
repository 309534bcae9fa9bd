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
    names(entry)                  all its class names, in index order; UserError where the data are missing
    groups(entry, cache)          its predefined superclasses: {name: [class, ...]} (only if it has some)
    augmentation(size)            the default augmentation of training images at this size
    load(entry, wanted, cache)    {"train": Split, "test": Split} with the classes `wanted` alone
"""

from seam.data import cifar10, cifar100, digits, imagefolder, imagenet
from seam.files import UserError

KINDS = {"digits": digits, "cifar10": cifar10, "cifar100": cifar100, "imagefolder": imagefolder, "imagenet": imagenet}


def available(entry):
    """None, or one line that says why the data set, and what needs it, is left out."""
    if entry["kind"] == "imagenet" and not entry.get("root"):
        return "imagenet: its root is not given in the config, so what needs it is left out"
    return None


def classes(entry):
    """Class names in index order: all of the data set's, or the entry's own `classes` in the order given there."""
    if reason := available(entry):
        raise UserError(f"{reason}: give the folder of your copy as its root.")
    names = KINDS[entry["kind"]].names(entry)
    wanted = entry.get("classes") or names
    if unknown := [name for name in wanted if name not in set(names)]:
        raise UserError(f"classes: {unknown[0]} is no class of this {entry['kind']}: choose among {_some(names)}.")
    if len(set(wanted)) < len(wanted):
        twice = next(name for name in wanted if wanted.count(name) > 1)
        raise UserError(f"classes: {twice} is listed twice: list each class once.")
    return list(wanted)


def groups(entry, cache="data"):
    """The predefined superclasses, {name: [class, ...]}, of two classes or more, all of them among `classes(entry)`.

    They are the data set's own, or those of the entry's file `groups`, one a line: `name,class class ...`.
    """
    module = KINDS[entry["kind"]]
    known = set(classes(entry))
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


def prepare(entry, folder, cache="data", workers=None):
    """Make the data set in `folder`: arrays/ and, last, dataset.json. Downloads are kept in `cache`/<kind>/.

    Images of 128 px or more stay files, decoded at each use, unless the entry's `storage` is "arrays".
    workers: processes that decode; by default one for each core.
    """
    from seam.data import storage

    module, wanted = KINDS[entry["kind"]], classes(entry)
    splits = module.load(entry, wanted, cache)
    own = getattr(module, "GROUPS", {})
    size = splits["train"].size[0]
    return storage.write(
        folder,
        splits,
        decode=entry.get("storage", "arrays" if size < 128 else "files") == "arrays",
        kind=entry["kind"],
        classes=wanted,
        groups={name: members for name, members in own.items() if set(members) <= set(wanted)},
        augmentation=list(module.augmentation(size) if entry.get("augmentation") is None else entry["augmentation"]),
        normalization=getattr(module, "NORMALIZATION", None),
        workers=workers,
    )


def open(folder):
    """The data set that `prepare` made in `folder`: see `seam.data.storage.Dataset`."""
    from seam.data import storage

    return storage.read(folder)


def _some(names, most=10):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

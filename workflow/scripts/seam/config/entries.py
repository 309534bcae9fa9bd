"""The entries of direct and indirect reuse: their targets, their folders and the data sets that they lack."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from seam.config.wording import require_known_names, shown
from seam.data.kinds.registry import class_groups, why_unavailable
from seam.errors import UserError

REST = "rest"  # as in seam.data.problems, which imports numpy
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
LONGEST = 100  # characters: logs and staging folders have longer names, and file systems allow 255
REPEATED = re.compile(r"(?P<value>.+)(?P=value){19}$")  # Snakemake takes such a name for an endless loop of rules


def direct_entries(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return [(key, entry)] of `direct_reuse`, the key as error sentences write it."""
    return [(f"direct_reuse[{place}]", entry) for place, entry in enumerate(config["direct_reuse"])]


def indirect_entries(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return [(key, entry)] of `indirect_reuse`, the key as error sentences write it."""
    return [(f"indirect_reuse[{place}]", entry) for place, entry in enumerate(config["indirect_reuse"])]


def folder_name(name: str) -> str:
    """Return the name of a target's result folder: its own name, with `_` for spaces and other special characters.

    >>> folder_name("aquarium_fish"), folder_name("golden retriever"), folder_name("crème brûlée (hot)")
    ('aquarium_fish', 'golden_retriever', 'creme_brulee_hot')

    A name with neither a letter from a to z nor a digit, such as one in another script, becomes a part of its digest.
    So does the end of a name of more than 100 characters, or of one that repeats something 20 times.
    """
    folder = name
    if not FOLDER_NAME.fullmatch(name):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        folder = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")
    if folder and len(folder) <= LONGEST and not REPEATED.search(folder):
        return folder
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest()[:8]
    return f"{folder[: LONGEST // 2] or 'class'}-{digest}"


def targets_of(
    key: str, entry: dict[str, Any], dataset: dict[str, Any], classes: Sequence[str] | None
) -> Mapping[str, Sequence[str]]:
    """Return {target: its classes} of an entry of `direct_reuse`.

    key: the entry's, for error sentences. classes: the data set's class names; None if its data are not given. Then
    only the shape of `targets` is checked. Raises UserError for targets of the wrong shape and for unknown names.
    """
    key, problem, targets = f"{key}.targets", entry["problem"], entry["targets"]
    class_of_dataset = f"a class of the model's data set ({dataset['kind']})"
    if problem == "binary":
        if targets != "all" and not isinstance(targets, list):
            raise UserError(f"{key} is {shown(targets)}, but problem: binary takes all or a list of class names.")
        names = classes or [] if targets == "all" else targets
        require_known_names(key, names, classes, class_of_dataset)
        single = {name: [name] for name in names}
        _require_rest(key, problem, single, classes)
        return single
    if isinstance(targets, dict):
        for name, members in targets.items():
            require_known_names(f"{key}.{name}", members, classes, class_of_dataset)
        _require_rest(key, problem, targets, classes)
        return targets
    if targets == "all":
        raise UserError(
            f"{key} is 'all', but problem: {problem} takes superclasses or groups by name, as in {{pets: [cat, dog]}}."
        )
    if classes is None:
        return {}
    try:
        groups = class_groups(dataset)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if not groups:
        raise UserError(f"{key} is {shown(targets)}, but no superclass lies wholly within the data set's classes.")
    names = list(groups) if targets == "superclasses" else targets
    require_known_names(key, names, groups, f"a superclass of {dataset['kind']}")
    chosen = {name: groups[name] for name in names}
    _require_rest(key, problem, chosen, classes)
    return chosen


def _require_rest(key: str, problem: str, targets: Mapping[str, Sequence[str]], classes: Sequence[str] | None) -> None:
    """Raise UserError if a problem against the rest has no rest, or if a target's name is that of the rest."""
    if problem == "multiclass":
        return
    for name, members in targets.items():
        if classes is not None and not set(classes) - set(members):
            raise UserError(
                f"{key}.{name} has all classes of the data set, but problem: {problem} needs a rest: take a class out, "
                "or set problem: multiclass."
            )
        if REST in ([name] if problem in ("binary", "group") else members):
            raise UserError(
                f"{key} names {shown(REST)}, the name of the output for all other classes: give the class or group "
                "another name."
            )


def missing_datasets(config: dict[str, Any], entry: dict[str, Any], target: str) -> list[str]:
    """Return the data sets that an entry of `indirect_reuse` needs for students on `target`, but that are not given.

    A source model needs its own data set only if it is trained in this run: published weights bring all else.
    """
    model = config["models"][entry["model"]]
    needed = [target] + ([model["dataset"]] if model["weights"] == "train" else [])
    return [name for name in dict.fromkeys(needed) if why_unavailable(config["datasets"][name])]

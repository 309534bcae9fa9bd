"""The entries of direct and indirect reuse: their targets, and the data sets that they lack."""

import re
import unicodedata

from seam.config.wording import require_known_names, shown
from seam.data.kinds.registry import class_groups, why_unavailable
from seam.errors import UserError

FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def folder_name(name):
    """The folder of a target's results: its name, with `_` for spaces and what else is trouble in a folder's name.

    >>> folder_name("aquarium_fish"), folder_name("golden retriever"), folder_name("crème brûlée (hot)")
    ('aquarium_fish', 'golden_retriever', 'creme_brulee_hot')

    Empty if the name has neither a letter from a to z nor a digit.
    """
    if FOLDER_NAME.fullmatch(name):
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")


def targets_of(where, entry, dataset, classes):
    """{name: its classes} of an entry's targets. Without the data (`classes` None) only the shapes are checked."""
    key, problem, targets = f"{where}.targets", entry["problem"], entry["targets"]
    if problem == "binary":
        if targets != "all" and not isinstance(targets, list):
            raise UserError(f"{key} is {shown(targets)}, but problem: binary takes all or a list of class names.")
        names = classes or [] if targets == "all" else targets
        require_known_names(key, names, classes, f"a class of the model's data set ({dataset['kind']})")
        return {name: [name] for name in names}
    if isinstance(targets, dict):
        for name, members in targets.items():
            require_known_names(
                f"{key}.{name}", members, classes, f"a class of the model's data set ({dataset['kind']})"
            )
        return targets
    if targets == "all":
        raise UserError(
            f"{key} is 'all', but problem: multiclass takes superclasses or groups by name, as in {{pets: [cat, dog]}}."
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
    require_known_names(key, names, list(groups), f"a superclass of {dataset['kind']}")
    return {name: groups[name] for name in names}


def missing_datasets(config, entry, target):
    """The names of the data sets that students on `target` of an entry of `indirect_reuse` lack."""
    model = config["models"][entry["model"]]
    needed = [target] + ([model["dataset"]] if model["weights"] == "train" else [])
    return [name for name in dict.fromkeys(needed) if why_unavailable(config["datasets"][name])]


def indirect_entries(config):
    return [(f"indirect_reuse[{i}]", entry) for i, entry in enumerate(config["indirect_reuse"])]


def direct_entries(config):
    return [(f"direct_reuse[{i}]", entry) for i, entry in enumerate(config["direct_reuse"])]

"""Check the entries of `datasets`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from seam.config.wording import require_known_names, shown
from seam.data.kinds.listing import is_table
from seam.data.kinds.registry import class_groups, class_names, why_unavailable
from seam.errors import UserError


def check_dataset(key: str, entry: dict[str, Any]) -> Sequence[str] | None:
    """Return the class names of a data set, or None if its data are not given.

    The names that `classes` lists are checked even then, if the kind of data set has names of its own.
    Raises UserError if a file or folder is missing, or if a class is not one of the data set's.
    """
    is_list = entry["kind"] == "imagefolder" and is_table(entry.get("root") or "")
    if is_list and not os.path.isfile(entry["root"]):
        raise UserError(f"{key}.root is {shown(entry['root'])}, but there is no such file.")
    if entry.get("root") is not None and not is_list and not os.path.isdir(entry["root"]):
        raise UserError(f"{key}.root is {shown(entry['root'])}, but there is no such folder.")
    if entry.get("download") and entry["root"] is not None:
        raise UserError(f"{key}.download is true, but root is given, too: drop one of the two.")
    if entry.get("groups") is not None and not os.path.isfile(entry["groups"]):
        raise UserError(f"{key}.groups is {shown(entry['groups'])}, but there is no such file.")
    all_classes = {**entry, "classes": None}
    try:
        known = class_names(all_classes)
        if entry.get("groups") is not None:
            class_groups(all_classes)
    except UserError as error:  # its sentence begins with the key
        raise UserError(f"{key}.{error}") from error
    except OSError as error:
        raise UserError(f"{key}: {error.filename} cannot be read ({error.strerror}): fix its permissions.") from error
    require_known_names(f"{key}.classes", entry["classes"] or [], known, f"a class of {entry['kind']}")
    names = entry["classes"] or known
    if len(names) < 2:
        raise UserError(f"{key} has only the class {names[0]}, but a target problem needs at least two.")
    return None if why_unavailable(entry) else names


def check_image_size(beginning: str, model: dict[str, Any], name: str, dataset: dict[str, Any]) -> None:
    """Raise UserError if the images of the data set `name` do not fit the model's architecture.

    The sentence begins with `beginning`, which names the key of the model.
    """
    if model["architecture"] == "vgg16_bn" and not 32 <= dataset.get("size", 32) < 64:
        raise UserError(
            f"{beginning} 'vgg16_bn', which takes images of 32 px, but datasets.{name}.size is {dataset['size']}."
        )

"""The names of a model's outputs, and their match with the classes of a data set."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seam.errors import UserError, cannot_read
from seam.files import open_file
from seam.models.weights import MOST_OUTPUTS

KEYS = ("classes", "class_names", "categories", "labels", "idx_to_class", "id2label", "class_to_idx", "label2id")
MOST_BYTES = 10_000_000  # of a file of names


def normalised_name(name: str) -> str:
    """Return a class name as it is compared: without case, accents as one character, `_` and `-` as spaces.

    >>> normalised_name("Golden_Retriever") == normalised_name("golden retriever")
    True
    """
    return " ".join(re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).split())


def match_classes(outputs: Sequence[Sequence[str]], wanted: Sequence[str], owner: str) -> list[str]:
    """Return a name for each output of a model: that of the class in `wanted` that it stands for, else its own.

    outputs: for each output its names: `["tabby", "n02123045"]`. Names that are equal win over those that only look
    alike (`normalised_name`). owner: what has the names, for the sentence of an error. Raises UserError if a wanted
    class has no output or several.
    """
    exact, alike = _index(outputs, str), _index(outputs, normalised_name)
    names = [alternatives[0] for alternatives in outputs]
    taken: dict[int, str] = {}
    for name in wanted:
        places = exact.get(name) or alike.get(normalised_name(name), [])
        if not places:
            known = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise UserError(
                f"{owner} know no class {name}, but {known}: rename the folder of its images, leave the class out of "
                "the data set, or correct the classes of the model."
            )
        if len(places) > 1:
            others = " or ".join("/".join(outputs[place]) for place in places[:3])
            raise UserError(f"{owner} have more than one class {name} ({others}): name the folder by the other name.")
        if places[0] in taken:
            raise UserError(f"The classes {taken[places[0]]} and {name} are the same for {owner}: join their images.")
        taken[places[0]] = name
    wanted_names = set(taken.values())
    for place, name in enumerate(names):  # another output may already have the name of a wanted class
        names[place] = taken.get(place, name if name not in wanted_names else f"{name} (output {place})")
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    return [name if first[name] == place else f"{name} (output {place})" for place, name in enumerate(names)]


def known_names(outputs: Sequence[Sequence[str]], wanted: Sequence[str]) -> list[str]:
    """Return those of the names `wanted` that an output of a model has; the arguments are those of `match_classes`."""
    exact, alike = _index(outputs, str), _index(outputs, normalised_name)
    return [name for name in wanted if name in exact or normalised_name(name) in alike]


def _index(outputs: Sequence[Sequence[str]], form: Any) -> dict[str, list[int]]:
    index: dict[str, list[int]] = {}
    for place, names in enumerate(outputs):
        for name in dict.fromkeys(map(form, names)):
            index.setdefault(name, []).append(place)
    return index


def read_class_file(path: str | os.PathLike[str]) -> list[str]:
    """Return the class names in a file, in the order of the model's outputs: a name a line, or JSON.

    JSON is a list of names, {"0": name, ...} or {name: 0, ...}. Raises UserError for any other content.
    """
    try:
        with open_file(path) as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"{path} is too large for a file of class names: give one with a name a line.")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8: save the class names with that encoding.") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    if Path(path).suffix == ".json":
        try:
            names = names_in(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not a JSON file ({error}): correct it.") from error
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path} has no list of different class names: write one a line, in the order of the outputs.")
    return names


def names_in(value: Any) -> list[str] | None:
    """Return the names that a value lists: [name, ...], {0: name, ...}, {"0": name, ...} or {name: 0, ...}."""
    if isinstance(value, (list, tuple, Mapping)) and len(value) > MOST_OUTPUTS:
        return None
    if isinstance(value, (list, tuple)):
        return list(value) if value and all(isinstance(name, str) for name in value) else None
    if not isinstance(value, Mapping) or not value:
        return None
    pairs = [(key, name) if isinstance(name, str) else (name, key) for key, name in value.items()]
    try:
        numbered = {int(number): name for number, name in pairs if isinstance(name, str)}
    except (TypeError, ValueError, OverflowError):
        return None
    return [numbered[place] for place in range(len(pairs))] if numbered.keys() == set(range(len(pairs))) else None


def find_names(content: Any) -> list[str] | None:
    """Return the names of a model's outputs that a checkpoint has beside its weights; None if it has none."""
    waiting = [content]
    for _ in range(200):  # dictionaries, the outer ones first
        if not waiting:
            return None
        value = waiting.pop(0)
        if not isinstance(value, Mapping):
            continue
        for key in KEYS:
            names = names_in(value.get(key))
            if names:
                return names
        waiting += [inner for inner in value.values() if isinstance(inner, Mapping)]
    return None

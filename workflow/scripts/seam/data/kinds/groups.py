"""Files that define groups of classes."""

from __future__ import annotations

from pathlib import Path

from seam.errors import UserError
from seam.files import open_file


def read_groups(path: str | Path) -> dict[str, list[str]]:
    """Return {group: [class, ...]} of a file with one line `group,class class ...` for each group.

    Raises UserError if the file cannot be read or is not of this form.
    """
    try:
        with open_file(path) as file:
            lines = file.read().decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"groups: {path} cannot be read ({error}): give a file of `group,class class ...`.") from error
    groups: dict[str, list[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        title, _, members = line.partition(",")
        name = group_name(title)
        if not name or not members.split() or "," in members:
            raise UserError(f"groups: line {number} of {path} is not like `group,class class ...`: correct it.")
        if name in groups:
            raise UserError(f"groups: line {number} of {path} names {name} again: give each group one line.")
        groups[name] = members.split()
    if not groups:
        raise UserError(f"groups: {path} has no groups in it: give lines like `group,class class ...`.")
    return groups


def group_name(title: str) -> str:
    """Return a group's title as file names and wildcards can have it: with _ instead of spaces."""
    return "_".join(title.split())

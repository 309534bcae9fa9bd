"""Check where a run takes place, before its first job starts."""

from __future__ import annotations

import os
from pathlib import Path

from seam.errors import UserError


def check_places(python: str, clone: Path, working_folder: Path) -> None:
    """Raise UserError if Snakemake cannot start jobs with this Python, clone or working folder."""
    if " " in python:
        raise UserError(
            f"Snakemake cannot start jobs with {python}, which has a space in its path: "
            "put the environment (or the clone that it lies in) elsewhere."
        )
    for folder in (working_folder, clone):
        if set("{}") & set(str(folder)):
            raise UserError(f"{folder} has a brace in its path, a wildcard to Snakemake: rename it.")
    for folder in (working_folder, working_folder / "results"):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is neither a folder nor a link to one: remove it.")
        if folder.exists() and not os.access(folder, os.W_OK):
            raise UserError(f"Cannot write in {folder}: fix its permissions, or name another folder with --directory.")

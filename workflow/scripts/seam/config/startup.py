"""Check where a run takes place, before its first job starts."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from seam.errors import UserError


def use_writable_cache() -> None:
    """Name another folder for caches if the home folder cannot have them, as in containers and on some clusters.

    Snakemake, matplotlib and the jobs take it from the environment.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    place = Path(home)
    existing = next((folder for folder in (place, *place.parents) if os.path.lexists(folder)), place)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return
    with contextlib.suppress(OSError):
        folder = Path(tempfile.gettempdir(), f"seam-{os.getuid()}-cache")
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # of somebody else
            folder = Path(tempfile.mkdtemp(prefix="seam-cache-"))
        os.environ["XDG_CACHE_HOME"] = str(folder)
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))


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
    direct = working_folder / "results" / "direct"
    if direct.is_symlink():  # its models name their source models, in results/models, by relative paths
        raise UserError(f"{direct} is a link: link the whole folder results instead.")
    for folder in (working_folder, working_folder / "results"):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is neither a folder nor a link to one: remove it.")
        if folder.exists() and not os.access(folder, os.W_OK):
            raise UserError(f"Cannot write in {folder}: fix its permissions, or name another folder with --directory.")

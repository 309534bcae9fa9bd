"""The folders that a command writes, checked before any work."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from seam.errors import UserError


def own_folder(out: Path) -> Path:
    """Return the folder to deliver into, which has a name.

    Raises UserError if it cannot be written, or if it holds something else than a delivered model.
    """
    from seam.delivery.replacing import STAGING
    from seam.reuse.cards import WEIGHTS

    if out.name in ("", ".."):
        out = out.resolve()
    require_writable("--out", out)
    if out.is_dir() and any(path.name != STAGING for path in out.iterdir()) and not (out / WEIGHTS).is_file():
        raise UserError(f"{out} holds other files: name a new folder by --out.")
    return out


def require_outside(folders: Mapping[str, Path], data: str) -> None:
    """Raise UserError if a folder {option: path} lies among the folders of the classes, and would be taken for one."""
    from seam.data.kinds.imagefolder import class_places

    for option, folder in folders.items():
        for place in map(Path.resolve, class_places(data)):
            if place in folder.resolve().parents:
                raise UserError(f"{option} is {folder}, which lies among the folders of the images: name another one.")


def work_folder(work: Path, out: Path) -> Path:
    """Return the working folder. Raises UserError if it cannot be written, or lies in `out`, which is to be shipped."""
    require_writable("--work", work)
    if out.resolve() in (work.resolve(), *work.resolve().parents):
        raise UserError(f"--work is {work}, which lies in the folder to ship, {out}: name another one.")
    return work


def require_writable(option: str, folder: Path) -> None:
    """Raise UserError unless the folder that the option names can be made and written. Leaves nothing there."""
    created: list[Path] = []
    try:
        for place in (*reversed(folder.parents), folder):
            if not place.exists():
                place.mkdir()
                created.append(place)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{option} is {folder}, a folder that cannot be written ({reason}): name another one."
        ) from error
    finally:
        for place in reversed(created):
            with contextlib.suppress(OSError):
                place.rmdir()

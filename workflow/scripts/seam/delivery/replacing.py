"""How a delivered folder takes the place of an earlier one: no model is lost, and none is half-written."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from seam.errors import UserError, cannot_write
from seam.files import sha256
from seam.log import log
from seam.reuse.cards import CARD, WEIGHTS

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

STAGING = ".new"  # the folder in a delivered folder where the next delivery is written


@contextlib.contextmanager
def replaced(out: Path, models: Sequence[str], others: Sequence[str]) -> Iterator[Path]:
    """Yield the folder to write a delivery into; at the end, its files go to `out`, the card last.

    models, others: the names of files that a delivery can have. If a file of `models` is in `out`, but is not in the
    new delivery with the same content, all that is in `out` moves to `free_folder(out)` before. `others` in `out` are
    removed. An error in the block leaves `out` as it was. Raises UserError if a file cannot be written, or if another
    process writes into `out`.
    """
    staging = out / STAGING
    try:
        with contextlib.ExitStack() as stack:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(out, "writes its model into"))
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            shutil.rmtree(staging, ignore_errors=True)  # left by a killed process
            staging.mkdir()
            yield staging
            _publish(staging, out, models, others)
    except OSError as error:
        raise cannot_write(error.filename or out, error) from error


def _publish(staging: Path, out: Path, models: Sequence[str], others: Sequence[str]) -> None:
    """Move the files of a delivery to their places."""
    if any((out / name).is_file() and not _is_equal(out / name, staging / name) for name in models):
        log.warning("%s held another model, which is in %s now", out, _set_aside(out))
    for name in (CARD, *others):  # an unfinished folder has no card
        (out / name).unlink(missing_ok=True)
    # The weights come first, because they show whose folder it is.
    for path in sorted(staging.iterdir(), key=lambda path: (path.name == CARD) - (path.name == WEIGHTS)):
        path.replace(out / path.name)


@contextlib.contextmanager
def alone(folder: Path, does: str) -> Iterator[None]:
    """Lock a folder for this process, where the file system has such locks. Raises UserError if another one has it.

    does: what another run does with the folder, for the sentence.
    """
    if fcntl is None:
        yield
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another run {does} {folder} now: wait until it ends and run again, or give another --out."
            ) from error
        except OSError:  # no such locks here
            pass
        yield
    finally:
        os.close(number)


def free_folder(out: Path) -> Path:
    """Return the first of `out`.1, `out`.2, ... that does not exist."""
    names = (out.with_name(f"{out.name}.{number}") for number in itertools.count(1))
    return next(path for path in names if not path.exists())


def _is_equal(path: Path, other: Path) -> bool:
    return other.is_file() and sha256(path) == sha256(other)


def _set_aside(out: Path) -> Path:
    """Move what is in a folder to `free_folder`, which it returns. The folder stays: it can be a link or a mount."""
    aside = free_folder(out)
    aside.mkdir()
    for path in sorted(out.iterdir(), key=lambda path: path.name == WEIGHTS):
        if path.name != STAGING:
            shutil.move(path, aside / path.name)
    return aside

"""Outputs of a job that replace earlier results in the end only, and only if no newer job has begun to make them."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from seam.errors import UserError, cannot_write

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

CLAIM = ".claim"  # a file in a staging folder: its job is the newest of these outputs
TOKEN = 12  # hexadecimal digits in the name of a staging folder
LOCK_SECONDS = 60  # after so many, a lock is ignored: the process that holds it was suspended


@contextlib.contextmanager
def staged(outputs: Iterable[str | os.PathLike[str]]) -> Iterator[Callable[[str | os.PathLike[str]], Path]]:
    """Yield a function from an output's path to the path to write; move all outputs to their paths at the end.

    >>> with staged(["results/a.csv", "results/b.csv"]) as staging:        # doctest: +SKIP
    ...     write_csv(staging("results/a.csv"), frame)

    The paths to write lie in a hidden folder beside the outputs' own, as deep in the tree, so that relative paths in
    them hold. An error in the block leaves the earlier outputs as they were. A job that begins later takes over: then
    the end of this one raises UserError and moves nothing.
    """
    paths = [Path(output) for output in outputs]
    folders: dict[Path, Path] = {}
    token = uuid.uuid4().hex[:TOKEN]

    def staging(output: str | os.PathLike[str]) -> Path:
        output = Path(output)
        return folders[output.parent] / output.name

    try:
        for path in paths:
            if path.parent not in folders:
                folders[path.parent] = _claim(path, token)
        yield staging
        _publish({staging(path): path for path in paths}, folders)
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def _claim(output: Path, token: str) -> Path:
    """Return a new staging folder for an output and those beside it; remove those of all earlier jobs."""
    name = f".{output.parent.name}.{output.stem}"
    root = output.parent.parent
    folder = root / f"{name}.{token}.new"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            # The token is matched exactly: another target's name may begin with this one.
            for earlier in root.glob(f"{glob.escape(name)}.{'[0-9a-f]' * TOKEN}.new"):
                (earlier / CLAIM).unlink(missing_ok=True)
                shutil.rmtree(earlier, ignore_errors=True)
            folder.mkdir()
            (folder / CLAIM).touch()
    except OSError as error:
        raise cannot_write(output, error) from error
    return folder


def _publish(moves: dict[Path, Path], folders: dict[Path, Path]) -> None:
    """Move the files {staged: output}, if the claims of this job still hold."""
    with contextlib.ExitStack() as stack:
        for root in sorted({folder.parent for folder in folders.values()}):
            stack.enter_context(_locked(root))
        for output_folder, folder in folders.items():
            if not (folder / CLAIM).exists():
                raise UserError(
                    f"A newer job makes the results in {output_folder}, so that this one has left them as they are: "
                    "nothing is to be done."
                )
        for path, output in moves.items():
            try:
                output.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, output)
            except OSError as error:
                raise cannot_write(output, error) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder, where the file system has such locks."""
    number = None
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                number = os.open(folder, os.O_RDONLY)
                _lock(number)
        yield
    finally:
        if number is not None:
            os.close(number)


def _lock(number: int) -> None:
    assert fcntl is not None
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return None
            time.sleep(0.02)

"""What Snakemake's dates do not show: the content of files that users may replace, and the versions of packages.

Rules have both as parameters, so that a change reruns what they make.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
from collections.abc import Iterable
from pathlib import Path

from seam.files import sha256

MOST_FILES = 10_000  # whose digests are remembered


class Digests:
    """The digests of files, remembered by path, size, date and inode in a file, so that none is read without need."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """path: the file that remembers the digests. It can be missing or damaged, or one that cannot be written."""
        self.path = Path(path)
        self.known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(known, dict):
                self.known = known

    def of(self, files: Iterable[str | os.PathLike[str]]) -> dict[str, str | None]:
        """Return {path: SHA-256}, sorted by path; None for a path that is no readable file."""
        return {str(file): self._of(Path(file)) for file in sorted(map(str, files))}

    def _of(self, file: Path) -> str | None:
        try:
            stat = file.stat()
            if not file.is_file():
                return None
            # A copy that keeps size and date has another inode, or another time of its last change.
            key = f"{file.absolute()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
            if key not in self.known:
                self.known[key] = sha256(file)
                self._remember()
            return self.known[key]
        except OSError:
            return None

    def _remember(self) -> None:
        """Write the digests, the last ones only. Where that is not possible, they are computed anew next time."""
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(dict(list(self.known.items())[-MOST_FILES:])), encoding="utf-8")
            os.replace(temporary, self.path)


@functools.cache
def version(package: str) -> str | None:
    """Return the version of an installed package without importing it; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pinned(requirements: str | os.PathLike[str], package: str) -> str | None:
    """Return the version that a requirements file gives a package: `1.8.0` of `deepsparse==1.8.0`."""
    for line in Path(requirements).read_text(encoding="utf-8").splitlines():
        name, _, pin = line.partition("==")
        if name.partition("[")[0].strip().lower() == package:
            return pin.split()[0].rstrip("\\") if pin.split() else None
    return None

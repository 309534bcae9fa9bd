"""Data sets with a published layout: class names that are known in advance, files that must be there, downloads.

The module of such a kind is one `PublishedKind` and a function that reads its published lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.data.kinds.kind import Entry, Kind
from seam.download import fetch, unpack
from seam.errors import UserError
from seam.files import open_file
from seam.log import log

if TYPE_CHECKING:
    from seam.data.storage import Split

RESOURCES = Path(__file__).parents[2] / "resources"

Listing = dict[str, list[tuple[str, str]]]  # {"train" or "test": [(path of an image, its class), ...]}


@dataclass(frozen=True)
class Download:
    """A file at a data set's public home. Of an archive, only the paths `wanted` are unpacked.

    most: the most bytes that it can have.
    """

    url: str
    sha256: str
    wanted: tuple[str, ...] = ()
    most: int = 2_000_000_000

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class PublishedKind(Kind):
    """A published data set.

    layout: the paths that its root must have; a tuple of paths stands for any one of them.
    read_lists: a function of the root and the class names. It returns the folder of the images, and for each split the
    images below this folder with their classes.
    downloads: without them, the user has to get the data set.
    """

    name: str
    home: str
    layout: tuple[str | tuple[str, ...], ...]
    classes: list[str]
    read_lists: Callable[[Path, list[str]], tuple[Path, Listing]]
    downloads: tuple[Download, ...] = ()

    def class_names(self, entry: Entry) -> list[str]:
        self._check(entry)
        return self.classes

    def why_unavailable(self, entry: Entry) -> str | None:
        if entry.get("root") or entry.get("download"):
            return None
        start = f"{self.name}: its root is not given in the config, so what needs it is left out: "
        return start + ("write download: true, or " if self.downloads else "") + self._advice()

    def load(self, entry: Entry, wanted: list[str], cache: str) -> dict[str, Split]:
        folder, listing = self.read_lists(self._root(entry, cache), self.classes)
        return self._splits(folder, listing, wanted, entry.get("size") or self.size)

    def _check(self, entry: Entry) -> None:
        """Raise UserError if the entry's root lacks a part of the layout, or a download is asked for in vain."""
        if entry.get("root"):
            if path := _first_missing(Path(entry["root"]), self.layout):
                raise UserError(f"root: {entry['root']} has no {path}: {self._advice()}.")
        elif entry.get("download") and not self.downloads:
            raise UserError(
                f"download: {self.name} has no published checksum, so it is not downloaded by itself: {self._advice()}."
            )

    def _root(self, entry: Entry, cache: str) -> Path:
        """Return the entry's root, or else `cache`/<name>, after downloading and unpacking the data set there."""
        self._check(entry)
        if entry.get("root"):
            return Path(entry["root"])
        from filelock import FileLock

        folder = Path(cache) / self.name
        for file in self.downloads:
            if file.wanted and not _first_missing(folder, file.wanted):
                continue  # unpacked before: the archive may have been deleted
            path = fetch(file.url, folder / file.name, file.sha256, most=file.most)
            with FileLock(folder / f".{file.name}.lock"):
                if file.wanted and _first_missing(folder, file.wanted):
                    log.info("%s: unpacking %s", self.name, path)
                    unpack(path, folder, file.wanted)
        return folder

    def _splits(self, folder: Path, listing: Listing, wanted: list[str], size: int) -> dict[str, Split]:
        """Return the splits of the listed images of the classes `wanted`, sorted by class, then by path."""
        import numpy as np

        from seam.data.storage import Split

        if unknown := {label for pairs in listing.values() for _, label in pairs} - set(self.classes):
            raise UserError(
                f"{folder} has the class {min(unknown)}, which is not among the published ones: download it again."
            )
        if both := {path for path, _ in listing["train"]} & {path for path, _ in listing["test"]}:
            raise UserError(f"{folder}: the lists have {min(both)} for training and for test: download them again.")
        splits = {}
        position = {name: index for index, name in enumerate(wanted)}
        for split, pairs in listing.items():
            chosen = sorted((position[label], path) for path, label in pairs if label in position)
            if empty := set(range(len(wanted))) - {label for label, _ in chosen}:
                raise UserError(
                    f"{folder}: the lists have no {split} image of {wanted[min(empty)]}: download them again."
                )
            files = [str((folder / path).absolute()) for _, path in chosen]
            if missing := next((file for file in files if not Path(file).is_file()), None):
                raise UserError(f"{missing} is in the published lists but not there: restore it.")
            splits[split] = Split(np.array([label for label, _ in chosen]), (size, size), files=files)
        return splits

    def _advice(self) -> str:
        parts = list(dict.fromkeys(_alternatives(path)[0].partition("/")[0] for path in self.layout))
        listed = " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)
        return f"put {listed} from {self.home} into a folder and give that as its root"


def read_names(name: str) -> list[str]:
    """Return the lines of seam/resources/{name}.txt: the published class names in index order."""
    return (RESOURCES / f"{name}.txt").read_text(encoding="utf-8").split()


def first_existing(folder: Path, *paths: str) -> Path | None:
    """Return the first of `paths` that exists in `folder`, or None."""
    return next((folder / path for path in paths if (folder / path).exists()), None)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a published list, without empty ones. Raises UserError if it cannot be read."""
    try:
        with open_file(path) as file:
            lines = file.read().decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): download it again.") from error
    return [line.strip() for line in lines if line.strip()]


def read_pairs(path: Path) -> dict[str, str]:
    """Return {first word: rest of the line} of a published list."""
    pairs = [line.partition(" ") for line in read_lines(path)]
    if incomplete := next((first for first, _, rest in pairs if not rest), None):
        raise UserError(f"{path} has nothing after {incomplete}: download it again.")
    return {first: rest.strip() for first, _, rest in pairs}


def read_mat(path: Path, *keys: str) -> list[Any]:
    """Return the arrays `keys` of a MATLAB file, each one-dimensional. Raises UserError if it lacks one."""
    from scipy.io import loadmat

    try:
        with open_file(path) as file:
            content = loadmat(file)
        return [content[key].ravel() for key in keys]
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]} in it: download it again.") from error
    except Exception as error:  # SciPy raises many types for a damaged file
        raise UserError(f"{path} cannot be read as a MATLAB file ({error}): download it again.") from error


def _first_missing(folder: Path, layout: tuple[str | tuple[str, ...], ...]) -> str | None:
    """Return the first path of the layout that `folder` lacks, or None."""
    return next((_alternatives(path)[0] for path in layout if not first_existing(folder, *_alternatives(path))), None)


def _alternatives(path: str | tuple[str, ...]) -> tuple[str, ...]:
    return (path,) if isinstance(path, str) else path

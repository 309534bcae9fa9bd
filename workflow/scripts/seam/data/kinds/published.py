"""What data sets with a published layout share: class names known beforehand, the files that must be there, downloads.

A kind is a `Source`; its module reads the published lists and gives them to `splits`.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from seam.download import fetch, unpack
from seam.errors import UserError
from seam.log import log

RESOURCES = Path(__file__).parents[2] / "resources"


@dataclass(frozen=True)
class Download:
    """A file at the data set's public home; of an archive only what begins with one of `wanted` is unpacked."""

    url: str
    sha256: str
    wanted: tuple = ()

    @property
    def name(self):
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Source:
    """A published data set; without `downloads` a person has to get it.

    layout: what must lie in its root; where a file may lie in one of several places, a tuple of these.
    """

    kind: str
    home: str
    layout: tuple
    downloads: tuple = ()


@functools.cache
def read_names(name):
    """The lines of seam/resources/{name}.txt: the published class names in index order."""
    return (RESOURCES / f"{name}.txt").read_text(encoding="utf-8").split()


def missing(entry, source):
    """One line that says what to get from where, if the entry has neither a root nor `download`; else None."""
    if entry.get("root") or entry.get("download"):
        return None
    start = f"{source.kind}: its root is not given in the config, so what needs it is left out: "
    return start + ("write download: true, or " if source.downloads else "") + _by_hand(source)


def check(entry, source):
    """Raises UserError where the entry's root lacks a part of the layout, or asks for a download that there is not."""
    if entry.get("root"):
        if part := _lacking(Path(entry["root"]), source.layout):
            raise UserError(f"root: {entry['root']} has no {part}: {_by_hand(source)}.")
    elif entry.get("download") and not source.downloads:
        raise UserError(
            f"download: {source.kind} has no published checksum, so it is not downloaded by itself: {_by_hand(source)}."
        )


def root(entry, source, cache):
    """The folder with the published layout: the entry's own, or `cache`/<kind>, where it is downloaded and unpacked."""
    check(entry, source)
    if entry.get("root"):
        return Path(entry["root"])
    from filelock import FileLock

    folder = Path(cache) / source.kind
    for file in source.downloads:
        if file.wanted and not _lacking(folder, file.wanted):
            continue  # unpacked before: the archive may be gone
        path = fetch(file.url, folder / file.name, file.sha256)
        with FileLock(folder / f".{file.name}.lock"):
            if file.wanted and _lacking(folder, file.wanted):
                log.info("%s: unpacking %s", source.kind, path)
                unpack(path, folder, file.wanted)
    return folder


def find(folder, *places):
    """The first of `places` that is in `folder`; None if none is."""
    return next((folder / place for place in places if (folder / place).exists()), None)


def read_lines(path):
    """The lines of a published list, without empty ones."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): get it anew.") from error
    return [line.strip() for line in lines if line.strip()]


def read_pairs(path):
    """{first word: the rest} of a published list's lines."""
    pairs = [line.partition(" ") for line in read_lines(path)]
    if odd := next((first for first, _, rest in pairs if not rest), None):
        raise UserError(f"{path} has nothing after {odd}: get it anew.")
    return {first: rest.strip() for first, _, rest in pairs}


def read_mat(path, *keys):
    """The arrays `keys` of a MATLAB file, each flat."""
    from scipy.io import loadmat

    try:
        content = loadmat(path)
        return [content[key].ravel() for key in keys]
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]} in it: get it anew.") from error
    except Exception as error:  # whatever the bytes of a damaged file lead SciPy to
        raise UserError(f"{path} cannot be read as a MATLAB file ({error}): get it anew.") from error


def splits(entry, folder, listed, names, wanted, size):
    """{"train": Split, "test": Split} of the classes `wanted`, sorted by class, then by path.

    listed: {"train" or "test": [(path below `folder`, class), ...]}; names: all classes that there are.
    """
    import numpy as np

    from seam.data.storage import Split

    if other := {label for pairs in listed.values() for _, label in pairs} - set(names):
        raise UserError(f"{folder} has the class {min(other)}, which is not among the published ones: get it anew.")
    if both := {path for path, _ in listed["train"]} & {path for path, _ in listed["test"]}:
        raise UserError(f"{folder}: the lists have {min(both)} for training and for test: get them anew.")
    found, size = {}, entry.get("size") or size
    position = {name: index for index, name in enumerate(wanted)}
    for split, pairs in listed.items():
        chosen = sorted((position[label], path) for path, label in pairs if label in position)
        if empty := set(range(len(wanted))) - {label for label, _ in chosen}:
            raise UserError(f"{folder}: the lists have no {split} image of {wanted[min(empty)]}: get them anew.")
        files = [str((Path(folder) / path).absolute()) for _, path in chosen]
        if lost := next((file for file in files if not Path(file).is_file()), None):
            raise UserError(f"{lost} is in the published lists but not there: restore it.")
        found[split] = Split(np.array([label for label, _ in chosen]), (size, size), files=files)
    return found


def _by_hand(source):
    parts = list(dict.fromkeys(_places(part)[0].partition("/")[0] for part in source.layout))
    listed = " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)
    return f"put {listed} from {source.home} into a folder and give that as its root"


def _lacking(folder, layout):
    """The first part of a layout that is not in `folder`, or None."""
    return next((_places(part)[0] for part in layout if not find(folder, *_places(part))), None)


def _places(part):
    return (part,) if isinstance(part, str) else part

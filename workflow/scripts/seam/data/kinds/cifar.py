"""What CIFAR-10 and CIFAR-100 share: the archive of pickled batches, verified before anything in it is read."""

import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from seam import files
from seam.download import fetch
from seam.errors import UserError

SIZE = 32
HOME = "https://www.cs.toronto.edu/~kriz/"


@dataclass(frozen=True)
class Archive:
    """A published archive: `folder` holds the pickled files `train`, `test` and `meta`."""

    kind: str
    name: str
    sha256: str
    folder: str
    train: tuple
    test: tuple
    meta: str
    labels: str  # the key of the labels in a batch
    label_names: str  # the key of their names in `meta`
    home: str = HOME


def check(entry, archive):
    """Raises UserError where the entry names a root without the archive, or a size that is not the images' own."""
    if entry.get("size") not in (None, SIZE):
        raise UserError(f"size: the images of {entry['kind']} have {SIZE} pixels: leave size out.")
    root = entry.get("root")
    if root and not (Path(root) / archive.name).is_file():
        raise UserError(f"root: {root} does not hold {archive.name}: put it there, or leave root out to download it.")


def read(entry, archive, cache):
    """The archive's pickled dictionaries, {member: dictionary}. Without a root it is downloaded to `cache`/<kind>/."""
    check(entry, archive)
    if root := entry.get("root"):
        path = Path(root) / archive.name
        if files.sha256(path) != archive.sha256:
            raise UserError(f"root: {path} is not the published file (SHA-256 {archive.sha256}): download it anew.")
    else:
        path = fetch(archive.home + archive.name, Path(cache) / archive.kind / archive.name, archive.sha256)
    wanted = {f"{archive.folder}/{name}": name for name in (*archive.train, *archive.test, archive.meta)}
    found = {}
    try:
        with tarfile.open(path, "r:gz") as tar:  # read in place: nothing of it is unpacked onto the disk
            for member in tar:
                if member.isfile() and member.name in wanted:
                    found[wanted[member.name]] = _Unpickler(tar.extractfile(member), encoding="latin1").load()
    except (tarfile.TarError, EOFError, OSError, zlib.error, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it and run again.") from error
    if missing := wanted.keys() - {f"{archive.folder}/{name}" for name in found}:
        raise UserError(f"{path} has no file {min(missing)}: delete it and run again.")
    return found


def load(entry, archive, names, wanted, cache):
    """{"train": Split, "test": Split} of the classes `wanted`, and all that was read, {member: dictionary}."""
    import numpy as np

    from seam.data.storage import select_classes

    content = read(entry, archive, cache)
    if list(content[archive.meta][archive.label_names]) != names:
        raise UserError(f"{archive.name} has other class names than were published: download it anew.")
    splits = {}
    for split, members in (("train", archive.train), ("test", archive.test)):
        images = np.concatenate([content[member]["data"] for member in members]).reshape(-1, 3, SIZE, SIZE)
        labels = np.concatenate([content[member][archive.labels] for member in members])
        splits[split] = select_classes(images.transpose(0, 2, 3, 1), labels, names, wanted)
    return splits, content


class _Unpickler(pickle.Unpickler):
    """Of NumPy arrays, lists, numbers and text alone: what a pickle could do beyond is refused."""

    def find_class(self, module, name):
        import numpy as np

        allowed = {
            "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": lambda name, align, copy: np.dtype(name, align=bool(align), copy=bool(copy)),
        }
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[f"{module}.{name}"]

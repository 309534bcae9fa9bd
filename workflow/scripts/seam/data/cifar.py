"""What CIFAR-10 and CIFAR-100 share: the archive of pickled batches, verified before anything in it is read."""

import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path

from seam.files import UserError, fetch, sha256

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
    """The archive's pickled dictionaries, {member: dictionary}; it is downloaded to `cache`/<kind>/ if the entry has no root."""
    check(entry, archive)
    if root := entry.get("root"):
        path = Path(root) / archive.name
        if sha256(path) != archive.sha256:
            raise UserError(f"root: {path} is not the published archive (its SHA-256 is not {archive.sha256}): download it anew.")
    else:
        path = fetch(archive.home + archive.name, Path(cache) / archive.kind / archive.name, archive.sha256)
    members = (*archive.train, *archive.test, archive.meta)
    try:
        with tarfile.open(path, "r:gz") as tar:  # read in place: nothing of it is unpacked onto the disk
            found = {member.name: _Unpickler(tar.extractfile(member), encoding="latin1").load() for member in tar
                     if member.isfile() and member.name in {f"{archive.folder}/{name}" for name in members}}
    except (tarfile.TarError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it and run again.") from error
    if missing := [name for name in members if f"{archive.folder}/{name}" not in found]:
        raise UserError(f"{path} has no file {archive.folder}/{missing[0]}: delete it and run again.")
    return {name: found[f"{archive.folder}/{name}"] for name in members}


def load(entry, archive, names, wanted, cache):
    """{"train": Split, "test": Split} of the classes `wanted`, and all that was read, {member: dictionary}."""
    import numpy as np

    from seam.data.storage import select

    content = read(entry, archive, cache)
    if list(content[archive.meta][archive.label_names]) != names:
        raise UserError(f"{archive.name} has other class names than were published: download it anew.")
    splits = {}
    for split, members in (("train", archive.train), ("test", archive.test)):
        images = np.concatenate([content[member]["data"] for member in members]).reshape(-1, 3, SIZE, SIZE)
        labels = np.concatenate([content[member][archive.labels] for member in members])
        splits[split] = select(images.transpose(0, 2, 3, 1), labels, names, wanted)
    return splits, content


class _Unpickler(pickle.Unpickler):
    """Of NumPy arrays, lists, numbers and text alone: what a pickle could do beyond is refused."""

    ALLOWED = {"_reconstruct", "ndarray", "dtype", "_frombuffer", "scalar"}

    def find_class(self, module, name):
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

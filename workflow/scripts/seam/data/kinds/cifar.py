"""CIFAR-10 and CIFAR-100: an archive of pickled batches, verified before anything in it is read."""

from __future__ import annotations

import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam import files
from seam.data.kinds.kind import Entry, Kind
from seam.download import fetch
from seam.errors import UserError

if TYPE_CHECKING:
    from seam.data.storage import Split

HOME = "https://www.cs.toronto.edu/~kriz/"
MOST = 200_000_000  # bytes of an archive; both have about 170 MB


@dataclass(frozen=True)
class CifarKind(Kind):
    """A published archive of CIFAR images.

    folder: the archive's folder, with the pickled files `train`, `test` and `meta`; labels: the key of the labels in
    a file; label_names: the key of their names in `meta`; superclasses: {name: [class, ...]} in the order of the
    coarse labels, if there are some.
    """

    name: str
    archive: str
    sha256: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    label_names: str
    classes: list[str]
    superclasses: dict[str, list[str]] | None = None
    home: str = HOME
    size: int = 32

    def class_names(self, entry: Entry) -> list[str]:
        self._check(entry)
        return self.classes

    def class_groups(self, entry: Entry, cache: str) -> dict[str, list[str]] | None:
        return self.superclasses

    def augmentation(self, size: int) -> list[str]:
        return ["crop", "flip"]

    def load(self, entry: Entry, wanted: list[str], cache: str) -> dict[str, Split]:
        import numpy as np

        from seam.data.preparation import select_classes

        content = self._read(entry, cache)
        if list(content[self.meta][self.label_names]) != self.classes:
            raise UserError(f"{self.archive} has other class names than were published: download it again.")
        if self.superclasses:
            self._check_superclasses(content, self.superclasses)
        splits = {}
        for split, members in (("train", self.train), ("test", self.test)):
            images = np.concatenate([content[member]["data"] for member in members])
            images = images.reshape(-1, 3, self.size, self.size).transpose(0, 2, 3, 1)
            labels = np.concatenate([content[member][self.labels] for member in members])
            splits[split] = select_classes(images, labels, self.classes, wanted)
        return splits

    def _check(self, entry: Entry) -> None:
        """Raise UserError if the entry's root lacks the archive, or its size is not that of the images."""
        if entry.get("size") not in (None, self.size):
            raise UserError(f"size: the images of {entry['kind']} have {self.size} pixels: leave size out.")
        root = entry.get("root")
        if root and not (Path(root) / self.archive).is_file():
            raise UserError(
                f"root: {root} does not hold {self.archive}: put it there, or leave root out to download it."
            )

    def _read(self, entry: Entry, cache: str) -> dict[str, dict[str, Any]]:
        """Return the archive's pickled dictionaries, {file: dictionary}. Downloads it if the entry has no root."""
        self._check(entry)
        if root := entry.get("root"):
            path = Path(root) / self.archive
            if files.sha256(path) != self.sha256:
                raise UserError(f"root: {path} is not the published file (SHA-256 {self.sha256}): download it again.")
        else:
            path = fetch(self.home + self.archive, Path(cache) / self.name / self.archive, self.sha256, most=MOST)
        wanted = {f"{self.folder}/{name}": name for name in (*self.train, *self.test, self.meta)}
        content = {}
        try:
            with tarfile.open(path, "r:gz") as tar:  # read in place: nothing is unpacked onto the disk
                for member in tar:
                    file = tar.extractfile(member) if member.isfile() and member.name in wanted else None
                    if file:
                        content[wanted[member.name]] = _ArrayUnpickler(file, encoding="latin1").load()
        except (tarfile.TarError, EOFError, OSError, zlib.error, pickle.UnpicklingError) as error:
            raise UserError(f"{path} cannot be read ({error}): delete it and run again.") from error
        if missing := wanted.keys() - {f"{self.folder}/{name}" for name in content}:
            raise UserError(f"{path} has no file {min(missing)}: delete it and run again.")
        return content

    def _check_superclasses(self, content: dict[str, dict[str, Any]], superclasses: dict[str, list[str]]) -> None:
        """Raise UserError if the archive's coarse labels are not the published ones."""
        coarse_names = content[self.meta]["coarse_label_names"]
        for member in (*self.train, *self.test):
            batch = content[member]
            for fine, coarse in set(zip(batch[self.labels], batch["coarse_labels"], strict=True)):
                if self.classes[fine] not in superclasses.get(coarse_names[coarse], ()):
                    raise UserError(
                        f"{self.archive} puts {self.classes[fine]} into {coarse_names[coarse]}, unlike the published "
                        "one: download it again."
                    )


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays, lists, numbers and text. Refuses everything else that a pickle can do."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        allowed = {
            "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": lambda name, align, copy: np.dtype(name, align=bool(align), copy=bool(copy)),
        }
        if f"{module}.{name}" not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[f"{module}.{name}"]

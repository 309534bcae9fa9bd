"""The interface of a kind of data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seam.data.preparation import Normalization
    from seam.data.storage import Split

Entry = dict[str, Any]  # a data set's config entry
LARGE_SIZE = 128  # pixels: from this working size on, a training image is a random part of the stored one


class Kind:
    """A kind of data sets. A subclass overrides `class_names` and `load`, and what differs from the defaults.

    size: the working size in pixels if an entry has no `size`.
    normalization: (mean, std) per channel; None if they are computed from the training images.
    """

    size: int = 224
    normalization: Normalization | None = None

    def class_names(self, entry: Entry) -> list[str]:
        """Return all class names in index order. Raises UserError if something is missing in the entry's root."""
        raise NotImplementedError

    def why_unavailable(self, entry: Entry) -> str | None:
        """Return one line that says what is missing, or None if the data set can be prepared."""
        return None

    def class_groups(self, entry: Entry, cache: str) -> dict[str, list[str]] | None:
        """Return the predefined superclasses, {name: [class, ...]}, or None if there are none."""
        return None

    def augmentation(self, size: int) -> list[str]:
        """Return the default augmentation of training images at this working size."""
        return ["crop" if size < LARGE_SIZE else "resized-crop", "flip"]

    def record(self, entry: Entry, wanted: list[str], splits: dict[str, Split]) -> str | None:
        """Return the content of a file `split.csv` if `load` has drawn the splits; None if they are given."""
        return None

    def load(self, entry: Entry, wanted: list[str], cache: str) -> dict[str, Split]:
        """Return the splits "train" and "test" of the classes `wanted`; label i stands for wanted[i].

        cache: the folder that keeps downloads.
        """
        raise NotImplementedError

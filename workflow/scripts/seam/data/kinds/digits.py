"""scikit-learn's 1,797 handwritten digits (8 x 8 pixels) at 32 px: embedded, nothing is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seam.data.kinds.kind import Entry, Kind

if TYPE_CHECKING:
    from seam.data.storage import Split

CLASSES = list("0123456789")


class Digits(Kind):
    """The digits. Every fifth image of each class is a test image."""

    size = 32

    def class_names(self, entry: Entry) -> list[str]:
        return CLASSES

    def augmentation(self, size: int) -> list[str]:
        return ["crop"]  # a mirrored digit is not a digit

    def load(self, entry: Entry, wanted: list[str], cache: str) -> dict[str, Split]:
        import numpy as np
        from PIL import Image
        from sklearn.datasets import load_digits

        from seam.data.preparation import select_classes

        size = entry.get("size") or self.size
        digits: Any = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        scaled = (Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in grey)
        images = np.stack([np.asarray(image.convert("RGB")) for image in scaled])
        test = np.zeros(len(images), bool)
        for label in range(10):
            test[np.flatnonzero(digits.target == label)[::5]] = True
        return {
            "train": select_classes(images[~test], digits.target[~test], CLASSES, wanted),
            "test": select_classes(images[test], digits.target[test], CLASSES, wanted),
        }


KIND = Digits()

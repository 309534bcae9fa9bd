"""scikit-learn's 1,797 handwritten digits (8 x 8 pixels) at 32 px: embedded, nothing is downloaded."""

SIZE = 32
CLASSES = list("0123456789")


def names(entry):
    return CLASSES


def augmentation(size):
    return ["crop"]  # a mirrored digit is no digit


def load(entry, wanted, cache):
    """Every fifth image of each class is a test image."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    from seam.data.storage import select_classes

    size = entry.get("size") or SIZE
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    scaled = (Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in grey)
    images = np.stack([image.convert("RGB") for image in scaled])
    test = np.zeros(len(images), bool)
    for label in range(10):
        test[np.flatnonzero(digits.target == label)[::5]] = True
    return {
        "train": select_classes(images[~test], digits.target[~test], CLASSES, wanted),
        "test": select_classes(images[test], digits.target[test], CLASSES, wanted),
    }

"""MIT Indoor Scenes (Quattoni and Torralba 2009): the published 5,360 training and 1,340 test images of 67 scenes."""

from seam.data.kinds import imagefolder, published

SIZE = 224
SOURCE = published.Source(
    kind="mit67",
    home="https://web.mit.edu/torralba/www/indoor.html",
    layout=("Images", "TrainImages.txt", "TestImages.txt"),
)


def missing(entry):
    return published.missing(entry, SOURCE)


def names(entry):
    published.check(entry, SOURCE)
    return published.read_names("mit67_classes")


def augmentation(size):
    return imagefolder.augmentation(size)


def load(entry, wanted, cache):
    """A line of a list is `scene/file`."""
    root = published.root(entry, SOURCE, cache)
    listed = {
        split: [(line, line.partition("/")[0]) for line in published.read_lines(root / name)]
        for split, name in (("train", "TrainImages.txt"), ("test", "TestImages.txt"))
    }
    return published.splits(entry, root / "Images", listed, names(entry), wanted, SIZE)

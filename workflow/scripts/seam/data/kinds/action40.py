"""Stanford 40 Actions (Yao et al. 2011): 4,000 training and 5,532 test images of 40 actions."""

from seam.data.kinds import imagefolder, published
from seam.errors import UserError

SIZE = 224
SOURCE = published.Source(
    kind="action40",
    home="http://vision.stanford.edu/Datasets/40actions.html",
    layout=("JPEGImages", "ImageSplits/actions.txt"),
)


def missing(entry):
    return published.missing(entry, SOURCE)


def names(entry):
    published.check(entry, SOURCE)
    return published.read_names("action40_classes")


def augmentation(size):
    return imagefolder.augmentation(size)


def load(entry, wanted, cache):
    """actions.txt is a table with a heading; each action has a list of its images for training and one for test."""
    root = published.root(entry, SOURCE, cache)
    actions, known = root / "ImageSplits" / "actions.txt", names(entry)
    found = [line.split()[0] for line in published.read_lines(actions)]
    if lost := set(known) - set(found):
        raise UserError(f"{actions} does not have the action {min(lost)}: get it anew.")
    listed = {
        split: [
            (file, action)
            for action in known
            for file in published.read_lines(root / "ImageSplits" / f"{action}_{split}.txt")
        ]
        for split in ("train", "test")
    }
    return published.splits(entry, root / "JPEGImages", listed, known, wanted, SIZE)

"""Oxford 102 Flowers (Nilsback and Zisserman 2008): 2,040 images of training and validation, 6,149 of test.

A class is named by its published number, with three digits: names do not belong to what is published.
"""

from seam.data.kinds import imagefolder, published
from seam.errors import UserError

SIZE = 224
CLASSES = [f"{number:03}" for number in range(1, 103)]
HOME = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
SOURCE = published.Source(
    kind="flower102",
    home=HOME,
    layout=("jpg", "imagelabels.mat", "setid.mat"),
    downloads=(
        published.Download(
            HOME + "102flowers.tgz",
            "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            wanted=("jpg",),
        ),
        published.Download(
            HOME + "imagelabels.mat", "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d"
        ),
        published.Download(HOME + "setid.mat", "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd"),
    ),
)


def missing(entry):
    return published.missing(entry, SOURCE)


def names(entry):
    published.check(entry, SOURCE)
    return CLASSES


def augmentation(size):
    return imagefolder.augmentation(size)


def load(entry, wanted, cache):
    """Images and classes count from 1; `trnid` and `valid` are for training, `tstid` for test."""
    root = published.root(entry, SOURCE, cache)
    (labels,) = published.read_mat(root / "imagelabels.mat", "labels")
    training, validation, test = published.read_mat(root / "setid.mat", "trnid", "valid", "tstid")
    numbers = {"train": [*training.tolist(), *validation.tolist()], "test": test.tolist()}
    if odd := [number for part in numbers.values() for number in part if not 1 <= number <= len(labels)]:
        raise UserError(
            f"{root / 'setid.mat'} has image {odd[0]}, but imagelabels.mat has {len(labels)} labels: get both anew."
        )
    listed = {
        split: [(f"image_{number:05}.jpg", f"{int(labels[number - 1]):03}") for number in part]
        for split, part in numbers.items()
    }
    return published.splits(entry, root / "jpg", listed, names(entry), wanted, SIZE)

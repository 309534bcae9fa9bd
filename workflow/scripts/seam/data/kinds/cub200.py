"""Caltech-UCSD Birds 200-2011 (Wah et al. 2011): 5,994 training and 5,794 test images of 200 species."""

from seam.data.kinds import imagefolder, published
from seam.errors import UserError

SIZE = 224
LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
LAYOUT = tuple(f"CUB_200_2011/{part}" for part in ("images", *LISTS))
SOURCE = published.Source(
    kind="cub200",
    home="https://data.caltech.edu/records/65de6-vp158",
    layout=LAYOUT,
    downloads=(
        published.Download(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
            wanted=LAYOUT,
        ),
    ),
)


def missing(entry):
    return published.missing(entry, SOURCE)


def names(entry):
    published.check(entry, SOURCE)
    return published.read_names("cub200_classes")


def augmentation(size):
    return imagefolder.augmentation(size)


def load(entry, wanted, cache):
    """Each list has a line for each image, `number value`: its path, its class and 1 where it is for training."""
    folder = published.root(entry, SOURCE, cache) / "CUB_200_2011"
    paths, labels, training, classes = (published.read_pairs(folder / name) for name in LISTS)
    for name, content in zip(LISTS[1:3], (labels, training), strict=True):
        if content.keys() != paths.keys():
            raise UserError(f"{folder / name} is not of the images in {LISTS[0]}: get both anew.")
    if odd := set(labels.values()) - classes.keys():
        raise UserError(f"{folder / LISTS[1]} has the class {min(odd)}, which is not in {LISTS[3]}: get both anew.")
    listed = {
        split: [(path, classes[labels[image]]) for image, path in paths.items() if training[image] == mark]
        for split, mark in (("train", "1"), ("test", "0"))
    }
    return published.splits(entry, folder / "images", listed, names(entry), wanted, SIZE)

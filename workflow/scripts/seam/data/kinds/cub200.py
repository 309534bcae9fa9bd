"""Caltech-UCSD Birds 200-2011 (Wah et al. 2011): 5,994 training and 5,794 test images of 200 species."""

from __future__ import annotations

from pathlib import Path

from seam.data.kinds.published import Download, Listing, PublishedKind, read_names, read_pairs
from seam.errors import UserError

LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
LAYOUT = tuple(f"CUB_200_2011/{path}" for path in ("images", *LISTS))


def _read_lists(root: Path, classes: list[str]) -> tuple[Path, Listing]:
    """Read the lists, which have a line `number value` for each image: its path, its class, 1 if it is for training."""
    folder = root / "CUB_200_2011"
    paths, labels, training, names = (read_pairs(folder / name) for name in LISTS)
    for name, content in zip(LISTS[1:3], (labels, training), strict=True):
        if content.keys() != paths.keys():
            raise UserError(f"{folder / name} does not have the images in {LISTS[0]}: download both again.")
    if unknown := set(labels.values()) - names.keys():
        raise UserError(
            f"{folder / LISTS[1]} has the class {min(unknown)}, which is not in {LISTS[3]}: download both again."
        )
    listing = {
        split: [(path, names[labels[image]]) for image, path in paths.items() if training[image] == mark]
        for split, mark in (("train", "1"), ("test", "0"))
    }
    return folder / "images", listing


KIND = PublishedKind(
    name="cub200",
    home="https://data.caltech.edu/records/65de6-vp158",
    layout=LAYOUT,
    classes=read_names("cub200_classes"),
    read_lists=_read_lists,
    downloads=(
        Download(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
            wanted=LAYOUT,
        ),
    ),
)

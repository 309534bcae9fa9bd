"""Oxford 102 Flowers (Nilsback and Zisserman 2008): 2,040 images of training and validation, 6,149 of test.

A class is named by its published number with three digits, because the published files have no names.
"""

from __future__ import annotations

from pathlib import Path

from seam.data.kinds.published import Download, Listing, PublishedKind, read_mat
from seam.errors import UserError

HOME = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"


def _read_lists(root: Path, classes: list[str]) -> tuple[Path, Listing]:
    """Read the lists, which count images and classes from 1: `trnid` and `valid` are for training, `tstid` for test."""
    (labels,) = read_mat(root / "imagelabels.mat", "labels")
    training, validation, test = read_mat(root / "setid.mat", "trnid", "valid", "tstid")
    numbers = {"train": [*training.tolist(), *validation.tolist()], "test": test.tolist()}
    if unknown := [number for split in numbers.values() for number in split if not 1 <= number <= len(labels)]:
        raise UserError(
            f"{root / 'setid.mat'} has image {unknown[0]}, but imagelabels.mat has {len(labels)} labels: "
            "download both again."
        )
    listing = {
        split: [(f"image_{number:05}.jpg", f"{int(labels[number - 1]):03}") for number in numbers[split]]
        for split in ("train", "test")
    }
    return root / "jpg", listing


KIND = PublishedKind(
    name="flower102",
    home=HOME,
    layout=("jpg", "imagelabels.mat", "setid.mat"),
    classes=[f"{number:03}" for number in range(1, 103)],
    read_lists=_read_lists,
    downloads=(
        Download(
            HOME + "102flowers.tgz",
            "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            wanted=("jpg",),
        ),
        Download(HOME + "imagelabels.mat", "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d"),
        Download(HOME + "setid.mat", "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd"),
    ),
)

"""Stanford Dogs (Khosla et al. 2011): 12,000 training and 8,580 test images of 120 breeds, all from ImageNet."""

from __future__ import annotations

from pathlib import Path

from seam.data.kinds.published import Download, Listing, PublishedKind, first_existing, read_mat, read_names
from seam.errors import UserError

HOME = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
LISTS = {"train": ("train_list.mat", "lists/train_list.mat"), "test": ("test_list.mat", "lists/test_list.mat")}


def _read_lists(root: Path, classes: list[str]) -> tuple[Path, Listing]:
    """Read the lists: `file_list` has the paths, `breed/file`, and `labels` a number for each path."""
    listing: Listing = {}
    for split, places in LISTS.items():
        path = first_existing(root, *places) or root / places[0]
        cells, labels = read_mat(path, "file_list", "labels")
        if cells.dtype != object or any(cell.size != 1 for cell in cells):
            raise UserError(f"{path} has no list of paths as its file_list: download it again.")
        files = [str(cell.item()) for cell in cells]
        breeds = [file.partition("/")[0] for file in files]
        pairs = set(zip(breeds, labels.tolist(), strict=False))
        if len(labels) != len(files) or not len(pairs) == len(set(breeds)) == len(set(labels.tolist())):
            raise UserError(
                f"{path} has {len(labels)} labels that do not fit its {len(files)} paths: download it again."
            )
        listing[split] = list(zip(files, breeds, strict=True))
    return root / "Images", listing


KIND = PublishedKind(
    name="dog120",
    home=HOME,
    layout=("Images", *LISTS.values()),
    classes=read_names("dog120_classes"),
    read_lists=_read_lists,
    downloads=(
        Download(
            HOME + "images.tar",
            "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
            wanted=("Images",),
        ),
        Download(
            HOME + "lists.tar",
            "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
            wanted=("train_list.mat", "test_list.mat"),
        ),
    ),
)

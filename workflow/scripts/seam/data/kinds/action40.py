"""Stanford 40 Actions (Yao et al. 2011): 4,000 training and 5,532 test images of 40 actions."""

from __future__ import annotations

from pathlib import Path

from seam.data.kinds.published import Listing, PublishedKind, read_lines, read_names
from seam.errors import UserError


def _read_lists(root: Path, classes: list[str]) -> tuple[Path, Listing]:
    """Read the lists of each action: its training and its test images. actions.txt is a table with a heading."""
    lists = root / "ImageSplits"
    actions = [line.split()[0] for line in read_lines(lists / "actions.txt")]
    if missing := set(classes) - set(actions):
        raise UserError(f"{lists / 'actions.txt'} does not have the action {min(missing)}: download it again.")
    listing = {
        split: [(file, action) for action in classes for file in read_lines(lists / f"{action}_{split}.txt")]
        for split in ("train", "test")
    }
    return root / "JPEGImages", listing


KIND = PublishedKind(
    name="action40",
    home="http://vision.stanford.edu/Datasets/40actions.html",
    layout=("JPEGImages", "ImageSplits/actions.txt"),
    classes=read_names("action40_classes"),
    read_lists=_read_lists,
)

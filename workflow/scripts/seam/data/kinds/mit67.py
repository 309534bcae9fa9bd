"""MIT Indoor Scenes (Quattoni and Torralba 2009): the published 5,360 training and 1,340 test images of 67 scenes."""

from __future__ import annotations

from pathlib import Path

from seam.data.kinds.published import Listing, PublishedKind, read_lines, read_names


def _read_lists(root: Path, classes: list[str]) -> tuple[Path, Listing]:
    """Read the two lists, whose lines are `scene/file`."""
    lists = {"train": "TrainImages.txt", "test": "TestImages.txt"}
    listing = {
        split: [(line, line.partition("/")[0]) for line in read_lines(root / name)] for split, name in lists.items()
    }
    return root / "Images", listing


KIND = PublishedKind(
    name="mit67",
    home="https://web.mit.edu/torralba/www/indoor.html",
    layout=("Images", "TrainImages.txt", "TestImages.txt"),
    classes=read_names("mit67_classes"),
    read_lists=_read_lists,
)

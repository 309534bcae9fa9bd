"""ImageNet (ILSVRC2012), the user's own copy: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG.

The classes are the sorted WordNet ids. They are known without the images, so that a source model with trained weights
does not need the images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seam.data.kinds.groups import group_name, read_groups
from seam.data.kinds.imagefolder import class_folders, load_folders
from seam.data.kinds.kind import Entry, Kind
from seam.data.kinds.published import read_names
from seam.download import fetch
from seam.errors import UserError

if TYPE_CHECKING:
    from seam.data.storage import Split

COMMIT = "529aae1b229f2ad6cd1b2e1eca5ddf475f028561"
PUBLISHED = f"https://raw.githubusercontent.com/qibinhang/SeaM/{COMMIT}/src/multi_class/datasets/"
FILES = {
    "imagenet_superclass_scn2c.csv": "b71f726f2c3215b94085d670a424ef270194c79d1974190d66b16eea15abb008",
    "imagenet_superclass_idx2sc.csv": "480d2e68718ab16644d93d7bfc33d1d1cca926a7e19244733b04be07646b4575",
}


class ImageNet(Kind):
    """The user's copy of ILSVRC2012, or a part of its classes."""

    normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def class_names(self, entry: Entry) -> list[str]:
        published = read_names("imagenet_wnids")
        if not entry.get("root"):
            return published
        val = Path(entry["root"]) / "val"
        if val.is_dir() and any(val.glob("ILSVRC2012_val_*.JPEG")):
            raise UserError(
                f"root: the images in {val} are not sorted by class: move each into val/<wnid>/, "
                'as torchvision.datasets.ImageNet(root, split="val") does with the devkit archive beside them.'
            )
        names = class_folders(entry["root"], "train", "val")
        if len(names) == len(published) and names != published:  # fewer are a part of the user's choice
            unknown = min(set(names) - set(published))
            raise UserError(
                f"root: {entry['root']}/train has {len(names)} folders, but {unknown} is no class of ILSVRC2012: "
                "give the folder of the ILSVRC2012 copy, or use kind: imagefolder."
            )
        return names

    def why_unavailable(self, entry: Entry) -> str | None:
        if not entry.get("root"):
            return "imagenet: its root is not given in the config, so what needs it is left out"
        return None

    def class_groups(self, entry: Entry, cache: str) -> dict[str, list[str]] | None:
        """Return the 67 published groups of classes, in their published order."""
        folder = Path(cache) / "imagenet"
        members, order = (
            fetch(PUBLISHED + name, folder / name, FILES[name], progress=False, most=10**6) for name in FILES
        )
        groups = read_groups(members)
        numbered = (line.split(",", 1) for line in order.read_text(encoding="utf-8").splitlines())
        titles = [title for _, title in sorted(numbered, key=lambda pair: int(pair[0]))]
        return {group_name(title): groups[group_name(title)] for title in titles}

    def load(self, entry: Entry, wanted: list[str], cache: str) -> dict[str, Split]:
        return load_folders(entry["root"], wanted, entry.get("size") or self.size, "train", "val")


KIND = ImageNet()

"""ImageNet (ILSVRC2012), one's own copy: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG. Its classes: the sorted wnids.

They are known without the images, which a source model with trained weights doesn't need.
"""

from pathlib import Path

from seam.data.kinds import imagefolder, published
from seam.download import fetch
from seam.errors import UserError

SIZE = 224
NORMALIZATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
COMMIT = "529aae1b229f2ad6cd1b2e1eca5ddf475f028561"
PUBLISHED = f"https://raw.githubusercontent.com/qibinhang/SeaM/{COMMIT}/src/multi_class/datasets/"
FILES = {
    "imagenet_superclass_scn2c.csv": "b71f726f2c3215b94085d670a424ef270194c79d1974190d66b16eea15abb008",
    "imagenet_superclass_idx2sc.csv": "480d2e68718ab16644d93d7bfc33d1d1cca926a7e19244733b04be07646b4575",
}


def missing(entry):
    if not entry.get("root"):
        return "imagenet: its root is not given in the config, so what needs it is left out"
    return None


def names(entry):
    known = published.read_names("imagenet_wnids")
    if not entry.get("root"):
        return known
    val = Path(entry["root"]) / "val"
    if val.is_dir() and any(val.glob("ILSVRC2012_val_*.JPEG")):
        raise UserError(
            f"root: the images in {val} are not sorted by class: move each into val/<wnid>/, "
            'as torchvision.datasets.ImageNet(root, split="val") does with the devkit archive beside them.'
        )
    found = imagefolder.class_folders(entry["root"], "train", "val")
    if len(found) == len(known) and found != known:  # fewer are a subset of one's own
        odd = min(set(found) - set(known))
        raise UserError(
            f"root: {entry['root']}/train has {len(found)} folders, but {odd} is no class of ILSVRC2012: "
            "give the folder of the ILSVRC2012 copy, or use kind: imagefolder."
        )
    return found


def groups(entry, cache):
    """The published 67 groups of classes, in their published order."""
    folder = Path(cache) / "imagenet"
    members, order = (fetch(PUBLISHED + name, folder / name, sha256, progress=False) for name, sha256 in FILES.items())
    found = read_groups(members)
    numbered = (line.split(",", 1) for line in order.read_text(encoding="utf-8").splitlines())
    return {plain(name): found[plain(name)] for _, name in sorted(numbered, key=lambda pair: int(pair[0]))}


def augmentation(size):
    return imagefolder.augmentation(size)


def load(entry, wanted, cache):
    return imagefolder.load_folders(entry["root"], wanted, entry.get("size") or SIZE, "train", "val")


def read_groups(path):
    """{group: [class, ...]} of a file with a line `group,class class ...` for each; a name's spaces become _."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"groups: {path} cannot be read ({error}): give a file of `group,class class ...`.") from error
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, members = line.partition(",")
        if not name.strip() or not members.split() or "," in members:
            raise UserError(f"groups: line {number} of {path} is not like `group,class class ...`: correct it.")
        if plain(name) in found:
            raise UserError(f"groups: line {number} of {path} names {plain(name)} again: give each group one line.")
        found[plain(name)] = members.split()
    if not found:
        raise UserError(f"groups: {path} has no groups in it: give lines like `group,class class ...`.")
    return found


def plain(name):
    """A group's name as a file name and a wildcard can have it."""
    return "_".join(name.split())

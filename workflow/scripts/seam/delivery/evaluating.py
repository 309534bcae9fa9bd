"""The accuracy of a model in a folder on labelled images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from seam.data.batches import batches
from seam.data.kinds.imagefolder import folder_names, image_files, warn_of_ignored
from seam.data.kinds.listing import TEST_FOLDERS, is_table, read_table
from seam.data.problems import REST
from seam.data.storage import Split
from seam.delivery.choices import data_errors
from seam.device import select_device
from seam.errors import UserError
from seam.evaluation import confusion_matrix, predict
from seam.files import read_json
from seam.models.classes import normalised_name
from seam.models.surgery import to_channels_last
from seam.report.intervals import wilson
from seam.reuse.cards import MOST_PIXELS, dataset_folder, is_delivered, is_side, read_card
from seam.reuse.load import load_reengineered

BATCH = 64


def evaluate_folder(
    folder: Path, data: str, size: int | None = None, device: str = "auto", architecture: str | None = None
) -> dict[str, Any]:
    """Return the accuracy of the model in `folder` on the images of `data`, in all and of each class.

    size: of the images in pixels, if the folder does not say it. The confusion matrix has a row for each true class.
    Raises UserError if no class of the images is one of the model's.
    """
    model = load_reengineered(folder, architecture=architecture)
    side = size or getattr(model, "size", None) or _recorded_size(folder)
    files, labels, left = _labelled(data, model.classes, *_problem(folder))
    torch_device = select_device(device)
    split = Split(labels, (side, side), files=files)
    images = batches(
        split, np.arange(len(files)), labels, BATCH, normalization=model.normalization, device=torch_device
    )
    logits, truth = predict(to_channels_last(model, torch_device, (side, side)), images)
    confusion = confusion_matrix(logits.argmax(1), truth, len(model.classes))
    totals, right = [sum(row) for row in confusion], [row[place] for place, row in enumerate(confusion)]
    shares = {name: r / t for name, r, t in zip(model.classes, right, totals, strict=True) if t}
    accuracy = sum(right) / len(files)
    return {
        "folder": str(folder),
        "data": str(data),
        "images": len(files),
        "classes": model.classes,
        "accuracy": accuracy,
        "interval": list(wilson(accuracy, len(files))),
        "balanced_accuracy": sum(shares.values()) / len(shares),
        "per_class": {
            name: {"accuracy": shares[name], "images": images}
            for name, images in zip(model.classes, totals, strict=True)
            if images
        },
        "confusion": confusion,
        "left_out": left,
    }


def _problem(folder: Path) -> tuple[str, list[str]]:
    """Return (kind of the problem, members of its group) of the model in a folder; "" and [] where it does not say."""
    if is_delivered(folder):
        problem = read_card(folder).get("problem")
        about = {"problem": problem.get("kind"), "members": problem.get("members")} if isinstance(problem, dict) else {}
    else:
        about = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
        about = about if isinstance(about, dict) else {}
    kind, members = about.get("problem"), about.get("members")
    return (kind if isinstance(kind, str) else ""), (list(map(str, members)) if isinstance(members, list) else [])


def _labelled(data: str, classes: list[str], kind: str, members: list[str]) -> tuple[list[str], np.ndarray, list[str]]:
    """Return (paths of images, labels [N], classes of the images that the model does not know).

    Images of the members of a group have the label of the group. If the last class is the rest, all classes that the
    model does not know are of it.
    """
    rest = len(classes) - 1 if classes[-1] == REST and kind != "multiclass" else None
    files: list[str] = []
    labels: list[int] = []
    left = []
    with data_errors():
        listed = _files(data, {normalised_name(name) for name in (*classes, *members)})
    exact = {name: place for place, name in enumerate(classes)}
    if kind == "group":
        exact |= dict.fromkeys(members, 0)
    alike = Counter(map(normalised_name, exact))
    # Names may differ in case, `_` and `-`, unless such names are different classes, as A and a are.
    known = {
        normalised_name(name): place
        for name, place in exact.items()
        if name not in listed and alike[normalised_name(name)] == 1
    }
    if kind == "group" and not members and normalised_name(classes[0]) not in map(normalised_name, listed):
        raise UserError(
            f"The folder of the model does not say which classes are in its group {classes[0]}: put the images of all "
            "of them into a folder of that name."
        )
    for name, paths in listed.items():
        place = exact.get(name, known.get(normalised_name(name), rest))
        if place is None:
            left.append(name)
            continue
        files += paths
        labels += [place] * len(paths)
    if not files:
        raise UserError(
            f"--data {data} has no class of the model's ({', '.join(classes[:10])}), but {', '.join(left[:10])}: name "
            "the folders like these."
        )
    return files, np.array(labels, np.int64), left


def _files(data: str, known: Collection[str]) -> dict[str, list[str]]:
    """Return {class: paths} of the test images in a folder or a CSV file, or of all if they are not split.

    known: the names of the model's classes, as `normalised_name` writes them.
    """
    root = Path(data)
    if is_table(root):
        splits = read_table(root)
        if chosen := next((splits[name] for name in (*TEST_FOLDERS, None) if name in splits), None):
            return chosen
        raise UserError(
            f"--data {data} has no split called test, but {', '.join(map(str, splits))}: name the split of the test "
            "images like that, or leave the column out to take all images."
        )
    if not root.is_dir():
        raise UserError(f"--data is {data}, but there is no such folder.")
    folder = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), root)
    if folder == root and (root / "train").is_dir() and "train" not in known:
        raise UserError(
            f"--data {data} has a folder train and none called test: give the folder that holds one folder of "
            "test images for each class."
        )
    ignored: Counter[str] = Counter()
    files = {name: image_files(folder / name, ignored) for name in folder_names(folder)}
    warn_of_ignored(data, ignored)
    return files


def _recorded_size(folder: Path) -> int:
    """Return the size of the data set that the workflow's result folder belongs to. Raises UserError if unknown."""
    metrics = read_json(folder / "metrics.json")
    name = str(metrics.get("dataset")) if isinstance(metrics, dict) else ""
    is_name = name == Path(name).name and name not in ("", "..")
    data = dataset_folder(folder, name) if is_name else None
    if data is not None:
        record = read_json(data / "dataset.json")
        size = record.get("size") if isinstance(record, dict) else None
        side = size[0] if isinstance(size, list) and size else None
        if not is_side(side):
            raise UserError(
                f"{data / 'dataset.json'} has no size of images from 1 to {MOST_PIXELS}: give it by --size."
            )
        return side
    raise UserError(f"{folder} does not say for which size of images its model is made: give it by --size.")

"""The card of a delivered folder, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

from seam.errors import UserError
from seam.files import read_json

MOST_PIXELS = 1024  # of the side of an image, as in the schema of the config
WORK = ".work"  # the end of the name of a working folder, beside the delivered one
RECOVERED = "recovered.safetensors"  # the weights after recovery, in the folder of the masks
RECOVERY_FILES = (RECOVERED, "recovery.csv", "recovery.json")
CARD, FORMAT, WEIGHTS, NETWORK = "card.json", "seam-delivery", "model.safetensors", "model.onnx"


def is_side(value: Any) -> TypeGuard[int]:
    """Return whether a value from a file can be the side of an image in pixels."""
    return type(value) is int and 0 < value <= MOST_PIXELS


def dataset_folder(folder: str | Path, name: str) -> Path | None:
    """Return the data set `name` of the run in whose results a folder lies; None if there is none."""
    places = (place / "datasets" / name for place in Path(folder).resolve().parents)
    return next((place for place in places if (place / "dataset.json").is_file()), None)


def is_delivered(folder: str | Path) -> bool:
    """Return whether `seam shrink` or `seam export` wrote the folder."""
    return (Path(folder) / CARD).is_file() and (Path(folder) / WEIGHTS).is_file()


def require_result(folder: str | Path, *names: str) -> None:
    """Raise UserError unless a folder is there and has one of the files `names`, which results of the workflow have.

    The sentence names the delivered folder if this is the working folder beside it.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder that it lies in.")
    if not folder.exists():
        raise UserError(f"There is no folder {folder}: correct its path.")
    if any((folder / name).is_file() for name in names):
        return
    delivered = folder.absolute().parent / folder.absolute().name.removesuffix(WORK)
    if is_delivered(delivered):
        raise UserError(f"{folder} is the working folder of seam shrink: give {delivered}, which holds the model.")
    raise UserError(
        f"{folder} holds no result: give a folder that seam shrink wrote, or one of the workflow that has "
        f"{' or '.join(names)}."
    )


def read_card(folder: str | Path) -> dict[str, Any]:
    """Return card.json of a delivered folder. Raises UserError if it is not one."""
    path = Path(folder) / CARD
    card = read_json(path)
    preprocessing = card.get("preprocessing") if isinstance(card, dict) else None
    if not isinstance(preprocessing, dict) or card.get("format") != FORMAT or not is_side(preprocessing.get("crop")):
        raise UserError(f"{path} is not the card of a model that seam delivered: give the folder of one.")
    return card

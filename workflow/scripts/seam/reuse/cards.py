"""The card of a delivered folder, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seam.errors import UserError
from seam.files import read_json

MOST_PIXELS = 512  # of the side of an image, as in the schema of the config
CARD, FORMAT, WEIGHTS, NETWORK = "card.json", "seam-delivery", "model.safetensors", "model.onnx"


def is_delivered(folder: str | Path) -> bool:
    """Return whether `seam shrink` or `seam export` wrote the folder."""
    return (Path(folder) / CARD).is_file() and (Path(folder) / WEIGHTS).is_file()


def read_card(folder: str | Path) -> dict[str, Any]:
    """Return card.json of a delivered folder. Raises UserError if it is not one."""
    path = Path(folder) / CARD
    card = read_json(path)
    preprocessing = card.get("preprocessing") if isinstance(card, dict) else None
    if (
        not isinstance(preprocessing, dict)
        or card.get("format") != FORMAT
        or type(preprocessing.get("crop")) is not int
        or not 0 < preprocessing["crop"] <= MOST_PIXELS
    ):
        raise UserError(f"{path} is not the card of a model that seam delivered: give the folder of one.")
    return card

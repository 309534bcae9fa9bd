"""Baselines of a search of single weights after the recovery that the search's result gets.

`magnitude-recovered` is the baseline `magnitude`, trained as `seam.reuse.recovery` trains what a search left: with the
same settings, images, seed and teacher. Nothing but what precedes the recovery differs. `head-recovered` keeps all
weights, so it is the whole source model, fine-tuned.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from seam.device import select_device
from seam.errors import UserError
from seam.files import atomic_write, read_json, write_json
from seam.reuse.provenance import environment
from seam.reuse.recovery import recover


def recover_baseline(baseline: str, folder: str | Path, masks_folder: str | Path, **arguments: Any) -> dict[str, Any]:
    """Train a baseline whose folder is `masks_folder` after it; write `folder`; return the metrics.

    The folder gets a copy of masks.safetensors and recovered.safetensors, from which `seam.load` loads the model,
    history.csv and metrics.json. Epochs and seconds in the latter are those of the recovery. A baseline that gives the
    same answer for all images is a result like any other: it says what its masks are worth.

    baseline: its name, `-recovered` included. arguments: the others of `seam.reuse.recovery.recover`. Raises UserError
    as that does, or if a file of the baseline is missing.
    """
    folder, masks_folder = Path(folder), Path(masks_folder)
    before = read_json(masks_folder / "metrics.json")
    try:
        recovery = recover(folder, masks_folder, allow_one_answer=True, **arguments)
    except UserError as error:
        raise UserError(f"Baseline {baseline}: {error}") from error
    with atomic_write(folder / "masks.safetensors") as temporary:
        shutil.copyfile(masks_folder / "masks.safetensors", temporary)
    os.replace(folder / "recovery.csv", folder / "history.csv")
    after, held = recovery["accuracy"]["after"], recovery["holdout_accuracy"]
    metrics = {
        **before,
        "baseline": baseline,
        "settings": {**before["settings"], "recovery": recovery["settings"]},
        "accuracy": {**before["accuracy"], "before_recovery": recovery["accuracy"]["before"], "baseline": after},
        "right": round(after * before["images"]["test"]),
        "balanced_accuracy": {
            **before["balanced_accuracy"],
            "before_recovery": recovery["balanced_accuracy"]["before"],
            "baseline": recovery["balanced_accuracy"]["after"],
        },
        "holdout_accuracy": held and {**before["holdout_accuracy"], "baseline": held["after"]},
        "epochs": recovery["epochs"],
        "selected_epoch": recovery["epochs"],  # as of the search's recovery, the last is the result
        "seconds": recovery["seconds"],
        **environment(select_device(arguments["device"])),
    }
    write_json(folder / "metrics.json", metrics)
    (folder / "recovery.json").unlink()  # all of it that is of a baseline is in metrics.json
    return metrics

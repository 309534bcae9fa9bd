"""SeaM, step 2: search the masks of a source model for another data set, at several thresholds in one search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from seam.files import load_tensors, save_tensors, sha256, write_csv
from seam.log import log
from seam.reuse.transfer import Transfer
from seam.search.by_threshold import search_by_threshold
from seam.settings import ThresholdSearchSettings
from seam.training.checkpoint import Checkpoint


def search_masks(
    folder: str | Path,
    model_folder: str | Path,
    dataset_folder: str | Path,
    model: str,
    dataset: str,
    common: dict[str, Any],
    search: dict[str, Any],
    thresholds: Sequence[float],
    seed: int,
    device: str,
    checkpoint: str | Path,
) -> None:
    """Search the masks of all `thresholds`, and write masks.safetensors and history.csv into `folder`.

    It starts from head.safetensors in the same folder, which `train_head` wrote. common: a dictionary of
    `TransferSettings`. search: a dictionary of `ThresholdSearchSettings`. A threshold that the search does not reach
    has no masks: the log has a warning, and `bits_of` raises for the students that need it. checkpoint: the path of the
    file to resume from.
    """
    folder = Path(folder)
    transfer = Transfer(model_folder, dataset_folder, (model, dataset, "masks"), common, seed, device)
    student, head_file = transfer.student(), folder / "head.safetensors"
    head, head_metadata = load_tensors(head_file)
    student.get_submodule(transfer.last_layer).load_state_dict(head)
    specific = {"settings": search, "thresholds": list(thresholds), "head": sha256(head_file)}
    state = Checkpoint(checkpoint, transfer.provenance | specific, __file__)
    result = search_by_threshold(
        student, transfer.last_layer, transfer.train_batches(), transfer.selection_batches(),
        ThresholdSearchSettings(**search), thresholds, state,
    )  # fmt: skip
    missing = [f"{threshold:g}" for threshold in thresholds if f"{threshold:g}" not in result.reached]
    if missing:
        log.warning("%s of the weights removed was not reached: %.4f at most", ", ".join(missing), result.most_removed)
    write_csv(folder / "history.csv", pd.DataFrame(result.history))
    save_tensors(
        folder / "masks.safetensors",
        {
            f"{threshold}/{name}": packed
            for threshold, reached in result.reached.items()
            for name, packed in reached["bits"].items()
        },
        {
            "source_sha256": transfer.provenance["source model"],
            "last_layer": transfer.last_layer,
            "settings": {"head": head_metadata["settings"], "search": search},
            "most_removed": result.most_removed,
            "reached": {threshold: reached["epoch"] for threshold, reached in result.reached.items()},
        },
    )
    state.remove()

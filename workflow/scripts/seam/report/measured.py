"""What was measured of a re-engineered model, after its recovery if it has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seam.files import read_json


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """Return metrics.json of a result folder; with a recovery, the accuracies of the model after it.

    `recovery` then has the content of recovery.json. Raises UserError if a file cannot be read.
    """
    folder = Path(folder)
    metrics = read_json(folder / "metrics.json")
    if not (folder / "recovery.json").is_file() or not (folder / "recovered.safetensors").is_file():
        return metrics
    recovery = read_json(folder / "recovery.json")
    for key, value in (
        *((key, recovery[key]["after"]) for key in ("accuracy", "balanced_accuracy")),
        *((key, recovery[key]) for key in ("per_class", "confusion")),
    ):
        metrics[key] = {**metrics[key], "reengineered": value}
    if holdout := recovery["holdout_accuracy"]:
        metrics["holdout_accuracy"] = {**(metrics["holdout_accuracy"] or {}), "reengineered": holdout["after"]}
    return {**metrics, "recovery": recovery}

"""What was measured of a re-engineered model, after its recovery if it has one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seam.files import read_json, sha256


def is_of_the_model(measured: Mapping[str, Any], folder: Path) -> bool:
    """Return whether a measurement is of the model in a result folder, and not of an earlier one there.

    measured: the content of latency_*.json, accuracy_*.json or macs.json, which have the digest of the file that was
    measured. Files of earlier versions have none, and count as of the model.
    """
    if digests := measured.get("model_digests"):
        paths = (folder / name for name in ("model.onnx", "model-int8.onnx"))
        return digests["reengineered"] in {sha256(path) for path in paths if path.is_file()}
    digest = measured.get("masks_digest")
    return digest is None or digest == sha256(folder / "masks.safetensors")


def read_metrics(folder: str | Path, recovered: bool | None = None) -> dict[str, Any]:
    """Return metrics.json of a result folder; with a recovery, the accuracies of the model after it.

    recovered: whether to read what its recovery reached; None: if there is one, and if it is one of the masks in the
    folder, as `seam.load` does. `recovery` then has the content of recovery.json. Raises UserError if a file cannot be
    read.
    """
    folder = Path(folder)
    metrics = read_json(folder / "metrics.json")
    if recovered is None:
        recovered = all((folder / name).is_file() for name in ("recovery.json", "recovered.safetensors"))
    if not recovered:
        return metrics
    recovery, masks = read_json(folder / "recovery.json"), sha256(folder / "masks.safetensors")
    if recovery.get("masks_sha256", masks) != masks:  # left behind by another search
        return metrics
    for key, value in (
        *((key, recovery[key]["after"]) for key in ("accuracy", "balanced_accuracy")),
        *((key, recovery[key]) for key in ("per_class", "confusion")),
    ):
        metrics[key] = {**metrics[key], "reengineered": value}
    if holdout := recovery["holdout_accuracy"]:
        metrics["holdout_accuracy"] = {**(metrics["holdout_accuracy"] or {}), "reengineered": holdout["after"]}
    return {**metrics, "recovery": recovery}

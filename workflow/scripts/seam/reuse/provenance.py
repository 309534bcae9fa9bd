"""What a result and a checkpoint depend on: names, hyper-parameters, seed, data, source model, device and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from seam.device import describe_device
from seam.files import sha256


def provenance(
    names: list[Any],
    settings: dict[str, Any],
    seed: int,
    device: torch.device,
    dataset_folder: str | Path,
    model_folder: str | Path | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return {name: value} of all that a job depends on, as JSON could hold it.

    names: from which, with the seed, every random choice of the job derives. settings: its hyper-parameters. others:
    what only this kind of job depends on. `Checkpoint` adds the digest of the code and the version of torch.
    """
    source = {} if model_folder is None else {"source model": sha256(Path(model_folder) / "source.safetensors")}
    return {
        "names": names,
        "hyper-parameters": settings,
        "seed": seed,
        "data": sha256(Path(dataset_folder) / "dataset.json"),
        **source,
        **describe_device(device),
        **others,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Return where a result was computed, as result files record it: device, precision, threads, version of torch."""
    return {**describe_device(device), "threads": torch.get_num_threads(), "torch": torch.__version__}

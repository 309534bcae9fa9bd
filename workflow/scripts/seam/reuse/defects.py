"""Perturb test images against a source model, and count how many of them mislead a student."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seam.data.batches import batches
from seam.data.storage import open_dataset
from seam.device import select_device
from seam.errors import UserError
from seam.files import check_seal, read_json, reserve, sealed_write, write_json
from seam.log import log
from seam.masks.layers import maskable
from seam.models.surgery import feature_extractor, to_channels_last
from seam.reuse.load import load_student
from seam.reuse.transfer import Transfer
from seam.robustness.attack import count_defects, count_robust, perturb_all
from seam.seeds import derive_seed
from seam.settings import AttackSettings


def attack_source(
    folder: str | Path,
    model_folder: str | Path,
    dataset_folder: str | Path,
    model: str,
    dataset: str,
    last_layer: str | None,
    settings: dict[str, Any],
    seed: int,
    device: str,
    architecture: str | None = None,
) -> None:
    """Perturb the data set's test images against the source model; write perturbations.npy and attack.json.

    perturbations.npy: int8 [N, H, W, 3], in steps of eps / 127. settings: a dictionary of `AttackSettings`.
    architecture: the source model's, needed if it is a file.
    """
    folder = Path(folder)
    common = {"batch_size": settings["batch_size"], "selection": "test", "holdout": 0.0, "last_layer": last_layer}
    transfer = Transfer(model_folder, dataset_folder, (model, dataset, "attack"), common, seed, device, architecture)
    attack = AttackSettings(**{**settings, "clip": tuple(settings["clip"])})
    network = feature_extractor(transfer.source.module, transfer.last_layer)
    network = to_channels_last(network, transfer.device, transfer.images.size)
    with sealed_write(folder / "perturbations.npy") as temporary:
        shape = (len(transfer.images.test), *transfer.images.size, 3)
        levels = np.lib.format.open_memmap(temporary, "w+", np.int8, shape)
        reserve(temporary)  # a memory map that outgrows the disk would kill the process
        start = time.perf_counter()
        figures = perturb_all(network, transfer.test_batches(enlarge=False), attack, levels)
        levels.flush()
    write_json(
        folder / "attack.json",
        {"model": model, "dataset": dataset, "seed": seed, "settings": asdict(attack), **figures}
        | {"seconds": time.perf_counter() - start, **transfer.facts(), "images": shape[0]},
    )


def evaluate_defects(
    folder: str | Path,
    attack_folder: str | Path,
    dataset_folder: str | Path,
    device: str,
    batch_size: int = 64,
    architecture: str | None = None,
    adaptive: bool = False,
) -> None:
    """Evaluate the student in `folder` on the test images as they are and perturbed; write metrics.json.

    architecture: the source model's, needed if it is a file. adaptive: whether to attack the student itself as well.
    """
    folder, torch_device = Path(folder), select_device(device)
    student, images = load_student(folder, architecture), open_dataset(dataset_folder)
    training, attack = read_json(folder / "training.json"), read_json(Path(attack_folder) / "attack.json")
    levels = _open_perturbations(Path(attack_folder) / "perturbations.npy", (len(images.test), *images.size, 3))
    weights, normalization = maskable(student), student.normalization
    count, zeros = sum(p.numel() for p in weights.values()), sum(int((p == 0).sum()) for p in weights.values())
    student = to_channels_last(student, torch_device, images.size)
    test = images.test

    def test_batches(enlarge: bool) -> Any:
        return batches(
            test, np.arange(len(test)), test.labels, batch_size,
            normalization=normalization, device=torch_device, enlarge=enlarge,
        )  # fmt: skip

    settings = AttackSettings(**{**attack["settings"], "clip": tuple(attack["settings"]["clip"])})
    figures = count_defects(student, test_batches(enlarge=True), levels, settings)
    names = {name: training[name] for name in ("model", "dataset", "student", "threshold")}
    if adaptive:
        torch.manual_seed(derive_seed(attack["seed"], *names.values(), "adaptive"))
        right = count_robust(student, test_batches(enlarge=False), settings)
        figures |= {"right_adaptive": right, "accuracy_adaptive": right / figures["images"]}
    write_json(
        folder / "metrics.json", {**names, **figures, "weights": count, "zeros": zeros, "sparsity": zeros / count}
    )
    log.info("accuracy %.4f, defect inheritance rate %s", figures["accuracy"], figures["defect_inheritance_rate"])


def _open_perturbations(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Return the perturbations that `attack_source` wrote, memory-mapped. Raises UserError if they are damaged."""
    try:
        check_seal(path)
        levels = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it and run the workflow again.") from error
    if levels.shape != shape or levels.dtype != np.int8:
        raise UserError(f"{path} is not of the test images of this data set: delete it and run the workflow again.")
    return levels

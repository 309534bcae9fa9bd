"""Perturb test images against a source model, and count how many of them mislead a student."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from seam.data.batches import batches
from seam.data.storage import open_dataset
from seam.device import select_device
from seam.files import atomic_write, read_json, reserve, write_json
from seam.log import log
from seam.masks.layers import maskable
from seam.models.surgery import feature_extractor, to_channels_last
from seam.reuse.load import load_student
from seam.reuse.transfer import Transfer
from seam.robustness.attack import count_defects, perturb_all
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
) -> None:
    """Perturb the data set's test images against the source model; write perturbations.npy and attack.json.

    perturbations.npy: int8 [N, H, W, 3], in steps of eps / 127. settings: a dictionary of `AttackSettings`.
    """
    folder = Path(folder)
    common = {"batch_size": settings["batch_size"], "selection": "test", "holdout": 0.0, "last_layer": last_layer}
    transfer = Transfer(model_folder, dataset_folder, (model, dataset, "attack"), common, seed, device)
    attack = AttackSettings(**{**settings, "clip": tuple(settings["clip"])})
    network = feature_extractor(transfer.source.module, transfer.last_layer)
    network = to_channels_last(network, transfer.device)
    with atomic_write(folder / "perturbations.npy") as temporary:
        shape = (len(transfer.images.test), *transfer.images.size, 3)
        levels = np.lib.format.open_memmap(temporary, "w+", np.int8, shape)
        reserve(temporary)  # a memory map that outgrows the disk would kill the process
        start = time.perf_counter()
        figures = perturb_all(network, transfer.test_batches(), attack, levels)
        levels.flush()
    write_json(
        folder / "attack.json",
        {"model": model, "dataset": dataset, "seed": seed, "settings": asdict(attack), **figures}
        | {"seconds": time.perf_counter() - start, **transfer.facts(), "images": shape[0]},
    )


def evaluate_defects(
    folder: str | Path, attack_folder: str | Path, dataset_folder: str | Path, device: str, batch_size: int = 64
) -> None:
    """Evaluate the student in `folder` on the test images as they are and perturbed; write metrics.json."""
    folder, torch_device = Path(folder), select_device(device)
    student, images = load_student(folder), open_dataset(dataset_folder)
    training, attack = read_json(folder / "training.json"), read_json(Path(attack_folder) / "attack.json")
    levels = np.load(Path(attack_folder) / "perturbations.npy", mmap_mode="r")
    weights, normalization = maskable(student), student.normalization
    count, zeros = sum(p.numel() for p in weights.values()), sum(int((p == 0).sum()) for p in weights.values())
    student = to_channels_last(student, torch_device)
    test = images.test
    test_batches = batches(
        test, np.arange(len(test)), test.labels, batch_size, normalization=normalization, device=torch_device
    )
    figures = count_defects(student, test_batches, levels, AttackSettings(**attack["settings"]))
    names = {name: training[name] for name in ("model", "dataset", "student", "threshold")}
    write_json(
        folder / "metrics.json", {**names, **figures, "weights": count, "zeros": zeros, "sparsity": zeros / count}
    )
    log.info("accuracy %.4f, defect inheritance rate %s", figures["accuracy"], figures["defect_inheritance_rate"])

"""Perturb test images against a source model, and count how many of them mislead a student."""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from seam.data.batches import batches as batches_of
from seam.data.storage import open_dataset
from seam.device import select_device
from seam.files import atomic_write, read_json, reserve, write_json
from seam.log import log
from seam.masks.layers import maskable
from seam.models.surgery import feature_extractor
from seam.reuse.load import load_student
from seam.reuse.transfer import TransferTask
from seam.robustness.attack import judge, perturbations
from seam.settings import AttackSettings


def attack_source(folder, model_folder, dataset_folder, model, dataset, last_layer, settings, seed, device):
    """Perturb the data set's test images against the source model. Writes perturbations.npy and attack.json.

    perturbations.npy: int8 [N, H, W, 3], in steps of eps / 127. settings: a dictionary of `robustness.Settings`.
    """
    folder = Path(folder)
    common = {"batch_size": settings["batch_size"], "selection": "test", "holdout": 0.0, "last_layer": last_layer}
    job = TransferTask(model_folder, dataset_folder, (model, dataset, "attack"), common, seed, device)
    options = AttackSettings(**{**settings, "clip": tuple(settings["clip"])})
    network = feature_extractor(job.source.module, job.last).to(job.device, memory_format=torch.channels_last)
    with atomic_write(folder / "perturbations.npy") as temporary:
        shape = (len(job.images.test), *job.images.size, 3)
        into = np.lib.format.open_memmap(temporary, "w+", np.int8, shape)
        reserve(temporary)  # a memory map that outgrows the disk would end the process
        start = time.perf_counter()
        found = perturbations(network, job.test(), options, into)
        into.flush()
    write_json(
        folder / "attack.json",
        {"model": model, "dataset": dataset, "seed": seed, "settings": asdict(options), **found}
        | {"seconds": time.perf_counter() - start, **job.facts(), "images": shape[0]},
    )


def evaluate_defects(folder, attack_folder, dataset_folder, device, batch_size=64):
    """Judge the student in `folder` on the test images as they are and perturbed. Writes metrics.json."""
    folder, device = Path(folder), select_device(device)
    student, images = load_student(folder), open_dataset(dataset_folder)
    training, attack = read_json(folder / "training.json"), read_json(Path(attack_folder) / "attack.json")
    levels = np.load(Path(attack_folder) / "perturbations.npy", mmap_mode="r")
    weights = maskable(student)
    count, zeros = sum(p.numel() for p in weights.values()), sum(int((p == 0).sum()) for p in weights.values())
    student = student.to(device, memory_format=torch.channels_last)
    everything = np.arange(len(images.test))
    test = batches_of(
        images.test, everything, images.test.labels, batch_size, normalization=student.normalization, device=device
    )
    found = judge(student, test, levels, AttackSettings(**attack["settings"]))
    names = {name: training[name] for name in ("model", "dataset", "student", "threshold")}
    write_json(folder / "metrics.json", {**names, **found, "weights": count, "zeros": zeros, "sparsity": zeros / count})
    log.info("accuracy %.4f, defect inheritance rate %s", found["accuracy"], found["defect_inheritance_rate"])

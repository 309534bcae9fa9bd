"""Students of indirect reuse: the new last layer (SeaM, step 1), and the training of each student."""

from pathlib import Path

import pandas as pd
import torch

from seam.errors import UserError
from seam.files import load_tensors, save_tensors, sha256, write_csv, write_json
from seam.log import log
from seam.masks.bits import bake, magnitude_bits, random_bits, unpack_bits
from seam.masks.layers import maskable
from seam.models.architectures import describe_architecture
from seam.models.surgery import copy_state
from seam.reuse.transfer import TransferTask
from seam.seeds import derive_seed
from seam.settings import FinetuningSettings
from seam.training.checkpoint import Checkpoint
from seam.training.supervised import finetune

MASKED = ("seam", "magnitude", "random")


def train_head(folder, model_folder, dataset_folder, model, dataset, common, head, seed, device, checkpoint):
    """Step 1: the source model's weights as they are, a new last layer. Writes head.safetensors and head.csv.

    head: a dictionary of `train.Finetuning`, without `lr_last`.
    """
    job = TransferTask(model_folder, dataset_folder, (model, dataset, "head"), common, seed, device)
    kept, student = Checkpoint(checkpoint, job.about | {"settings": head}, __file__), job.student()
    history, epoch = finetune(
        student, job.last, job.train(), job.selection(), FinetuningSettings(**head), checkpoint=kept
    )
    folder = Path(folder)
    write_csv(folder / "head.csv", pd.DataFrame(history))
    layer = copy_state(student.get_submodule(job.last))
    seconds = sum(row["seconds"] for row in history)
    save_tensors(folder / "head.safetensors", layer, {"selected_epoch": epoch, "settings": head})
    kept.remove()
    log.info("the last layer was trained in %.0f s, %d epochs", seconds, len(history))


def bits_of(path, student, threshold, source, generator):
    """(bits, epoch, settings) of a masked student: {name: boolean mask}, when the search reached the threshold, and its
    hyper-parameters and step 1's. Raises UserError if it did not reach it.

    magnitude and random keep as many weights of each parameter as the search does.
    """
    tensors, about = load_tensors(path)
    name = f"{threshold:g}"
    if name not in about["reached"]:
        raise UserError(
            f"The search of {path} removed at most {about['most_removed']:.4f} of the weights, not {name}: give "
            "transfer.search more epochs, a higher lr_mask or alpha, or take the threshold out."
        )
    packed = {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == name}
    bits = unpack_bits(packed, source)
    if student == "magnitude":
        bits = magnitude_bits(source, bits)
    elif student == "random":
        bits = random_bits(bits, generator)
    return bits, about["reached"][name], about["settings"]


def train_student(
    folder, model_folder, dataset_folder, model, dataset, student, threshold, common, settings, seed, origin, device,
    checkpoint, masks=None,
):  # fmt: skip
    """Step 3, or another student: writes student.safetensors, history.csv and training.json into `folder`.

    student: standard, retrain, seam, magnitude or random; the last three need `threshold` and `masks`, the file of
    `search_masks`. settings: a dictionary of `train.Finetuning`. origin: the source model's "architecture" and
    "weights_origin", as the tables have them.
    """
    folder = Path(folder)
    job = TransferTask(model_folder, dataset_folder, (model, dataset, student, threshold), common, seed, device)
    about = job.about | {"settings": settings}
    bits, search, block, before = None, {"search_epochs": None, "search_seconds": None}, student, {}
    if student in MASKED:
        about["masks"] = sha256(masks)
        generator = torch.Generator().manual_seed(derive_seed(seed, model, dataset, student, threshold, "masks"))
        block = "finetune"
        bits, epoch, before = bits_of(masks, student, threshold, job.source.module, generator)
        steps = [pd.read_csv(Path(masks).parent / name)["seconds"] for name in ("head.csv", "history.csv")]
        search = {"search_epochs": epoch, "search_seconds": float(steps[0].sum() + steps[1][:epoch].sum())}
        bake(job.source.module, bits)
    weights = maskable(job.source.module, exclude={job.last})
    kept, module = Checkpoint(checkpoint, about, __file__), job.student(pretrained=student != "retrain")
    options = FinetuningSettings(**settings)
    zeros = bits if options.keep_zeros else None
    history, epoch = finetune(module, job.last, job.train(), job.selection(), options, zeros, kept)
    save_tensors(
        folder / "student.safetensors",
        module.state_dict(),
        {
            **describe_architecture(job.source.architecture),
            "source_classes": len(job.source.classes),
            "last_layer": job.last,
            "classes": job.classes,
            "normalization": job.source.normalization,
        },
    )
    write_csv(folder / "history.csv", pd.DataFrame(history))
    shared = {name: common[name] for name in ("batch_size", "holdout", "selection")}
    if bits:  # some may have no mask: those that no output depends on
        weights = {name: weights[name] for name in bits}
    count, left = sum(p.numel() for p in weights.values()), bits and sum(int(bit.sum()) for bit in bits.values())
    training = {
        "model": model,
        "dataset": dataset,
        "student": student,
        "threshold": threshold,
        **origin,
        "seed": seed,
        "settings": {**shared, **before, block: settings},
        "retention": bits and left / count,
        "weights": count,
        "kept": left,
        "holdout_accuracy": history[epoch - 1]["accuracy"] if job.held_out else None,
        "epochs": len(history),
        "selected_epoch": epoch,
        **search,
        "seconds": sum(row["seconds"] for row in history),  # also of what was done before an interruption
        **job.facts(),
    }
    write_json(folder / "training.json", training)
    kept.remove()
    return training

"""The students of indirect reuse: their new last layer (SeaM, step 1), and the training of each student (step 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from seam.errors import UserError
from seam.files import load_tensors, read_csv, save_tensors, sha256, write_csv, write_json
from seam.log import log
from seam.masks.bits import bake, unpack_bits
from seam.masks.coverage import coverage_frequencies, relevant_bits
from seam.masks.layers import maskable
from seam.masks.scores import keep_in_each, magnitude_scores, random_scores
from seam.models.architectures import describe_architecture
from seam.models.surgery import copy_state, to_channels_last
from seam.reuse.transfer import Transfer
from seam.seeds import derive_seed
from seam.settings import FinetuningSettings, LastLayerSettings, RemosSettings
from seam.training.checkpoint import Checkpoint
from seam.training.supervised import finetune, train_last_layer

MASKED_STUDENTS = ("seam", "magnitude", "random")


def train_head(
    folder: str | Path,
    model_folder: str | Path,
    dataset_folder: str | Path,
    model: str,
    dataset: str,
    common: dict[str, Any],
    head: dict[str, Any],
    seed: int,
    device: str,
    checkpoint: str | Path,
    architecture: str | None = None,
) -> None:
    """Train a new last layer on the source model's features; write head.safetensors and head.csv into `folder`.

    common: a dictionary of `TransferSettings`. head: a dictionary of `LastLayerSettings`. checkpoint: the path of the
    file to resume from. architecture: the source model's, needed if it is a file.
    """
    folder = Path(folder)
    transfer = Transfer(model_folder, dataset_folder, (model, dataset, "head"), common, seed, device, architecture)
    state = Checkpoint(checkpoint, transfer.provenance | {"settings": head}, __file__)
    student = transfer.student()
    history, epoch = train_last_layer(
        student, transfer.last_layer, transfer.train_batches(), transfer.selection_batches(),
        LastLayerSettings(**head), state,
    )  # fmt: skip
    write_csv(folder / "head.csv", pd.DataFrame(history))
    layer = copy_state(student.get_submodule(transfer.last_layer))
    save_tensors(folder / "head.safetensors", layer, {"selected_epoch": epoch, "settings": head})
    state.remove()
    seconds = sum(row["seconds"] for row in history)
    log.info("the last layer was trained in %.0f s, %d epochs", seconds, len(history))


def bits_of(
    path: str | Path,
    student: str,
    threshold: float,
    source: nn.Module,
    generator: torch.Generator | None,
    checksum: str | None = None,
) -> tuple[dict[str, torch.Tensor], int, dict[str, Any]]:
    """Return (masks, epoch, settings) of a masked student from the masks.safetensors at `path`.

    masks: {name: boolean mask}; magnitude and random keep as many weights of each parameter as the search does. epoch:
    when the search reached the threshold. settings: the hyper-parameters of the search and of the last layer. checksum:
    of the source model, if the masks must be its own. Raises UserError if the search did not reach the threshold.
    """
    tensors, metadata = load_tensors(path)
    name = f"{threshold:g}"
    if not {"reached", "most_removed", "settings", "source_sha256"} <= metadata.keys():
        raise UserError(f"{path} was not written by a search: delete it and run the workflow again.")
    if checksum is not None and metadata["source_sha256"] != checksum:
        raise UserError(f"{path} was searched for another source model: delete it and run the workflow again.")
    if name not in metadata["reached"]:
        raise UserError(
            f"The search of {path} removed at most {metadata['most_removed']:.4f} of the weights, not {name}: give "
            "transfer.search more epochs, a higher lr_mask or alpha, or take the threshold out."
        )
    packed = {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == name}
    try:
        bits = unpack_bits(packed, source)
    except ValueError as error:
        raise UserError(f"{path} does not fit its source model ({error}): delete it and run again.") from error
    counts = {mask: int(bit.sum()) for mask, bit in bits.items()}
    if student == "magnitude":
        bits = keep_in_each(magnitude_scores(source, counts), counts)
    elif student == "random":
        assert generator is not None
        bits = keep_in_each(random_scores(source, counts, generator), counts)
    return bits, metadata["reached"][name], metadata["settings"]


def remos_bits(transfer: Transfer, settings: RemosSettings) -> dict[str, torch.Tensor]:
    """Return the masks of ReMoS: without the weights that the training images of the target hardly use."""
    network = to_channels_last(transfer.source.module, transfer.device, transfer.images.size)
    frequencies = coverage_frequencies(network, transfer.plain_batches(), settings.coverage)
    frequencies.pop(transfer.last_layer, None)  # the student has another one
    return relevant_bits(network, frequencies, settings.ratio)


def train_student(
    folder: str | Path,
    model_folder: str | Path,
    dataset_folder: str | Path,
    model: str,
    dataset: str,
    student: str,
    threshold: float | None,
    common: dict[str, Any],
    settings: dict[str, Any],
    seed: int,
    origin: Mapping[str, Any],
    device: str,
    checkpoint: str | Path,
    masks: str | Path | None = None,
    architecture: str | None = None,
) -> dict[str, Any]:
    """Train a student; write student.safetensors, history.csv and training.json into `folder`; return the latter.

    student: standard, retrain, remos, seam, magnitude or random. The last three need `threshold` and `masks`, the path
    of the file by `search_masks`. common: a dictionary of `TransferSettings`. settings: a dictionary of
    `FinetuningSettings`, or of `RemosSettings` for remos. origin: the "architecture" and "weights_origin" of the source
    model, for the tables. checkpoint: the path of the file to resume from. architecture: the source model's, needed if
    it is a file. Raises UserError if the search did not reach the threshold.
    """
    folder = Path(folder)
    names = model, dataset, student, threshold
    transfer = Transfer(model_folder, dataset_folder, names, common, seed, device, architecture)
    source = transfer.source
    specific: dict[str, Any] = {"settings": settings}
    bits: dict[str, torch.Tensor] | None = None
    search: dict[str, Any] = {"search_epochs": None, "search_seconds": None}
    block = student
    search_settings: dict[str, Any] = {}
    if student in MASKED_STUDENTS:
        assert masks is not None and threshold is not None
        specific["masks"] = sha256(masks)
        generator = torch.Generator().manual_seed(derive_seed(seed, model, dataset, student, threshold, "masks"))
        checksum = transfer.provenance["source model"]
        bits, epoch, search_settings = bits_of(masks, student, threshold, source.module, generator, checksum)
        head, history = (read_csv(Path(masks).parent / name) for name in ("head.csv", "history.csv"))
        seconds: Any = head["seconds"].sum() + history["seconds"][:epoch].sum()
        search = {"search_epochs": epoch, "search_seconds": float(seconds)}
        bake(source.module, bits)
        block = "finetune"
    elif student == "remos":
        bits = remos_bits(transfer, RemosSettings(**settings))
        bake(source.module, bits)
    weights = maskable(source.module, exclude={transfer.last_layer})
    state = Checkpoint(checkpoint, transfer.provenance | specific, __file__)
    module = transfer.student(pretrained=student != "retrain")
    finetuning = RemosSettings(**settings) if student == "remos" else FinetuningSettings(**settings)
    rows, epoch = finetune(
        module, transfer.last_layer, transfer.train_batches(), transfer.selection_batches(), finetuning,
        bits if finetuning.keep_zeros else None, state,
    )  # fmt: skip
    save_tensors(
        folder / "student.safetensors",
        module.state_dict(),
        {
            **describe_architecture(source.architecture, source.checksum),
            "source_classes": len(source.classes),
            "last_layer": transfer.last_layer,
            "classes": transfer.classes,
            "normalization": source.normalization,
        },
    )
    write_csv(folder / "history.csv", pd.DataFrame(rows))
    if bits and student != "remos":  # parameters on which no output depends have no mask
        weights = {name: weights[name] for name in bits}
    count = sum(parameter.numel() for parameter in weights.values())
    kept = count - sum(int((~bit).sum()) for bit in bits.values()) if bits else None  # remos masks convolutions alone
    training = {
        "model": model,
        "dataset": dataset,
        "student": student,
        "threshold": threshold,
        **origin,
        "seed": seed,
        "settings": {
            **{name: common[name] for name in ("batch_size", "holdout", "selection")},
            **search_settings,
            block: settings,
        },
        "retention": None if kept is None else kept / count,
        "weights": count,
        "kept": kept,
        "holdout_accuracy": rows[epoch - 1]["accuracy"] if transfer.uses_holdout else None,
        "epochs": len(rows),
        "selected_epoch": epoch,
        **search,
        "seconds": sum(row["seconds"] for row in rows),  # of all processes, if the training was interrupted
        **transfer.facts(),
    }
    write_json(folder / "training.json", training)
    state.remove()
    return training

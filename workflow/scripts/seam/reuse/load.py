"""Load a re-engineered model or a student from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from seam.errors import UserError
from seam.files import load_tensors
from seam.masks.bits import bake, unpack_bits
from seam.models.architectures import build_model, locate_architecture
from seam.models.surgery import replace_last_layer, with_head
from seam.models.weights import load_state, open_source


def load_reengineered(folder: str | Path, source: str | Path | None = None) -> Any:
    """Return the re-engineered model in `folder`: a plain module for inference, without gradients.

    Its removed weights are zero. It maps images [B, 3, H, W] to logits [B, n] over its attribute `classes`. The images
    are normalised by its attribute `normalization` (mean and standard deviation per channel). source: the folder of the
    source model, if that has moved. Raises UserError if a file is missing, damaged or of another kind.

    >>> model = load_reengineered("results/direct/resnet20-cifar10/binary/cat")      # doctest: +SKIP
    >>> model(images).argmax(1)
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder that it lies in.")
    for name, function in (
        ("student.safetensors", "seam.load_student"),
        ("source.safetensors", "seam.models.weights.open_source"),
    ):
        if (folder / name).is_file():
            raise UserError(f"{folder} holds {name} and no re-engineered model: open it by {function}.")
    tensors, metadata = load_tensors(folder / "masks.safetensors")
    if not {"source", "source_sha256", "classes"} <= metadata.keys():
        raise UserError(f"{folder}/masks.safetensors was not written by a search: run the workflow again.")
    origin = open_source(source or folder / metadata["source"], metadata["source_sha256"])
    groups: dict[str, dict[str, torch.Tensor]] = {"mask": {}, "head": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        groups[kind][name] = tensor
    try:
        bake(origin.module, unpack_bits(groups["mask"], origin.module))
        model = with_head(origin.module, len(origin.classes), len(metadata["classes"]))
        model.get_submodule("head").load_state_dict(groups["head"])
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{folder}/masks.safetensors does not fit its source model ({error}).") from error
    return _for_inference(model, metadata["classes"], origin.normalization)


def load_student(folder: str | Path) -> Any:
    """Return the student in `folder`: a plain module for inference, without gradients.

    It maps images [B, 3, H, W] to logits [B, n] over its attribute `classes`. The images are normalised by its
    attribute `normalization` (mean and standard deviation per channel). Raises UserError if a file is damaged.
    """
    path = Path(folder) / "student.safetensors"
    state, metadata = load_tensors(path)
    if "source_classes" not in metadata:
        raise UserError(f"{path} was not written by this workflow: delete it and run the workflow again.")
    module = build_model(locate_architecture(folder, metadata), metadata["source_classes"])
    replace_last_layer(module, metadata["last_layer"], len(metadata["classes"]))
    if problem := load_state(module, state, path):
        raise UserError(problem)
    return _for_inference(module, metadata["classes"], tuple(map(tuple, metadata["normalization"])))


def _for_inference(module: Any, classes: list[str], normalization: Any) -> Any:
    module.classes, module.normalization = classes, normalization
    return module.eval().requires_grad_(False)

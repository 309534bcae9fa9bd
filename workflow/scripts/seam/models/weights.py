"""Source models, as the workflow keeps them: one file of tensors whose metadata says what they are."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.errors import UserError
from seam.files import load_tensors, save_tensors, sha256
from seam.models.architectures import describe_architecture, trusted_architecture

if TYPE_CHECKING:
    import torch


MOST_OUTPUTS = 100_000  # of a model
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin", ".pth.tar", ".pt2")


@dataclass
class Source:
    """A trained model.

    module: maps normalised images [B, 3, H, W] to logits [B, len(classes)]; normalization: (mean, standard deviation)
    per channel, for images in 0..1; checksum: the SHA-256 of the architecture's file, None if it is not a file.
    """

    module: torch.nn.Module
    classes: list[str]
    normalization: Sequence[Sequence[float]]
    architecture: str
    checksum: str | None = None


def is_weights_file(weights: str) -> bool:
    """Return whether a config entry's `weights` is a file of the user, not `train`, `hub` or a name of torchvision."""
    return weights.endswith(WEIGHT_FILES)


def weights_origin(weights: str) -> str:
    """Return a config entry's `weights` as tables have it: `file` for a file of the user."""
    return "file" if is_weights_file(weights) else weights


def load_state(module: torch.nn.Module, state: dict[str, torch.Tensor], origin: str | os.PathLike[str]) -> str | None:
    """Load `state` into `module`. Returns None if it fits, else a sentence about `origin` that says why not.

    Weights of `module` that take no memory get some if it fits (seam.models.unallocated).
    """
    from torch.nn.parameter import is_lazy

    from seam.models.surgery import with_versions
    from seam.models.unallocated import allocate

    expected_state = module.state_dict()
    if lazy := [name for name, value in expected_state.items() if is_lazy(value)]:
        return f"{origin} cannot be loaded: {lazy[0]} is of a lazy layer of the architecture. Give the layer its sizes."
    # Checkpoints older than torch 0.4.1 lack this counter, which inference does not use.
    state = {name: value for name, value in expected_state.items() if name.endswith("num_batches_tracked")} | state
    missing, unknown = sorted(expected_state.keys() - state.keys()), sorted(state.keys() - expected_state.keys())
    misshapen = [name for name in expected_state if name in state and expected_state[name].shape != state[name].shape]
    advice = "Name the architecture that it was saved from, or give another file."
    if missing:
        others = f"and {len(missing) - 1} more are" if len(missing) > 1 else "is"
        return f"{origin} does not fit the architecture: {missing[0]} {others} missing in it. {advice}"
    if unknown:
        others = f", nor {len(unknown) - 1} more of its tensors" if len(unknown) > 1 else ""
        return f"{origin} does not fit the architecture, which has no {unknown[0]}{others}. {advice}"
    if misshapen:
        name = misshapen[0]
        shape, expected = tuple(state[name].shape), tuple(expected_state[name].shape)
        return f"{origin} does not fit the architecture and the classes: {name} is {shape}, not {expected}. {advice}"
    for name in expected_state:
        if problem := _numeric_problem(name, state[name], expected_state[name]):
            return f"{origin} cannot be used: {name} {problem}."
    allocate(module)
    module.load_state_dict(with_versions(state, expected_state))
    return None


def _numeric_problem(name: str, value: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Return why the numbers of `value` cannot become those of the model's tensor `expected`; None if they can."""
    import torch

    if expected.dtype.is_floating_point:
        if not value.dtype.is_floating_point:
            return f"holds numbers of type {_type_name(value)}, not floating-point ones: save the trained weights"
        try:
            numbers = value.to(expected.dtype)
            finite, negative = bool(torch.isfinite(numbers).all()), bool((numbers < 0).any())
        except RuntimeError:  # types without conversions, such as float4
            return f"holds numbers of type {_type_name(value)}, which torch cannot convert: save them as float32"
        if not finite:
            kind = _type_name(expected)
            return f"has values that are not finite as {kind}: train the model again, or take other weights"
        if negative and name.rpartition(".")[2] == "running_var":
            return "has negative variances: save the model's state_dict() again"
    elif not name.endswith("num_batches_tracked") and (value.dtype.is_floating_point or value.dtype.is_complex):
        kinds = f"{_type_name(value)}, not {_type_name(expected)}"
        return f"holds numbers of type {kinds}: save the model's state_dict() again"
    return None


def _type_name(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def save_source(path: str | os.PathLike[str], source: Source) -> None:
    """Write a source model, atomically."""
    metadata = {
        **describe_architecture(source.architecture, source.checksum),
        "classes": source.classes,
        "normalization": source.normalization,
    }
    save_tensors(path, source.module.state_dict(), metadata)


def open_source(folder: str | os.PathLike[str], checksum: str | None = None, architecture: str | None = None) -> Source:
    """Return the source model in `folder`/source.safetensors, in eval mode.

    architecture: `path.py:factory` if the model's architecture is a file. Its code runs, so it is never taken from the
    model's folder, and it must be the file that the model was made with. Raises UserError if the file is missing or
    damaged, or does not have the SHA-256 `checksum`, if one is given.
    """
    from seam.models.unallocated import build_unallocated

    path = Path(folder) / "source.safetensors"
    state, metadata = load_tensors(path)
    if not {"architecture", "classes", "normalization"} <= metadata.keys():
        raise UserError(f"{path} was not written by this workflow: delete it, and it is made again.")
    if checksum is not None and sha256(path) != checksum:
        raise UserError(
            f"{path} is not the source model that the masks were searched for: give its folder, or run again."
        )
    classes, normalization = read_classes(metadata, path), read_normalization(metadata, path)
    trusted, digest = trusted_architecture(path, metadata, architecture)
    module = build_unallocated(trusted, len(classes), digest)
    problem = load_state(module, state, path)
    if problem:
        raise UserError(problem)
    return Source(module.eval(), classes, normalization, trusted, digest)


def read_classes(metadata: dict[str, Any], path: str | os.PathLike[str]) -> list[str]:
    """Return the names of a model's outputs from the metadata of the file `path`. Raises UserError if it has none."""
    classes = metadata.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path} has no list of classes: delete it and run the workflow again.")
    if len(classes) > MOST_OUTPUTS:
        raise UserError(f"{path} has more than {MOST_OUTPUTS:,} classes: delete it and run the workflow again.")
    return classes


def read_normalization(metadata: dict[str, Any], path: str | os.PathLike[str]) -> tuple[tuple[float, ...], ...]:
    """Return (mean, standard deviation) per channel from the metadata of `path`. Raises UserError if it has none."""
    try:
        mean, std = (tuple(map(float, values)) for values in metadata["normalization"])
        if len(mean) == len(std) == 3 and all(map(math.isfinite, mean + std)) and min(std) > 0:
            return tuple(map(tuple, metadata["normalization"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{path} has no normalization (mean and standard deviation): delete it and run the workflow again.")

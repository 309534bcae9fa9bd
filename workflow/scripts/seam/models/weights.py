"""Trained weights: read from files, stored as source models, without running any code."""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

from seam.errors import UserError
from seam.files import load_tensors, save_tensors, sha256
from seam.models.architectures import (
    build_model,
    describe_architecture,
    locate_architecture,
)

WEIGHT_FILES = (".safetensors", ".pt", ".pth")


@dataclass
class Source:
    """A trained model: `module` maps normalised images [B, 3, H, W] to logits [B, len(classes)]."""

    module: object
    classes: list
    normalization: tuple
    architecture: str


def is_weights_file(weights):
    """Whether a config entry's `weights` is a file of one's own, not `train`, `hub` or torchvision's name of some."""
    return weights.endswith(WEIGHT_FILES)


def weights_origin(weights):
    """A config entry's `weights` as the tables have it: `file` for a file of one's own."""
    return "file" if is_weights_file(weights) else weights


def read_state(path):
    """The state dictionary (name: tensor) in a safetensors file or a torch checkpoint.

    Code in a pickle is never run (`weights_only`). Raises UserError for any other content.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    damaged = (OSError, RuntimeError, EOFError, ValueError, LookupError, SafetensorError)
    ending, start = Path(path).suffix, b""
    try:
        with Path(path).open("rb") as file:
            start = file.read(2)
        if ending == ".safetensors":  # noqa: SIM108 (too long for a line)
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"The weights file {path} does not exist.") from error
    except PermissionError as error:
        raise UserError(f"The weights file {path} cannot be read ({error.strerror}): mend its permissions.") from error
    except (*damaged, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        saved = start == b"PK" or start.startswith(b"\x80")  # by torch, or a pickle: not any other file
        if (isinstance(error, pickle.UnpicklingError) and saved) or "TorchScript" in str(error):
            raise UserError(
                f"{path} holds more than tensors, which is refused since unpickling could run code: "
                "save its state_dict() instead, best as safetensors."
            ) from error
        raise UserError(
            f"{path} is not a whole weights file of the kind that its name says ({ending}): copy or download it again."
        ) from error
    for key in ("state_dict", "model", "net"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(map(_is_tensor, state.items())):
        raise UserError(f"{path} holds no state dictionary (names and tensors): save the model's state_dict().")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _is_tensor(item):
    import torch

    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)


def load_state(module, state, origin):
    """Put `state` into `module`; None if it fits, else the sentence that says how it does not."""
    own = module.state_dict()
    # Checkpoints older than torch 0.4.1 lack this counter, which inference does not use.
    state = {n: t for n, t in own.items() if n.endswith("num_batches_tracked")} | state
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape]
    if missing:
        return f"{origin} does not fit the architecture: {missing[0]} is missing in it ({len(missing)} such)."
    if unknown:
        return f"{origin} does not fit the architecture, which has no {unknown[0]} ({len(unknown)} such)."
    if shapes:
        name, found, wanted = shapes[0], tuple(state[shapes[0]].shape), tuple(own[shapes[0]].shape)
        return f"{origin} does not fit the architecture and the classes: {name} is {found}, not {wanted}."
    module.load_state_dict(state)
    return None


def save_source(path, source):
    metadata = {
        **describe_architecture(source.architecture),
        "classes": source.classes,
        "normalization": source.normalization,
    }
    save_tensors(path, source.module.state_dict(), metadata)


def open_source(folder, checksum=None):
    """The source model that the workflow keeps in `folder`/source.safetensors, in eval mode.

    Raises UserError if `checksum`, a SHA-256, is given and the file has another.
    """
    path = Path(folder) / "source.safetensors"
    state, about = load_tensors(path)
    if "architecture" not in about:
        raise UserError(f"{path} was not written by this workflow: delete it, and it is made again.")
    if checksum is not None and sha256(path) != checksum:
        raise UserError(
            f"{path} is not the source model that the masks were searched for: give its folder, or run again."
        )
    architecture = locate_architecture(folder, about)
    module = build_model(architecture, len(about["classes"]))
    problem = load_state(module, state, path)
    if problem:
        raise UserError(problem)
    return Source(module.eval(), about["classes"], tuple(map(tuple, about["normalization"])), architecture)

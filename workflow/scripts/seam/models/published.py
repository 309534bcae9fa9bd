"""Trained weights of a config entry: where they come from, and how they become a source model."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seam.download import fetch
from seam.errors import UserError
from seam.log import log
from seam.models.architectures import AUXILIARY, build_model, torchvision_name
from seam.models.weights import Source, is_weights_file, load_state, save_source

if TYPE_CHECKING:
    import torch

# Complete SHA-256 of files whose publishers give 8 digits, as several independent public sources have it, all of them
# with these 8 digits. Other files are pinned on first use: see `fetch`.
SHA256 = {
    "cifar10_resnet20-4118986f.pt": "4118986f0df73003d572b0e397f0ac7b3f60af1f31aff3d2da164536e36f6ec8",
    "resnet18-f37072fd.pth": "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    "resnet50-0676ba61.pth": "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
}
HUB = "https://github.com/chenyaofo/pytorch-cifar-models/releases/download/"
HUB_MOST = 100_000_000  # bytes of a hub's file
HUB_FILES = {  # (architecture, kind of data set): file, whose name ends with the first 8 digits of its SHA-256
    ("resnet20", "cifar10"): "resnet/cifar10_resnet20-4118986f.pt",
    ("resnet20", "cifar100"): "resnet/cifar100_resnet20-23dac2f1.pt",
    ("vgg16_bn", "cifar10"): "vgg/cifar10_vgg16_bn-6ee7ea24.pt",
    ("vgg16_bn", "cifar100"): "vgg/cifar100_vgg16_bn-7d8c4031.pt",
}
CONTAINERS = ("state_dict", "model", "net")  # keys under which training scripts save the weights
PREFIX = "module."  # which torch's DataParallel puts before each name
HUB_NORMALIZATION = {  # (mean, standard deviation) per channel that the checkpoints were trained with
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}


def fetch_weights(
    architecture: str,
    weights: str,
    kind: str,
    class_lists: Sequence[list[str]],
    path: str | os.PathLike[str],
    normalization: Sequence[Sequence[float]] | None = None,
    cache: str | os.PathLike[str] = "data/weights",
) -> None:
    """Write the trained model of a config entry to `path`, from a hub, torchvision or a local file.

    weights: `hub`, a name of torchvision's weights or a file; kind: the kind of the model's data set;
    class_lists: lists of class names that its outputs may stand for, of which the first with the right length is used;
    normalization: of its images, if the weights have no usual one.

    Raises UserError if there are no such weights or they do not fit the architecture.
    """
    if weights == "hub":
        if (architecture, kind) not in HUB_FILES:
            known = "; ".join(f"{architecture} on {kind}" for architecture, kind in HUB_FILES)
            raise UserError(f"weights: hub has no {architecture} for data of kind {kind}, only {known}.")
        name = HUB_FILES[architecture, kind]
        checksum = _checksum(r"-(\w{8})\.pt", name)
        file = fetch(HUB + name, Path(cache) / Path(name).name, checksum=checksum, most=HUB_MOST)
        state, usual = read_state(file), HUB_NORMALIZATION[kind]
    elif architecture.startswith("torchvision:") and not is_weights_file(weights):
        state, usual = _torchvision_state(architecture, weights, cache)
    else:
        state, usual = read_state(weights), None
    if architecture.startswith("torchvision:"):
        state = {name: value for name, value in state.items() if name.partition(".")[0] not in AUXILIARY}
    normalization = normalization or usual
    if normalization is None:
        raise UserError(f"{weights} does not say how its images were normalised: give the model a normalization.")
    problem = None
    for classes in class_lists:
        module = build_model(architecture, len(classes))
        problem = load_state(module, state, weights)
        if problem is None:
            return save_source(path, Source(module, classes, normalization, architecture))
    raise UserError(problem)


def _torchvision_state(
    architecture: str, weights: str, cache: str | os.PathLike[str]
) -> tuple[dict[str, torch.Tensor], Sequence[Sequence[float]]]:
    """Return (state dictionary, normalization) of torchvision's published weights."""
    import torchvision

    enum = torchvision.models.get_model_weights(torchvision_name(architecture))
    if weights not in enum.__members__:
        raise UserError(f"torchvision has no weights {weights} for {architecture}, only {', '.join(enum.__members__)}.")
    url = enum[weights].url
    name = url.rsplit("/", 1)[-1]
    megabytes = enum[weights].meta.get("_file_size", 4000)  # of 2^20 bytes
    most = round(1.1 * megabytes * 2**20) + 1_000_000
    state = read_state(fetch(url, Path(cache) / name, checksum=_checksum(r"-([0-9a-f]{8,})\.pth", name), most=most))
    transforms = enum[weights].transforms()
    normalization = tuple(tuple(getattr(transforms, name)) for name in ("mean", "std"))
    # DenseNet's files have the names of torch 0.3: "denselayer1.norm.1.weight" is norm1 now.
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=\d\.)", r"\1", key): value for key, value in state.items()}
    return state, normalization


def _checksum(pattern: str, name: str) -> str:
    """Return the SHA-256 of a file if it is known, or else its first characters, which the file's name has."""
    match = re.search(pattern, name)
    assert match, f"{name} has no checksum in its name"
    return SHA256.get(Path(name).name, match[1])


def read_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Return the state dictionary in a safetensors file or a torch checkpoint.

    Code in a pickle is never run (`weights_only`). Raises UserError for any other content, for two state dictionaries
    in one file, and for tensors that are not plain arrays of numbers.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    damaged = (OSError, RuntimeError, EOFError, ValueError, LookupError, SafetensorError)
    ending, start = Path(path).suffix, b""
    if Path(path).exists() and not Path(path).is_file():  # opening a FIFO would wait without end
        raise UserError(f"{path} is no file: give a file of weights.")
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
        raise UserError(f"The weights file {path} cannot be read ({error.strerror}): fix its permissions.") from error
    except (*damaged, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        is_pickle = start == b"PK" or start.startswith(b"\x80")  # torch's archives, or a bare pickle
        if (isinstance(error, pickle.UnpicklingError) and is_pickle) or "TorchScript" in str(error):
            raise UserError(
                f"{path} holds more than tensors, which is refused since unpickling could run code: "
                "save its state_dict() instead, best as safetensors."
            ) from error
        raise UserError(
            f"{path} is not a whole weights file of the kind that its name says ({ending}): copy or download it again."
        ) from error
    state = _state_dictionary(state, path)
    for name, value in state.items():
        if unusual := _unusual_storage(value):
            raise UserError(f"{path} has {name} as a {unusual} tensor: save it as a plain one, with its numbers.")
    return state


def _state_dictionary(content: object, path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Return the state dictionary in the content of a file, without the prefix that torch's DataParallel gives names.

    Raises UserError if there is none, or if the file leaves open which of two values a name has.
    """
    for _ in range(2):  # such as {"model": {"state_dict": ...}}, no deeper
        if not isinstance(content, dict):
            break
        inner = {key: content[key] for key in CONTAINERS if isinstance(content.get(key), dict)}
        keys = [key for key, value in inner.items() if any(map(_is_tensor, value.items()))] or list(inner)[:1]
        if len(keys) > 1:
            raise UserError(f"{path} holds weights under {' and '.join(keys)}: save one state dictionary alone.")
        if not keys:
            break
        if not inner[keys[0]].keys().isdisjoint(content):
            raise UserError(f"{path} holds weights under {keys[0]} and beside it: save one state dictionary alone.")
        content = content[keys[0]]
        log.info("%s: its weights are those under %s", path, keys[0])
    if not isinstance(content, dict) or not content or not all(map(_is_tensor, content.items())):
        raise UserError(f"{path} holds no state dictionary (names and tensors): save the model's state_dict().")
    if twice := [name for name in content if f"{PREFIX}{name}" in content]:
        raise UserError(
            f"{path} has both {twice[0]} and {PREFIX}{twice[0]} ({len(twice)} such): save one of the two alone."
        )
    if any(name.startswith(PREFIX) for name in content):
        log.info("%s: the prefix %s of its names is left out", path, PREFIX)
    return {name.removeprefix(PREFIX): value for name, value in content.items()}


def _unusual_storage(value: torch.Tensor) -> str | None:
    """Return in a word how a tensor is stored, if it is not a plain array of numbers."""
    import torch

    if value.is_nested:
        return "nested"
    if value.is_quantized:
        return "quantized"
    if value.is_meta:
        return "meta"
    return None if value.layout == torch.strided else "sparse"


def _is_tensor(item: tuple[object, object]) -> bool:
    import torch

    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)

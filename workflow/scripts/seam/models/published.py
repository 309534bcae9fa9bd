"""Trained weights of a config entry: where they come from, and how they become a source model."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.download import fetch
from seam.errors import UserError
from seam.log import log
from seam.models.architectures import AUXILIARY, build_model, torchvision_name
from seam.models.classes import find_names, match_classes, names_in
from seam.models.fitting import choose_state, describe_content, differing_outputs, find_candidates
from seam.models.unpickling import read_checkpoint
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
REFUSED = {"it is TorchScript": "TorchScript", "it is a bare pickle": "a bare pickle"}
HUB = "https://github.com/chenyaofo/pytorch-cifar-models/releases/download/"
HUB_MOST = 100_000_000  # bytes of a hub's file
HUB_FILES = {  # (architecture, kind of data set): file, whose name ends with the first 8 digits of its SHA-256
    ("resnet20", "cifar10"): "resnet/cifar10_resnet20-4118986f.pt",
    ("resnet20", "cifar100"): "resnet/cifar100_resnet20-23dac2f1.pt",
    ("vgg16_bn", "cifar10"): "vgg/cifar10_vgg16_bn-6ee7ea24.pt",
    ("vgg16_bn", "cifar100"): "vgg/cifar100_vgg16_bn-7d8c4031.pt",
}
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
    key: str | None = None,
    outputs: Sequence[Sequence[str]] | str | None = None,
) -> None:
    """Write the trained model of a config entry to `path`, from a hub, torchvision or a local file.

    weights: `hub`, a name of torchvision's weights or a file; kind: the kind of the model's data set;
    class_lists: lists of class names that its outputs may stand for, of which the first with the right length is used;
    normalization: of its images, if the weights have no usual one; key: the place of the weights in a local file that
    has several, such as `state_dict_ema`.
    outputs: names of each of the model's outputs, if the classes of its data set are to be found among them by name, or
    `weights` if the weights bring the names; class_lists[0] then has the data set's classes.

    Raises UserError if there are no such weights or they do not fit the architecture.
    """
    state, usual, categories = None, None, None
    if weights == "hub":
        if (architecture, kind) not in HUB_FILES:
            known = "; ".join(f"{architecture} on {kind}" for architecture, kind in HUB_FILES)
            raise UserError(f"weights: hub has no {architecture} for data of kind {kind}, only {known}.")
        name = HUB_FILES[architecture, kind]
        checksum = _checksum(r"-(\w{8})\.pt", name)
        file = fetch(HUB + name, Path(cache) / Path(name).name, checksum=checksum, most=HUB_MOST)
        state, usual = read_state(file), HUB_NORMALIZATION[kind]
    elif architecture.startswith("torchvision:") and not is_weights_file(weights):
        state, usual, categories = _torchvision_state(architecture, weights, cache)
    normalization = normalization or usual
    if normalization is None:
        raise UserError(f"{weights} does not say how its images were normalised: give the model a normalization.")
    if outputs is not None:
        if isinstance(outputs, str):
            if categories is None:
                outputs = [[label] for label in _names_of_file(weights)]
            else:
                outputs = imagenet_outputs(categories, class_lists[-1])
        class_lists = [match_classes(outputs, class_lists[0], f"The weights {weights}")]
    problem = None
    for classes in class_lists:
        module = build_model(architecture, len(classes))
        tensors = read_weights(weights, architecture, module, key) if state is None else state
        problem = load_state(module, tensors, weights)
        if problem is None:
            return save_source(path, Source(module, list(classes), normalization, architecture))
        if number := differing_outputs(module, tensors, len(classes)):
            named = f"the images show {len(classes)} classes" if outputs is None else f"{len(classes)} are named"
            advice = "name the outputs in order under classes (cifar10, a list, or a file)"
            problem = f"{weights} has {number} outputs, but {named}: {advice}."
    raise UserError(problem)


def imagenet_outputs(categories: Sequence[str], wnids: Sequence[str]) -> list[list[str]]:
    """Return the names of each output of a model that knows ImageNet's classes: its label, and its WNID.

    categories: of torchvision's weights. wnids: of all classes, in the same order. Weights that know other classes have
    their categories alone.

    >>> imagenet_outputs(["tench", "goldfish"], ["n01440764", "n01443537"])
    [['tench', 'n01440764'], ['goldfish', 'n01443537']]
    """
    if len(categories) != len(wnids):
        return [[label] for label in categories]
    return [[label, wnid] for label, wnid in zip(categories, wnids, strict=True)]


def published_categories(architecture: str, weights: str) -> list[str]:
    """Return the names of the outputs of torchvision's published weights."""
    import torchvision

    return list(torchvision.models.get_model_weights(torchvision_name(architecture))[weights].meta["categories"])


def _names_of_file(weights: str) -> list[str]:
    """Return the class names that a weights file brings. Raises UserError if it has none."""
    names = None
    if weights.endswith(".safetensors"):
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(weights, framework="pt") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, OSError):  # `read_weights` says what is wrong
            metadata = {}
        for value in metadata.values():
            with contextlib.suppress(ValueError, RecursionError):
                content = json.loads(value)
                names = names or names_in(content) or find_names(content)
    else:
        names = find_names(read_content(weights))
    if names is None:
        raise UserError(
            f"{weights} does not bring the names of its classes: list them under classes, in the order of the outputs."
        )
    return names


def _torchvision_state(
    architecture: str, weights: str, cache: str | os.PathLike[str]
) -> tuple[dict[str, torch.Tensor], Sequence[Sequence[float]], list[str]]:
    """Return (state dictionary, normalization, names of the outputs) of torchvision's published weights."""
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
    return _torchvision_names(state), normalization, list(enum[weights].meta["categories"])


def _checksum(pattern: str, name: str) -> str:
    """Return the SHA-256 of a file if it is known, or else its first characters, which the file's name has."""
    match = re.search(pattern, name)
    assert match, f"{name} has no checksum in its name"
    return SHA256.get(Path(name).name, match[1])


def read_weights(
    path: str | os.PathLike[str], architecture: str, module: torch.nn.Module, key: str | None = None
) -> dict[str, torch.Tensor]:
    """Return the weights of `module`, which has this architecture, in a file of the user.

    They are found by their names and shapes (`seam.models.fitting`). key: the place of the state dictionary in the file
    if several fit. Code in the file is never run. Raises UserError for any other content, and for tensors that are not
    plain arrays of numbers. Weights that do not fit are returned, for `load_state` to say what is wrong.
    """
    content = read_content(path)
    candidates = find_candidates(content, path)
    if not candidates:
        raise UserError(
            f"{path} holds no state dictionary (names and tensors) but {describe_content(content)}: save the model's "
            "state_dict()."
        )
    if architecture.startswith("torchvision:"):
        candidates = [replace(each, state=_torchvision_names(each.state)) for each in candidates]
    for candidate in candidates:
        _require_plain(candidate.state, path)
    return choose_state(candidates, module, path, key)


def read_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Return the state dictionary of a published file, which holds nothing else."""
    candidates = find_candidates(read_content(path), path)
    if len(candidates) != 1:
        raise UserError(f"{path} holds {len(candidates)} state dictionaries, not one: delete it to download it again.")
    _require_plain(candidates[0].state, path)
    return candidates[0].state


def read_content(path: str | os.PathLike[str]) -> Any:
    """Return the content of a safetensors file or a torch checkpoint.

    No code in a file is run: objects of unknown classes are placeholders. Raises UserError if it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    ending = Path(path).suffix
    if Path(path).exists() and not Path(path).is_file():  # opening a FIFO would wait without end
        raise UserError(f"{path} is no file: give a file of weights.")
    try:
        with Path(path).open("rb"):  # safetensors reports a file without read permission as missing
            pass
        if ending == ".safetensors":
            return load_file(path)
        content, has_placeholders = read_checkpoint(path)
        if has_placeholders:
            log.info("%s: objects that are not tensors are skipped, and no code in it is run", path)
        return content
    except FileNotFoundError as error:
        raise UserError(f"The weights file {path} does not exist: correct its path.") from error
    except PermissionError as error:
        raise UserError(f"The weights file {path} cannot be read ({error.strerror}): fix its permissions.") from error
    except (OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        if str(error) in REFUSED:
            raise UserError(
                f"{path} is {REFUSED[str(error)]}, which is refused since loading it could run code: save its "
                "state_dict() instead, best as safetensors."
            ) from error
        raise UserError(
            f"{path} is not a whole weights file of the kind that its name says ({ending}): copy or download it again."
        ) from error


def _torchvision_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state without auxiliary heads, and under today's names.

    DenseNet's files have the names of torch 0.3: "denselayer1.norm.1.weight" is norm1 now.
    """
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=\d\.)", r"\1", name): value
        for name, value in state.items()
        if not set(AUXILIARY) & set(name.split("."))
    }


def _require_plain(state: dict[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    for name, value in state.items():
        if unusual := _unusual_storage(value):
            raise UserError(f"{path} has {name} as a {unusual} tensor: save it as a plain one, with its numbers.")


def _unusual_storage(value: torch.Tensor) -> str | None:
    """Return in a word how a tensor is stored, if it is not a plain array of numbers."""
    return getattr(value, "unusual", None)

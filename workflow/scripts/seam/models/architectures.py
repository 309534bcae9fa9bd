"""Architectures: registered names, torchvision models and factories in files of the user."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.errors import UserError, one_line
from seam.files import sha256

if TYPE_CHECKING:
    import torch

ARCHITECTURES = ("resnet20", "vgg16_bn")
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception


def build_model(architecture: str, classes: int) -> torch.nn.Module:
    """Return a new module of this architecture with `classes` outputs, randomly initialised.

    architecture: one of ARCHITECTURES, `torchvision:NAME` or `file.py:factory`. Raises UserError if it is unknown or
    if the user's file fails.
    """
    if architecture in ARCHITECTURES:
        from seam.models import cifar

        return getattr(cifar, architecture)(classes)
    if architecture.startswith("torchvision:"):
        return _torchvision_model(architecture, classes)
    path, _, factory = architecture.rpartition(":")
    if not path.endswith(".py"):
        names = ", ".join(ARCHITECTURES)
        raise UserError(f"{architecture} is no known architecture: write {names}, torchvision:NAME or file.py:factory.")
    if not Path(path).is_file():
        raise UserError(f"{path}, the file of architecture {architecture}, does not exist: put it back there.")
    return _model_of_file(architecture, path, factory, classes)


def require_classifier(module: torch.nn.Module, outputs: int, size: tuple[int, int], owner: str) -> None:
    """Raise UserError unless `module` has parameters and maps images [B, 3, *size] to logits [B, outputs].

    Sets the module to eval mode. `owner` begins the sentence of an error: "The model mine".
    """
    import torch

    parameter = next(module.parameters(), None)
    if parameter is None:
        raise UserError(f"{owner} has no parameters: let its architecture have layers to train.")
    height, width = size
    try:
        with torch.no_grad():
            logits = module.eval()(torch.zeros(2, 3, height, width, device=parameter.device))
    except Exception as error:  # the user's own code can raise anything
        raise UserError(
            f"{owner} does not run on images of {height} x {width} px ({one_line(error)}): correct its architecture, "
            "or the size of its data set."
        ) from error
    if not isinstance(logits, torch.Tensor):
        kind = type(logits).__name__
        raise UserError(f"{owner} gives an object of type {kind}: let it give the logits alone, a tensor.")
    if logits.shape != (2, outputs):
        raise UserError(
            f"{owner} gives outputs of shape {tuple(logits.shape)} for two images, not {(2, outputs)}, one of each "
            "class: correct its architecture, whose function is given the number of classes."
        )


def architecture_file(architecture: str) -> str | None:
    """Return the SHA-256 of the user's file that defines the architecture, or None if it is not in such a file."""
    path = architecture.rpartition(":")[0]
    return sha256(path) if path.endswith(".py") else None


def describe_architecture(architecture: str) -> dict[str, Any]:
    """Return the metadata that files keep of the architecture: its name, and the digest of the user's file.

    The name has the absolute path of the user's file. Through the digest, everything made from the model depends on
    the file's content.
    """
    path, _, factory = architecture.rpartition(":")
    name = f"{Path(path).resolve()}:{factory}" if path.endswith(".py") else architecture
    return {"architecture": name, "architecture_sha256": architecture_file(architecture)}


def locate_architecture(folder: str | os.PathLike[str], description: dict[str, Any]) -> str:
    """Return the architecture that `describe_architecture` described in a file in `folder`.

    If the user's file is not at its old path, because the project was moved, it is searched in the parents of `folder`
    under the end of that path, and recognised by its digest.
    """
    path, _, factory = description["architecture"].rpartition(":")
    if path.endswith(".py") and not Path(path).is_file():
        parts = Path(path).parts
        for parent in Path(folder).resolve().parents:
            for count in range(1, len(parts)):
                candidate = parent.joinpath(*parts[-count:])
                if candidate.is_file() and sha256(candidate) == description.get("architecture_sha256"):
                    return f"{candidate}:{factory}"
    return description["architecture"]


def _model_of_file(architecture: str, path: str, factory: str, classes: int) -> torch.nn.Module:
    from torch import nn

    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    file = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).parent))  # the file may import its neighbours
    try:
        spec.loader.exec_module(file)
        if not callable(getattr(file, factory, None)):
            raise UserError(f"{path} has no function {factory}, which architecture {architecture} names.")
        module = getattr(file, factory)(classes)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code can raise anything
        raise UserError(
            f"{path}, the file of architecture {architecture}, fails ({one_line(error)}): correct it."
        ) from error
    finally:
        sys.path.pop(0)
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise UserError(f"{architecture} gives an object of type {kind}: let it return a torch.nn.Module.")
    return module


def _torchvision_model(architecture: str, classes: int) -> torch.nn.Module:
    import torchvision

    name = architecture.removeprefix("torchvision:")
    try:
        module: Any = torchvision.models.get_model(name, weights=None, num_classes=classes)
    except ValueError as error:
        raise UserError(f"torchvision has no model called {name}.") from error
    if hasattr(module, "aux_logits"):  # GoogLeNet and Inception: give one output, also in training
        module.aux_logits, module.transform_input = False, True  # inputs as the trained weights expect them
        for head in AUXILIARY:
            if hasattr(module, head):
                setattr(module, head, None)
    return module

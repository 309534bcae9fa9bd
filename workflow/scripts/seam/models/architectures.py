"""Architectures: registered names, torchvision models and factories in files of the user."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seam.errors import UserError, cannot_read, one_line
from seam.files import is_sha256, sha256

if TYPE_CHECKING:
    import torch

ARCHITECTURES = ("resnet20", "vgg16_bn")
# How the parameter of a factory is called that takes the number of classes.
CLASS_COUNT = re.compile(r"class|^n_?(out|labels)|num_(out|labels)|^outputs?$|^out_(features|dim|channels)$")
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception


def build_model(architecture: str, classes: int, checksum: str | None = None) -> torch.nn.Module:
    """Return a new module of this architecture with `classes` outputs, randomly initialised.

    architecture: one of ARCHITECTURES, `torchvision:NAME`, `timm:NAME` or `file.py:factory`. The code of a file
    runs: never take its name from a file of results (see `trusted_architecture`). checksum: the SHA-256 that the file
    must have, if given. Raises UserError if the architecture is unknown, if the file has another digest or if its code
    fails.
    """
    if architecture in ARCHITECTURES:
        from seam.models import cifar

        return getattr(cifar, architecture)(classes)
    if architecture.startswith("torchvision:"):
        return _torchvision_model(architecture, classes)
    if architecture.startswith("timm:"):
        return import_timm().create_model(timm_name(architecture), pretrained=False, num_classes=classes)
    path, _, factory = architecture.rpartition(":")
    if not path.endswith(".py"):
        names = ", ".join(ARCHITECTURES)
        raise UserError(
            f"{architecture} is no known architecture: write {names}, torchvision:NAME, timm:NAME or file.py:factory."
        )
    if not Path(path).is_file():
        raise UserError(f"{path}, the file of architecture {architecture}, does not exist: put it back there.")
    return _model_of_file(architecture, path, factory, classes, checksum)


def require_classifier(
    module: torch.nn.Module,
    outputs: int,
    size: tuple[int, int],
    owner: str,
    advice: str = "correct its architecture, or the size of its data set",
) -> None:
    """Raise UserError unless `module` has parameters and maps images [B, 3, *size] to logits [B, outputs].

    Sets the module to eval mode. `owner` begins the sentence of an error: "The model mine". `advice` ends it if the
    module does not run.
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
            f"{owner} does not run on images of {height} x {width} px ({one_line(error)[:300]}): {advice}."
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


def describe_architecture(architecture: str, checksum: str | None = None) -> dict[str, Any]:
    """Return the metadata that files keep of the architecture: its name, and the digest of the user's file.

    The name has the absolute path of the user's file. Through the digest, everything made from the model depends on
    the file's content. checksum: the digest of the file whose code ran, if it is known; else the file is read.
    """
    path, _, factory = architecture.rpartition(":")
    name = f"{Path(path).resolve()}:{factory}" if path.endswith(".py") else architecture
    return {"architecture": name, "architecture_sha256": checksum or architecture_file(architecture)}


def trusted_architecture(
    file: str | os.PathLike[str], metadata: dict[str, Any], given: str | None
) -> tuple[str, str | None]:
    """Return (architecture, SHA-256 of its file) of the model in `file`, from what `describe_architecture` described.

    Nobody knows who wrote the metadata, so they never name code that runs. If the architecture is a file, `given` must
    name it, and it must be the file that the model was made with: it has the recorded digest. The digest is None for a
    registered architecture or a model of torchvision. Raises UserError if `given` is needed or another architecture.
    """
    recorded, digest = metadata.get("architecture"), metadata.get("architecture_sha256")
    if not isinstance(recorded, str) or not recorded.isprintable():
        raise UserError(f"{file} was not written by this workflow: delete it, and it is made again.")
    path, _, factory = recorded.rpartition(":")
    if not path.endswith(".py"):
        if given is not None and given != recorded:
            raise UserError(f"{file} has the architecture {recorded}, not {given}: pass the right one, or none.")
        return recorded, None
    if not is_sha256(digest):
        raise UserError(f"{file} has no digest of its architecture's file {path}: run the workflow again to make it.")
    name = f"{Path(path).name}:{factory}"
    if given is None:
        raise UserError(
            f"{file} was made with the architecture {recorded} (SHA-256 {digest}), a file whose code would run: if you "
            f'trust your copy of it, pass architecture="path/to/{name}".'
        )
    given_file, _, own_factory = given.rpartition(":")
    if not given_file.endswith(".py"):
        raise UserError(f'{file} needs the architecture {name}, not {given}: pass architecture="path/to/{name}".')
    if not Path(given_file).is_file():
        raise UserError(f"{given_file}, the file of architecture {given}, does not exist: correct its path.")
    if own_factory != factory or sha256(given_file) != digest:
        raise UserError(
            f"{given} is not the architecture that {file} was made with (SHA-256 {digest}): pass {name} as it was, or "
            "run the workflow again."
        )
    return given, digest


def _model_of_file(architecture: str, path: str, factory: str, classes: int, checksum: str | None) -> torch.nn.Module:
    """Return the module of the user's file.

    The file's text is compiled here, so that the code that runs is the text that was checked, and no cache beside it.
    Neither the file nor its neighbours take the place of a module of the same name: the file gets a name of its own,
    and its folder comes last among the places of modules.
    """
    from torch import nn

    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    digest = hashlib.sha256(content).hexdigest()
    if checksum is not None and digest != checksum:
        raise UserError(f"{path}, the file of architecture {architecture}, has changed: put it back, or run again.")
    spec = importlib.util.spec_from_file_location(f"seam_architecture_{digest}", path)
    assert spec is not None
    file = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    folder = str(Path(path).resolve().parent)
    sys.path.append(folder)  # the file may import its neighbours
    try:
        exec(compile(content, path, "exec"), file.__dict__)
        if not callable(getattr(file, factory, None)):
            raise UserError(f"{path} has no function {factory}, which architecture {architecture} names.")
        module = _call_factory(getattr(file, factory), classes)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code can raise anything
        raise UserError(
            f"{path}, the file of architecture {architecture}, fails ({one_line(error)}): correct it."
        ) from error
    finally:
        if folder in sys.path:  # the last one: the folder may have been there before
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise UserError(f"{architecture} gives an object of type {kind}: let it return a torch.nn.Module.")
    return module


def _call_factory(factory: Callable[..., Any], classes: int) -> Any:
    """Call a user's factory with the number of classes as it takes it: by name, as the first argument, or not at all.

    A factory that takes no such argument makes a model with a fixed number of outputs, which is checked later.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # written in C
        return factory(classes)
    for parameter in parameters:
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_named and CLASS_COUNT.search(parameter.name.lower()):
            return factory(**{parameter.name: classes})
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    required = [p for p in positional if p.default is p.empty and p.kind != p.VAR_POSITIONAL]
    takes_one = required or (positional and positional[0].kind == inspect.Parameter.VAR_POSITIONAL)
    return factory(classes) if takes_one else factory()


def _torchvision_model(architecture: str, classes: int) -> torch.nn.Module:
    import torchvision

    module: Any = torchvision.models.get_model(torchvision_name(architecture), weights=None, num_classes=classes)
    if hasattr(module, "aux_logits"):  # GoogLeNet and Inception: give one output, also in training
        module.aux_logits, module.transform_input = False, True  # inputs as the trained weights expect them
        for head in AUXILIARY:
            if hasattr(module, head):
                setattr(module, head, None)
    return module


def import_timm() -> Any:
    """Return the package timm. Raises UserError if it is not installed."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UserError(f"A model of timm needs the package timm ({error}): pip install timm.") from error


def timm_name(architecture: str) -> str:
    """Return NAME of `timm:NAME`. Raises UserError unless it is a model of timm, so that nothing is downloaded."""
    name = architecture.removeprefix("timm:")
    if name not in import_timm().list_models():
        raise UserError(f"timm has no model called {name}: timm.list_models() has the names, without those of weights.")
    return name


def torchvision_name(architecture: str) -> str:
    """Return NAME of `torchvision:NAME`. Raises UserError unless it is a classification model of torchvision."""
    import torchvision

    name = architecture.removeprefix("torchvision:")
    if name.lower() not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"torchvision has no model called {name} for classification.")
    return name

"""Architectures: registered names, torchvision models and factories in files of the user."""

import importlib.util
import sys
from pathlib import Path

from seam.errors import UserError, one_line
from seam.files import sha256

ARCHITECTURES = ("resnet20", "vgg16_bn")
AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception


def build_model(architecture, classes):
    """A new module of this architecture with `classes` outputs, randomly initialised."""
    if architecture in ARCHITECTURES:
        from seam.models import cifar

        return getattr(cifar, architecture)(classes)
    if architecture.startswith("torchvision:"):
        return _torchvision(architecture, num_classes=classes)
    path, _, factory = architecture.rpartition(":")
    if not path.endswith(".py"):
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{architecture} is no known architecture: write {known}, torchvision:NAME or file.py:factory.")
    if not Path(path).is_file():
        raise UserError(f"{path}, the file of architecture {architecture}, does not exist: put it back there.")
    from torch import nn

    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    file = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).parent))  # the file may import what lies beside it
    try:
        spec.loader.exec_module(file)
        if not callable(getattr(file, factory, None)):
            raise UserError(f"{path} has no function {factory}, which architecture {architecture} names.")
        module = getattr(file, factory)(classes)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        said = one_line(error)
        raise UserError(f"{path}, the file of architecture {architecture}, fails ({said}): correct it.") from error
    finally:
        sys.path.pop(0)
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise UserError(f"{architecture} gives an object of type {kind}: let it return a torch.nn.Module.")
    return module


def require_classifier(module, outputs, size, what):
    """Raises UserError unless `module` maps images [B, 3, *size] to logits [B, outputs], and has parameters.

    It is left in eval mode. what: whose it is, for the sentence: "The model mine".
    """
    import torch

    parameter = next(module.parameters(), None)
    if parameter is None:
        raise UserError(f"{what} has no parameters: let its architecture have layers to train.")
    height, width = size
    try:
        with torch.no_grad():
            found = module.eval()(torch.zeros(2, 3, height, width, device=parameter.device))
    except Exception as error:  # whatever the user's own code raises
        said = one_line(error)
        raise UserError(
            f"{what} does not run on images of {height} x {width} px ({said}): correct its architecture, or the size "
            "of its data set."
        ) from error
    if not isinstance(found, torch.Tensor):
        kind = type(found).__name__
        raise UserError(f"{what} gives an object of type {kind}: let it give the logits alone, a tensor.")
    if found.shape != (2, outputs):
        raise UserError(
            f"{what} gives outputs of shape {tuple(found.shape)} for two images, not {(2, outputs)}, one of each "
            "class: correct its architecture, whose function is given the number of classes."
        )


def architecture_file(architecture):
    """The SHA-256 of the file of an architecture of one's own, which can change what a model computes; else None."""
    path = architecture.rpartition(":")[0]
    return sha256(path) if path.endswith(".py") else None


def describe_architecture(architecture):
    """What a file keeps of the architecture: of one's own file the absolute path, and the digest, so that all that is
    made of the model depends on it."""
    path, _, factory = architecture.rpartition(":")
    name = f"{Path(path).resolve()}:{factory}" if path.endswith(".py") else architecture
    return {"architecture": name, "architecture_sha256": architecture_file(architecture)}


def locate_architecture(folder, about):
    """The architecture, from what `described` gave, kept in `folder`.

    One's own file that is no longer where it was is looked for above the folder, in the places that its path allows and
    by its digest: a project can be moved.
    """
    path, _, factory = about["architecture"].rpartition(":")
    if path.endswith(".py") and not Path(path).is_file():
        parts = Path(path).parts
        for above in Path(folder).resolve().parents:
            for number in range(1, len(parts)):
                place = above.joinpath(*parts[-number:])
                if place.is_file() and sha256(place) == about.get("architecture_sha256"):
                    return f"{place}:{factory}"
    return about["architecture"]


def _torchvision(architecture, **options):
    import torchvision

    name = architecture.removeprefix("torchvision:")
    try:
        module = torchvision.models.get_model(name, weights=None, **options)
    except ValueError as error:
        raise UserError(f"torchvision has no model called {name}.") from error
    if hasattr(module, "aux_logits"):  # GoogLeNet, Inception: one output in training, too, and inputs as their weights'
        module.aux_logits, module.transform_input = False, True
        for name in AUXILIARY:  # the heads that only training needs
            if hasattr(module, name):
                setattr(module, name, None)
    return module

"""Check the entries of `models`."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from seam.config.checks.datasets import check_image_size
from seam.config.wording import alternatives, did_you_mean, hint, require_known_names, shown
from seam.data.kinds.registry import class_names
from seam.errors import UserError
from seam.models.architectures import ARCHITECTURES
from seam.models.classes import match_classes, read_class_file
from seam.models.published import HUB_FILES
from seam.models.weights import WEIGHT_FILES, is_weights_file

KNOWN_CLASSES = ("cifar10", "cifar100", "imagenet")  # kinds of data sets whose names are known without their images
IMAGENET_CLASSES = 1000  # the outputs of torchvision's trained classification models


def check_model(key: str, model: dict[str, Any], datasets: dict[str, Any], in_config: bool = True) -> None:
    """Raise UserError if a source model's architecture, weights and data set do not exist or do not fit.

    in_config: whether the model is an entry of a config. The command `seam shrink` does not train source models, its
    paths may have braces, and the data set may have classes that the model does not know.
    """
    require_known_names(f"{key}.dataset", [model["dataset"]], datasets, "the name of a data set under datasets")
    dataset = datasets[model["dataset"]]
    _check_architecture(f"{key}.architecture", model["architecture"])
    check_image_size(f"{key}.architecture is", model, model["dataset"], dataset)
    _check_weights(f"{key}.weights", model, dataset, in_config)
    _check_classes(f"{key}.classes", model, dataset, in_config)
    for name in ("architecture", "weights", "classes") if in_config else ():
        if isinstance(model.get(name), str) and set("{}") & set(model[name]):
            raise UserError(
                f"{key}.{name} is {shown(model[name])}, but braces in a path are wildcards to Snakemake: rename it."
            )
    if "training" in model and model["weights"] != "train":
        raise UserError(
            f"{key}.training is given, but weights is {shown(model['weights'])}, not train: drop one of the two."
        )
    if model["normalization"] is None and is_weights_file(model["weights"]):
        raise UserError(
            f"{key}.normalization is missing, but a weights file of your own needs it: "
            "give the mean and std that the model was trained with."
        )


def model_classes(model: dict[str, Any], dataset: dict[str, Any]) -> list[list[str]] | str | None:
    """Return the names of each of a model's outputs that its `classes` give, or `weights` if the weights bring them.

    None if the outputs are the classes of the data set. torchvision's weights bring their own names, and a folder of
    images need not have all of them.
    """
    classes = model.get("classes")
    if classes is None:
        published = model["architecture"].startswith("torchvision:") and not is_weights_file(model["weights"])
        return "weights" if published and model["weights"] != "train" and dataset["kind"] == "imagefolder" else None
    if isinstance(classes, str):
        if classes == "weights":
            return classes
        names = class_names({"kind": classes, "root": None}) if classes in KNOWN_CLASSES else read_class_file(classes)
    else:
        names = classes
    return [[name] for name in names]


def _check_classes(key: str, model: dict[str, Any], dataset: dict[str, Any], all_known: bool) -> None:
    classes = model.get("classes")
    if classes is None:
        return
    if model["weights"] == "train":
        raise UserError(f"{key} is given, but weights is 'train', which learns the data set's classes: drop one.")
    if isinstance(classes, str) and classes not in (*KNOWN_CLASSES, "weights") and not os.path.isfile(classes):
        raise UserError(
            f"{key} is {shown(classes)}, but must be a list of names, a file of names, weights (which bring them), or "
            f"{alternatives(KNOWN_CLASSES)}."
        )
    try:
        outputs = model_classes(model, dataset)
        if isinstance(outputs, list) and all_known:
            match_classes(outputs, class_names(dataset), f"The classes of {key.rpartition('.')[0]}")
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _check_architecture(key: str, architecture: str) -> None:
    path, _, name = architecture.rpartition(":")
    if architecture.endswith(".py") or (path.endswith(".py") and not name):
        path = architecture.removesuffix(":")
        raise UserError(f"{key} is {shown(architecture)}, but must name a function, too: write {path}:build, say.")
    if path == "torchvision":
        known = torchvision_weights()
        if known and name not in known:
            raise UserError(f"{key} is {shown(architecture)}, but torchvision has no such model{hint(name, known)}")
    elif path == "timm":
        if importlib.util.find_spec("timm") is None:
            raise UserError(f"{key} is {shown(architecture)}, but the package timm is not installed: pip install timm.")
    elif path.endswith(".py"):
        _check_factory(key, path, name)
    elif architecture not in ARCHITECTURES:
        allowed = f"{', '.join(ARCHITECTURES)}, torchvision:NAME, timm:NAME or path/to/file.py:factory"
        suggestion = did_you_mean(architecture, ARCHITECTURES)
        raise UserError(f"{key} is {shown(architecture)}, but must be {allowed}{suggestion}.")


def _check_factory(key: str, path: str, factory: str) -> None:
    """Raise UserError unless the Python file defines `factory` at its top level. The file is read, not run."""
    if not os.path.isfile(path):
        raise UserError(f"{key} names the file {path}, but there is no such file.")
    try:
        body = ast.parse(Path(path).read_text(encoding="utf-8"), path).body
    except OSError as error:
        raise UserError(
            f"{key} names the file {path}, but it cannot be read ({error.strerror}): fix its permissions."
        ) from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{key} names the file {path}, but it is not Python ({error}).") from error
    names = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    names += [alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    names += [t.id for node in body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)]
    if factory not in names and "*" not in names:
        raise UserError(f"{key} names the function {factory}, but {path} has none of that name{hint(factory, names)}")


def _check_weights(key: str, model: dict[str, Any], dataset: dict[str, Any], is_trainable: bool) -> None:
    weights, architecture = model["weights"], model["architecture"]
    beginning = f"{key} is {shown(weights)}, but"
    train = ["train"] if is_trainable else []
    if weights == "train" and is_trainable:
        return
    if weights == "hub":
        kind = dataset["kind"] if model.get("classes") is None else model["classes"]
        if isinstance(kind, list) or (architecture, kind) not in HUB_FILES:
            known = ", ".join(f"{name} for {kind}" for name, kind in HUB_FILES)
            raise UserError(
                f"{beginning} the hub has no {architecture} for data of kind {dataset['kind']}: it has {known}."
            )
    elif is_weights_file(weights):
        if not os.path.isfile(weights):
            raise UserError(f"{beginning} there is no such file.")
    elif architecture.startswith("torchvision:"):
        known = torchvision_weights().get(architecture.removeprefix("torchvision:"), [weights])
        if weights not in known:
            allowed = ", ".join([*train, "a weights file"]) + f" or one of {', '.join(known)}"
            raise UserError(f"{beginning} must be {allowed}{did_you_mean(weights, known)}.")
        count = IMAGENET_CLASSES if dataset["kind"] == "imagenet" else len(class_names({**dataset, "classes": None}))
        if model.get("classes") is None and dataset["kind"] != "imagefolder" and count != IMAGENET_CLASSES:
            raise UserError(
                f"{beginning} these weights know ImageNet's {IMAGENET_CLASSES} classes and datasets.{model['dataset']} "
                f"has {count}: write train, or give a file of your own."
            )
    else:
        names = [*train, "hub"] if architecture in ARCHITECTURES else train
        files = f"a file that ends in {alternatives(WEIGHT_FILES)}"
        raise UserError(f"{beginning} must be {alternatives([*names, files])}{did_you_mean(weights, names)}.")


@functools.cache
def torchvision_weights() -> dict[str, list[str]]:
    """Return {model: names of its weights} for torchvision's classification models.

    The names are read from torchvision's source text, because importing torchvision takes seconds and Snakemake needs
    them each time it reads the Snakefile. The dictionary is empty if torchvision is not installed or its source looks
    different. The job that builds the model then finds a wrong name.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return {}
    members: dict[str, list[str]] = {}  # by the name of an enum of weights
    enum_of_model: dict[str, str] = {}
    for path in sorted(Path(package.submodule_search_locations[0], "models").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for enum, body in re.findall(r"^class (\w+)\(WeightsEnum\):\n((?:    .*\n|\n)+)", text, re.M):
            members[enum] = re.findall(r"^    (\w+) = ", body, re.M)
        enum_of_model |= re.findall(r"^def (\w+)\(\s*\*,\s*weights: Optional\[(\w+)\]", text, re.M)
    return {model: members[enum] for model, enum in enum_of_model.items() if enum in members}

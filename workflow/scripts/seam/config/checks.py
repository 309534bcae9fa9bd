"""Checks of the configuration beyond its schema."""

import ast
import functools
import importlib.util
import os
import re
from pathlib import Path

from seam.config.entries import direct_entries, folder_name, indirect_entries, targets_of
from seam.config.wording import alternatives, did_you_mean, hint, require_known_names, shown
from seam.data.kinds.registry import class_groups, class_names, why_unavailable
from seam.errors import UserError
from seam.models.architectures import ARCHITECTURES
from seam.models.published import HUB_FILES
from seam.models.weights import WEIGHT_FILES, is_weights_file

IMAGENET_CLASSES = 1000  # the outputs of torchvision's trained classification models
LARGE = 128  # px from which decoded images take so much disk that there is a budget for them


def check_dataset(where, entry):
    """The data set's class names; None if its data are not given, though its names may be known and are checked."""
    if entry.get("root") is not None and not os.path.isdir(entry["root"]):
        raise UserError(f"{where}.root is {shown(entry['root'])}, but there is no such folder.")
    if entry.get("download") and entry["root"] is not None:
        raise UserError(f"{where}.download is true, but root is given, too: drop one of the two.")
    if entry.get("groups") is not None and not os.path.isfile(entry["groups"]):
        raise UserError(f"{where}.groups is {shown(entry['groups'])}, but there is no such file.")
    try:
        known = class_names({**entry, "classes": None})
        if entry.get("groups") is not None:
            class_groups({**entry, "classes": None})
    except UserError as error:  # its sentence begins with the key
        raise UserError(f"{where}.{error}") from error
    except OSError as error:
        raise UserError(
            f"{where}: {error.filename} cannot be read ({error.strerror}): mend its permissions."
        ) from error
    require_known_names(f"{where}.classes", entry["classes"] or [], known, f"a class of {entry['kind']}")
    names = entry["classes"] or known
    if len(names) < 2:
        raise UserError(f"{where} has only the class {names[0]}, but a target problem needs at least two.")
    return None if why_unavailable(entry) else names


def check_model(where, model, datasets):
    require_known_names(f"{where}.dataset", [model["dataset"]], list(datasets), "the name of a data set under datasets")
    dataset = datasets[model["dataset"]]
    _check_architecture(f"{where}.architecture", model["architecture"])
    _check_size(f"{where}.architecture is", model, model["dataset"], dataset)
    _check_weights(f"{where}.weights", model, dataset)
    for key in ("architecture", "weights"):
        if set("{}") & set(model[key]):
            raise UserError(
                f"{where}.{key} is {shown(model[key])}, but braces in a path are wildcards to Snakemake: rename it."
            )
    if "training" in model and model["weights"] != "train":
        raise UserError(
            f"{where}.training is given, but weights is {shown(model['weights'])}, not train: drop one of the two."
        )
    if model["normalization"] is None and is_weights_file(model["weights"]):
        raise UserError(
            f"{where}.normalization is missing, but a weights file of your own needs it: "
            "give the mean and std that the model was trained with."
        )


def _check_size(start, model, name, dataset):
    if model["architecture"] == "vgg16_bn" and not 32 <= dataset.get("size", 32) < 64:
        raise UserError(
            f"{start} 'vgg16_bn', which takes images of 32 px, but datasets.{name}.size is {dataset['size']}."
        )


def _check_architecture(key, architecture):
    path, colon, name = architecture.rpartition(":")
    if architecture.endswith(".py") or (path.endswith(".py") and not name):
        path = architecture.removesuffix(":")
        raise UserError(f"{key} is {shown(architecture)}, but must name a function, too: write {path}:build, say.")
    if path == "torchvision":
        known = torchvision_weights()
        if known and name not in known:
            raise UserError(f"{key} is {shown(architecture)}, but torchvision has no such model{hint(name, known)}")
    elif path.endswith(".py"):
        _check_factory(key, path, name)
    elif architecture not in ARCHITECTURES:
        close = did_you_mean(architecture, ARCHITECTURES)
        allowed = f"{', '.join(ARCHITECTURES)}, torchvision:NAME or path/to/file.py:factory"
        raise UserError(f"{key} is {shown(architecture)}, but must be {allowed}{close}.")


def _check_factory(key, path, factory):
    """The file is read, not run: names that it defines at its top level are enough."""
    if not os.path.isfile(path):
        raise UserError(f"{key} names the file {path}, but there is no such file.")
    try:
        body = ast.parse(Path(path).read_text(encoding="utf-8"), path).body
    except OSError as error:
        raise UserError(
            f"{key} names the file {path}, but it cannot be read ({error.strerror}): mend its permissions."
        ) from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{key} names the file {path}, but it is not Python ({error}).") from error
    names = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    names += [alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    names += [t.id for node in body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)]
    if factory not in names and "*" not in names:
        raise UserError(f"{key} names the function {factory}, but {path} has none of that name{hint(factory, names)}")


def _check_weights(key, model, dataset):
    weights, architecture = model["weights"], model["architecture"]
    problem = f"{key} is {shown(weights)}, but"
    if weights == "train":
        return
    if weights == "hub":
        if (architecture, dataset["kind"]) not in HUB_FILES:
            known = ", ".join(f"{a} for {kind}" for a, kind in HUB_FILES)
            raise UserError(
                f"{problem} the hub has no {architecture} for data of kind {dataset['kind']}: it has {known}."
            )
    elif is_weights_file(weights):
        if not os.path.isfile(weights):
            raise UserError(f"{problem} there is no such file.")
    elif architecture.startswith("torchvision:"):
        known = torchvision_weights().get(architecture.removeprefix("torchvision:"), [weights])
        if weights not in known:
            allowed = f"train, a weights file or one of {', '.join(known)}"
            raise UserError(f"{problem} must be {allowed}{did_you_mean(weights, known)}.")
        count = IMAGENET_CLASSES if dataset["kind"] == "imagenet" else len(class_names({**dataset, "classes": None}))
        if count != IMAGENET_CLASSES:
            raise UserError(
                f"{problem} these weights know ImageNet's {IMAGENET_CLASSES} classes and datasets.{model['dataset']} "
                f"has {count}: write train, or give a file of your own."
            )
    else:
        names = ["train", "hub"] if architecture in ARCHITECTURES else ["train"]
        files = f"a file that ends in {alternatives(WEIGHT_FILES)}"
        raise UserError(f"{problem} must be {alternatives([*names, files])}{did_you_mean(weights, names)}.")


def check_direct_reuse(config, classes):
    taken = {}
    for where, entry in direct_entries(config):
        require_known_names(
            f"{where}.model", [entry["model"]], list(config["models"]), "the name of a model under models"
        )
        name = config["models"][entry["model"]]["dataset"]
        targets = targets_of(where, entry, config["datasets"][name], classes[name])
        for target in targets:
            folder = folder_name(target)
            if not folder:
                raise UserError(
                    f"{where}.targets names {shown(target)}, of which no folder name can be made: "
                    "give the class a name with letters from a to z or digits."
                )
            first = taken.setdefault((entry["model"], entry["problem"], folder), (where, target))
            if first != (where, target):
                other, same = first
                raise UserError(
                    f"{where}.targets names {shown(target)}, but {other}.targets has {shown(same)} for the same model "
                    f"and problem, with results in the same folder ({folder}): leave one out or rename it."
                )
        if classes[name] is not None:
            require_known_names(
                f"{where}.overrides", entry.get("overrides", {}), list(targets), "a target of this entry"
            )


def check_indirect_reuse(config):
    taken = {}
    _check_clip("attack.clip", config["attack"])
    for where, entry in indirect_entries(config):
        require_known_names(
            f"{where}.model", [entry["model"]], list(config["models"]), "the name of a model under models"
        )
        known = list(config["datasets"])
        require_known_names(f"{where}.datasets", entry["datasets"], known, "the name of a data set under datasets")
        for name in entry["datasets"]:
            first = taken.setdefault((entry["model"], name), where)
            if first != where:
                raise UserError(
                    f"{where}.datasets names {shown(name)}, but {first}.datasets names it for the same model: "
                    "leave one out."
                )
            start = f"{where}.model is {shown(entry['model'])}, of the architecture"
            _check_size(start, config["models"][entry["model"]], name, config["datasets"][name])
        for i, threshold in enumerate(entry["thresholds"]):
            if round(threshold, 3) != threshold:  # it is part of a folder's name
                raise UserError(f"{where}.thresholds[{i}] is {threshold}, but may have three decimals at most.")
        for threshold in entry["compare_at"] or []:
            if threshold not in entry["thresholds"]:
                among = shown(entry["thresholds"]).removeprefix("the list ")
                raise UserError(f"{where}.compare_at names {threshold}, but must be among thresholds: {among}.")
        require_known_names(
            f"{where}.overrides", entry.get("overrides", {}), entry["datasets"], "a data set of this entry"
        )
        _check_clip(f"{where}.attack.clip", entry.get("attack", {}))


def _check_clip(key, attack):
    low, high = attack.get("clip", (0, 1))
    if low >= high:
        raise UserError(f"{key} is {shown(attack['clip'])}, but its first value must be less than its second.")


@functools.cache
def torchvision_weights():
    """{model: [names of its weights]} of torchvision's classification models, read from its source text.

    Importing torchvision takes seconds and this is asked each time that the Snakefile is read. Empty where
    torchvision is not installed or looks different: the job that builds the model then finds a wrong name.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None:
        return {}
    enums, named = {}, {}
    for path in sorted(Path(package.submodule_search_locations[0], "models").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for enum, body in re.findall(r"^class (\w+)\(WeightsEnum\):\n((?:    .*\n|\n)+)", text, re.M):
            enums[enum] = re.findall(r"^    (\w+) = ", body, re.M)
        named |= re.findall(r"^def (\w+)\(\s*\*,\s*weights: Optional\[(\w+)\]", text, re.M)
    return {model: enums[enum] for model, enum in named.items() if enum in enums}

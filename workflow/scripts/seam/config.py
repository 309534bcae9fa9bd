"""The configuration: checked as a whole before any job starts, its defaults filled in, its problems listed.

    config = validated(raw, "workflow/schemas/config.schema.yaml")
    for problem in problems(config):
        print(problem.model, problem.target, problem.settings["alpha"])
    for student in students(config):
        print(student.model, student.dataset, student.method, student.transfer["finetune"]["lr"])

Whatever is wrong ends in a UserError of one sentence that names the key, such as
`search.lr_msk is not a known key: did you mean lr_mask?`. Imports neither torch nor snakemake: all of it
runs each time that the Snakefile is read.
"""

import ast
import contextlib
import copy
import difflib
import functools
import importlib.util
import math
import operator
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator, validators

from seam import data, models
from seam.files import UserError

FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
IMAGENET_CLASSES = 1000  # the outputs of torchvision's trained classification models
LARGE = 128  # px from which decoded images take so much disk that there is a budget for them
MASKED = ("seam", "magnitude", "random")  # students of which there is one for each threshold
COMPARED = ("magnitude", "random")


@dataclass(frozen=True)
class Problem:
    """One target problem of direct reuse; its results are in results/direct/{model}/{problem}/{target}/."""

    model: str
    dataset: str
    problem: str  # binary or multiclass
    target: str  # the name of its folder, the only one of that name for its model and kind of problem
    classes: list  # binary: the target class alone; multiclass: the group's classes, in the head's order
    settings: dict  # of the search, sorted by name
    timing: dict  # of the latency measurement, sorted by name


@dataclass(frozen=True)
class Student:
    """One model of indirect reuse; its results are in results/indirect/{model}/{dataset}/{method}/."""

    model: str  # the source model
    dataset: str  # what it is fine-tuned on
    student: str  # standard, retrain, seam, magnitude or random
    threshold: float | None  # the share of weights to remove; None for standard and retrain
    thresholds: tuple  # all of this model and data set, ascending: one search stores its masks at each
    transfer: dict  # how it is made, a dictionary for each step, sorted by name
    attack: dict  # sorted by name; the same for all students of a model and data set

    @property
    def method(self):
        """The name of its folder: `standard`, `seam-0.6`."""
        return self.student if self.threshold is None else f"{self.student}-{self.threshold:g}"


# ------------------------------------------------------------------ what the workflow asks


def validated(raw, schema_path):
    """`raw`, the configuration as read from YAML, checked and complete; `raw` itself is not changed.

    Every default is filled in, numbers are floats where the schema says number, class names are text and
    a `~` in a path is the home folder, so that two ways of writing the same configuration are equal.
    Raises UserError with one sentence that names the key, what was found and what is allowed.
    """
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    config = _text_keys(raw)
    _check_schema(config, schema)
    config = _plain(_complete(config, schema, schema))
    classes = {name: _check_dataset(f"datasets.{name}", entry) for name, entry in config["datasets"].items()}
    for name, model in config["models"].items():
        _check_model(f"models.{name}", model, config["datasets"])
    _check_direct_reuse(config, classes)
    _check_indirect_reuse(config)
    return config


def require_unique_keys(path):
    """Raises UserError where the YAML file has a key twice: of two YAML keeps the last, and says nothing."""

    def look(node, where):
        if isinstance(node, yaml.SequenceNode):
            for number, entry in enumerate(node.value):
                look(entry, [*where, number])
        elif isinstance(node, yaml.MappingNode):
            seen = {}
            for key, value in node.value:
                name = str(key.value)
                if name in seen and key.tag != "tag:yaml.org,2002:merge":
                    key_twice, lines = dotted([*where, name]), f"{seen[name]} and {key.start_mark.line + 1}"
                    raise UserError(
                        f"{path} has {key_twice} twice (lines {lines}), and only the last counts: join them."
                    )
                seen[name] = key.start_mark.line + 1
                look(value, [*where, name])

    with contextlib.suppress(yaml.YAMLError), open(path, encoding="utf-8") as file:  # Snakemake reads JSON, too
        look(yaml.compose(file, Loader=yaml.SafeLoader), [])


def problems(config):
    """The target problems of a validated configuration, without those whose data are not given."""
    found = []
    for where, entry in _direct_reuse(config):
        name = config["models"][entry["model"]]["dataset"]
        dataset = config["datasets"][name]
        if data.available(dataset):
            continue
        for target, classes in _targets(where, entry, dataset, data.classes(dataset)).items():
            override = entry.get("overrides", {}).get(target, {})
            found.append(
                Problem(
                    model=entry["model"],
                    dataset=name,
                    problem=entry["problem"],
                    target=folder_name(target),
                    classes=list(classes),
                    settings=_sorted({**config["search"], **entry.get("search", {}), **override}),
                    timing=_sorted({**config["timing"], **entry.get("timing", {})}),
                )
            )
    return found


def students(config):
    """The students of a validated configuration, without those whose data are not given.

    A source model needs its own data set only where it is trained on it: weights that are there bring all else.
    """
    found = []
    for _, entry in _indirect_reuse(config):
        thresholds = sorted(entry["thresholds"])
        compared = thresholds if entry["compare_at"] is None else sorted(entry["compare_at"])
        for name in entry["datasets"]:
            if _missing(config, entry, name):
                continue
            override = entry.get("overrides", {}).get(name, {})
            transfer = _merged(_merged(config["transfer"], entry.get("transfer", {})), override)
            for student in entry["students"]:
                at = compared if student in COMPARED else thresholds if student in MASKED else [None]
                found += [
                    Student(
                        model=entry["model"],
                        dataset=name,
                        student=student,
                        threshold=threshold,
                        thresholds=tuple(thresholds),
                        transfer=_sorted(transfer),
                        attack=_sorted({**config["attack"], **entry.get("attack", {})}),
                    )
                    for threshold in at
                ]
    return found


def left_out(config):
    """One line for each data set that is needed and not given: why, and what is left out."""
    waiting = {}
    for _, entry in _direct_reuse(config):
        name = config["models"][entry["model"]]["dataset"]
        if data.available(config["datasets"][name]):
            # A dictionary is a set that keeps its order.
            waiting.setdefault(name, {})[f"{entry['model']} {entry['problem']}"] = None
    for _, entry in _indirect_reuse(config):
        for target in entry["datasets"]:
            for name in _missing(config, entry, target):
                waiting.setdefault(name, {})[f"{entry['model']} indirect"] = None
    lines = []
    for name, entries in waiting.items():
        dataset = config["datasets"][name]
        reason = data.available(dataset).removeprefix(dataset["kind"] + ": ")
        lines.append(f"datasets.{name}: {reason} ({', '.join(entries)}).")
    return lines


def dataset_entry(config, name):
    """The complete entry of a data set, sorted by key: what `seam.data` takes.

    `array_gb` is in it only where the images are large: nothing else depends on it.
    """
    entry = config["datasets"][name]
    return _sorted({**entry, "array_gb": config["array_gb"]} if entry.get("size", 0) >= LARGE else entry)


def weights_entry(config, name):
    """What a source model's weights depend on in the entry of its data set, sorted by key.

    That is the entry, but for torchvision's weights, which need no image of ImageNet: where those lie, once they are
    there, changes nothing.
    """
    model = config["models"][name]
    entry = config["datasets"][model["dataset"]]
    if entry["kind"] == "imagenet" and model["weights"] != "train" and not models.is_file(model["weights"]):
        return {"classes": entry["classes"], "kind": "imagenet", "root": None}
    return _sorted(entry)


def model_settings(config, name):
    """All of the configuration that determines a source model, sorted by key.

    `training` (complete) and `seed` are in it only with `weights: train`: nothing else depends on them.
    """
    model = config["models"][name]
    settings = {key: model[key] for key in ("architecture", "dataset", "weights", "normalization")}
    if model["weights"] == "train":
        settings |= {"training": {**config["training"], **model.get("training", {})}, "seed": config["seed"]}
    return _sorted(settings)


def model_files(config, name):
    """The user's own files that a source model is made from: of its weights and its architecture."""
    model = config["models"][name]
    files = [model["weights"]] if models.is_file(model["weights"]) else []
    path, _, _ = model["architecture"].rpartition(":")
    return files + ([path] if path.endswith(".py") else [])


def folder_name(name):
    """The folder of a target's results: its name, with `_` for spaces and what else is trouble in a folder's name.

    >>> folder_name("aquarium_fish"), folder_name("golden retriever"), folder_name("crème brûlée (hot)")
    ('aquarium_fish', 'golden_retriever', 'creme_brulee_hot')

    Empty if the name has neither a letter from a to z nor a digit.
    """
    if FOLDER_NAME.fullmatch(name):
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")


# ------------------------------------------------------------------ the schema: shapes, bounds, defaults


def _check_schema(config, schema):
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, x: type(x) is int)
    checker = validators.extend(Draft202012Validator, type_checker=types)
    errors = list(checker(schema).iter_errors(config))
    if errors:
        # A misspelt key often means a missing one too: name the misspelt one.
        first = next((error for error in errors if error.validator == "additionalProperties"), errors[0])
        raise UserError(sentence(first, schema, config))


def sentence(error, schema, config):
    """A jsonschema ValidationError of the config as one sentence: the key, what was found, what is allowed."""
    path, value, rule, rules = list(error.absolute_path), error.instance, error.validator, error.schema
    key = dotted(path) or "The config"
    if rule == "additionalProperties":
        unknown = next(name for name in value if name not in rules["properties"])
        return _unknown_key(path, unknown, rules, schema)
    if rule == "required":
        missing = next(name for name in error.validator_value if name not in value)
        return f"{dotted([*path, missing])} is missing: docs/configuration.md says what it may be."
    if rule == "not":  # a key that the schema refuses for this kind of data set
        kind = functools.reduce(operator.getitem, path[:-1], config)["kind"]
        return f"{key} is not for data of kind {kind}: leave it out."
    if rule == "pattern" and "propertyNames" in error.absolute_schema_path:
        return (
            f"{key} has the name {shown(value)}, but a name can only have letters, digits, '_', '-' and '.', "
            "and none of the last two first."
        )
    if rule == "pattern":
        names = rules["pattern"].strip("^()$").split("|")
        allowed = f"{', '.join(names)}, a list of names or groups by name"
        return f"{key} is {shown(value)}, but must be {allowed}{_meant(value, names)}."
    if rule == "enum":
        return f"{key} is {shown(value)}, but must be {_one_of(rules['enum'])}{_meant(value, rules['enum'])}."
    if rule == "type":
        return _wrong_type(key, value, rules)
    if rule == "uniqueItems":
        twice = next(item for item in value if value.count(item) > 1)
        return f"{key} names {shown(twice)} twice: once is enough."
    if rule in ("minItems", "maxItems", "minProperties"):
        least, most = rules.get("minItems", rules.get("minProperties")), rules.get("maxItems")
        wanted = f"exactly {least}" if least == most else f"at least {least}"
        return f"{key} has {len(value)} value{'' if len(value) == 1 else 's'}, but needs {wanted}."
    return f"{key} is {shown(value)}, but must be {_range(rules)}."


def _unknown_key(path, name, rules, schema):
    key, known = dotted([*path, name]), list(rules["properties"])
    close = _close(name, known)
    if close:
        return f"{key} is not a known key: did you mean {close}?"
    for section in known:  # right, but one level too high
        inner = _resolved(rules["properties"][section], schema)
        if isinstance(inner, dict) and name in inner.get("properties", {}):
            return f"{key} is not a known key: it belongs in {dotted([*path, section])}."
    return f"{key} is not a known key: known are {', '.join(known)}."


def _wrong_type(key, value, rules):
    words = {
        "integer": "a whole number", "number": "a number", "string": "text", "array": "a list",
        "object": "keys with values", "null": "null", "boolean": "true or false",
    }  # fmt: skip
    kinds = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
    problem = f"{key} is {shown(value)}, but must be {_one_of([words[kind] for kind in kinds])}"
    if isinstance(value, bool) and "string" in kinds:
        return f"{problem}: put quotes around words such as yes, no, on and off, which YAML reads as true and false."
    if kinds == ["boolean"] and isinstance(value, str) and value.lower() in ("true", "false"):
        return f"{problem}: write {value.lower()}, without quotes."
    number = _number(value, whole="integer" in kinds) if {"integer", "number"} & set(kinds) else None
    if number and isinstance(value, str):
        why = "numbers in quotes or like 1e-3 are text to YAML, and so are nested ones in --config"
        return f"{problem}: write {number} in a config file ({why})."
    if number:
        return f"{problem}: write {number}."
    if value == "all" and key.endswith((".classes", ".compare_at")):
        return f"{problem}: leave it out for all."
    if isinstance(value, (int, float)) and "string" in kinds and "array" not in kinds:
        return f"{problem}: put quotes around it."
    if isinstance(value, str) and "array" in kinds:
        return f"{problem}: write [{value}]."
    if value is None:
        return f"{problem}: give it a value or leave it out."
    return f"{problem}."


def _number(value, whole):
    """Text like 1e-3, or a float, as a plain decimal number; None if it is none, is not `whole` or would be long."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if isinstance(value, bool) or (whole and not number.is_integer()) or not (number == 0 or 1e-9 <= abs(number) < 1e9):
        return None
    return f"{number:.12f}".rstrip("0").rstrip(".")


def _range(rules):
    words = {
        "minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"
    }  # fmt: skip
    return " and ".join(f"{text} {rules[rule]}" for rule, text in words.items() if rule in rules)


def _resolved(schema, root):
    """The schema with what its `$ref` points to put in its place; what stands beside the `$ref` wins."""
    if isinstance(schema, dict) and "$ref" in schema:
        return {**root["$defs"][schema["$ref"].rpartition("/")[2]], **schema}
    return schema


def _properties(schema, value):
    """{key: schema} of an object, with what its `allOf` says for a value of this kind folded in."""
    properties = dict(schema.get("properties", {}))
    for case in schema.get("allOf", []):
        if Draft202012Validator(case["if"]).is_valid(value):
            for key, rules in case["then"].get("properties", {}).items():
                properties[key] = {**properties[key], **rules}
    return properties


def _complete(value, schema, root):
    """A copy of a valid value with the defaults of its schema; a default mapping fills in what is not given."""
    schema = _resolved(schema, root)
    if isinstance(value, list):
        return [_complete(item, schema.get("items", {}), root) for item in value]
    if isinstance(value, dict):
        properties = {key: _resolved(rules, root) for key, rules in _properties(schema, value).items()}
        for key, rules in properties.items():
            default = copy.deepcopy(rules.get("default"))
            if isinstance(default, dict):
                value = {**value, key: _merged(default, value.get(key, {}))}
            elif "default" in rules and "not" not in rules and key not in value:
                value = {**value, key: default}
        others = schema.get("additionalProperties") or {}
        return {key: _complete(item, properties.get(key, others), root) for key, item in value.items()}
    if schema.get("type") == "number":
        return float(value)
    return value


def _text_keys(value, path=()):
    """A copy in which whole numbers as keys are text. Raises UserError for keys and numbers that YAML makes by
    surprise: true (from yes), null, infinite ones."""
    if isinstance(value, list):
        return [_text_keys(item, (*path, i)) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{dotted(path)} is {value}, but must be a finite number.")
    if not isinstance(value, dict):
        return value
    for key in value:
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            where = dotted(path) or "The config"
            raise UserError(f"{where} has the key {shown(key)}, which is not text: put quotes around what was meant.")
    return {str(key): _text_keys(item, (*path, str(key))) for key, item in value.items()}


def _plain(config):
    """Class names as text, and `~` in paths replaced."""
    for dataset in config["datasets"].values():
        if dataset["classes"] is not None:
            dataset["classes"] = list(map(str, dataset["classes"]))
        for key in ("root", "groups"):
            if dataset.get(key):
                dataset[key] = _expanded(dataset[key])
    for model in config["models"].values():
        model.update({key: _expanded(model[key]) for key in ("architecture", "weights")})
    for entry in config["direct_reuse"]:
        targets = entry["targets"]
        if isinstance(targets, list):
            entry["targets"] = list(map(str, targets))
        elif isinstance(targets, dict):
            entry["targets"] = {name: list(map(str, classes)) for name, classes in targets.items()}
    return config


def _expanded(path):
    return os.path.expanduser(path)  # which leaves an unknown user's as it is


# ------------------------------------------------------------------ what a schema cannot say


def _check_dataset(where, entry):
    """The data set's class names; None if its data are not given, though its names may be known and are checked."""
    if entry.get("root") is not None and not os.path.isdir(entry["root"]):
        raise UserError(f"{where}.root is {shown(entry['root'])}, but there is no such folder.")
    if entry.get("download") and entry["root"] is not None:
        raise UserError(f"{where}.download is true, but root is given, too: drop one of the two.")
    if entry.get("groups") is not None and not os.path.isfile(entry["groups"]):
        raise UserError(f"{where}.groups is {shown(entry['groups'])}, but there is no such file.")
    try:
        known = data.classes({**entry, "classes": None})
        if entry.get("groups") is not None:
            data.groups({**entry, "classes": None})
    except UserError as error:  # its sentence begins with the key
        raise UserError(f"{where}.{error}") from error
    except OSError as error:
        raise UserError(
            f"{where}: {error.filename} cannot be read ({error.strerror}): mend its permissions."
        ) from error
    _check_names(f"{where}.classes", entry["classes"] or [], known, f"a class of {entry['kind']}")
    names = entry["classes"] or known
    if len(names) < 2:
        raise UserError(f"{where} has only the class {names[0]}, but a target problem needs at least two.")
    return None if data.available(entry) else names


def _check_model(where, model, datasets):
    _check_names(f"{where}.dataset", [model["dataset"]], list(datasets), "the name of a data set under datasets")
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
    if model["normalization"] is None and models.is_file(model["weights"]):
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
    elif architecture not in models.ARCHITECTURES:
        close = _meant(architecture, models.ARCHITECTURES)
        allowed = f"{', '.join(models.ARCHITECTURES)}, torchvision:NAME or path/to/file.py:factory"
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
        if (architecture, dataset["kind"]) not in models.HUB_FILES:
            known = ", ".join(f"{a} for {kind}" for a, kind in models.HUB_FILES)
            raise UserError(
                f"{problem} the hub has no {architecture} for data of kind {dataset['kind']}: it has {known}."
            )
    elif models.is_file(weights):
        if not os.path.isfile(weights):
            raise UserError(f"{problem} there is no such file.")
    elif architecture.startswith("torchvision:"):
        known = torchvision_weights().get(architecture.removeprefix("torchvision:"), [weights])
        if weights not in known:
            allowed = f"train, a weights file or one of {', '.join(known)}"
            raise UserError(f"{problem} must be {allowed}{_meant(weights, known)}.")
        count = IMAGENET_CLASSES if dataset["kind"] == "imagenet" else len(data.classes({**dataset, "classes": None}))
        if count != IMAGENET_CLASSES:
            raise UserError(
                f"{problem} these weights know ImageNet's {IMAGENET_CLASSES} classes and datasets.{model['dataset']} "
                f"has {count}: write train, or give a file of your own."
            )
    else:
        names = ["train", "hub"] if architecture in models.ARCHITECTURES else ["train"]
        files = f"a file that ends in {_one_of(models.WEIGHT_FILES)}"
        raise UserError(f"{problem} must be {_one_of([*names, files])}{_meant(weights, names)}.")


def _check_direct_reuse(config, classes):
    taken = {}
    for where, entry in _direct_reuse(config):
        _check_names(f"{where}.model", [entry["model"]], list(config["models"]), "the name of a model under models")
        name = config["models"][entry["model"]]["dataset"]
        targets = _targets(where, entry, config["datasets"][name], classes[name])
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
            _check_names(f"{where}.overrides", entry.get("overrides", {}), list(targets), "a target of this entry")


def _targets(where, entry, dataset, classes):
    """{name: its classes} of an entry's targets. Without the data (`classes` None) only the shapes are checked."""
    key, problem, targets = f"{where}.targets", entry["problem"], entry["targets"]
    if problem == "binary":
        if targets != "all" and not isinstance(targets, list):
            raise UserError(f"{key} is {shown(targets)}, but problem: binary takes all or a list of class names.")
        names = classes or [] if targets == "all" else targets
        _check_names(key, names, classes, f"a class of the model's data set ({dataset['kind']})")
        return {name: [name] for name in names}
    if isinstance(targets, dict):
        for name, members in targets.items():
            _check_names(f"{key}.{name}", members, classes, f"a class of the model's data set ({dataset['kind']})")
        return targets
    if targets == "all":
        raise UserError(
            f"{key} is 'all', but problem: multiclass takes superclasses or groups by name, as in {{pets: [cat, dog]}}."
        )
    if classes is None:
        return {}
    try:
        groups = data.groups(dataset)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if not groups:
        raise UserError(f"{key} is {shown(targets)}, but no superclass lies wholly within the data set's classes.")
    names = list(groups) if targets == "superclasses" else targets
    _check_names(key, names, list(groups), f"a superclass of {dataset['kind']}")
    return {name: groups[name] for name in names}


def _check_indirect_reuse(config):
    taken = {}
    _check_clip("attack.clip", config["attack"])
    for where, entry in _indirect_reuse(config):
        _check_names(f"{where}.model", [entry["model"]], list(config["models"]), "the name of a model under models")
        known = list(config["datasets"])
        _check_names(f"{where}.datasets", entry["datasets"], known, "the name of a data set under datasets")
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
        _check_names(f"{where}.overrides", entry.get("overrides", {}), entry["datasets"], "a data set of this entry")
        _check_clip(f"{where}.attack.clip", entry.get("attack", {}))


def _check_clip(key, attack):
    low, high = attack.get("clip", (0, 1))
    if low >= high:
        raise UserError(f"{key} is {shown(attack['clip'])}, but its first value must be less than its second.")


def _missing(config, entry, target):
    """The names of the data sets that students on `target` of an entry of `indirect_reuse` lack."""
    model = config["models"][entry["model"]]
    needed = [target] + ([model["dataset"]] if model["weights"] == "train" else [])
    return [name for name in dict.fromkeys(needed) if data.available(config["datasets"][name])]


def _indirect_reuse(config):
    return [(f"indirect_reuse[{i}]", entry) for i, entry in enumerate(config["indirect_reuse"])]


def _direct_reuse(config):
    return [(f"direct_reuse[{i}]", entry) for i, entry in enumerate(config["direct_reuse"])]


def _merged(under, over):
    """`under` with what `over` has in its place, key by key, also within dictionaries."""
    inner = {key: _merged(under[key], value) for key, value in over.items() if isinstance(under.get(key), dict)}
    return {**under, **over, **inner}


def _sorted(mapping):
    return {key: _sorted(value) if isinstance(value, dict) else value for key, value in sorted(mapping.items())}


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


# ------------------------------------------------------------------ wording


def dotted(path):
    """A path as people write it: ["direct_reuse", 0, "search"] is `direct_reuse[0].search`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def shown(value):
    """A value as an error message shows it."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"keys with values ({', '.join(value)})" if value else "an empty mapping"
    if isinstance(value, list):
        return f"the list [{', '.join(map(str, value))}]" if value else "an empty list"
    if isinstance(value, str):
        return f"'{value}'" if value.isprintable() else repr(value)
    return str(value)


def _check_names(key, names, known, what):
    """Raises UserError for the first of `names` that comes twice or is not in `known` (None: not known yet)."""
    seen, right = set(), known if known is None else set(known)
    for name in names:
        if name in seen:
            raise UserError(f"{key} names {shown(name)} twice: once is enough.")
        seen.add(name)
        if right is not None and name not in right:
            raise UserError(f"{key} names {shown(name)}, which is not {what}{hint(name, known)}")


def hint(name, known, most=12):
    """The end of a sentence about a wrong name: the closest of the known ones, or these."""
    known, close = list(known), _close(name, known)
    if close:
        return f": did you mean {close}?"
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f": known are {', '.join(known[:most])}{more}." if known else ": there is none."


def _meant(name, known):
    close = _close(name, known)
    return f" (did you mean {close}?)" if close else ""


def _close(name, known):
    """The one of `known` that is written most like `name`; None if none is (`gpu` is not meant to be `cpu`)."""
    by_lower = {str(other).lower(): str(other) for other in known}
    likeness = 0.7 if len(str(name)) <= 3 else 0.6
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=likeness)
    return by_lower[close[0]] if close else None


def _one_of(names):
    *some, last = map(str, names)
    return f"{', '.join(some)} or {last}" if some else last

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

from dataclasses import dataclass
from pathlib import Path

import yaml

from seam.config.checks import LARGE, check_dataset, check_direct_reuse, check_indirect_reuse, check_model
from seam.config.entries import direct_entries, folder_name, indirect_entries, missing_datasets, targets_of
from seam.config.schema import check_schema, merged, normalised, text_keys, with_defaults
from seam.data.kinds.registry import class_names, why_unavailable
from seam.models.weights import is_weights_file

MASKED = ("seam", "magnitude", "random")  # students of which there is one for each threshold
COMPARED = ("magnitude", "random")


@dataclass(frozen=True)
class ProblemSpec:
    """One target problem of direct reuse; its results are in results/direct/{model}/{problem}/{target}/."""

    model: str
    dataset: str
    problem: str  # binary or multiclass
    target: str  # the name of its folder, the only one of that name for its model and kind of problem
    classes: list  # binary: the target class alone; multiclass: the group's classes, in the head's order
    settings: dict  # of the search, sorted by name
    timing: dict  # of the latency measurement, sorted by name


@dataclass(frozen=True)
class StudentSpec:
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


def validate(raw, schema_path):
    """`raw`, the configuration as read from YAML, checked and complete; `raw` itself is not changed.

    Every default is filled in, numbers are floats where the schema says number, class names are text and
    a `~` in a path is the home folder, so that two ways of writing the same configuration are equal.
    Raises UserError with one sentence that names the key, what was found and what is allowed.
    """
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    config = text_keys(raw)
    check_schema(config, schema)
    config = normalised(with_defaults(config, schema, schema))
    classes = {name: check_dataset(f"datasets.{name}", entry) for name, entry in config["datasets"].items()}
    for name, model in config["models"].items():
        check_model(f"models.{name}", model, config["datasets"])
    check_direct_reuse(config, classes)
    check_indirect_reuse(config)
    return config


def target_problems(config):
    """The target problems of a validated configuration, without those whose data are not given."""
    found = []
    for where, entry in direct_entries(config):
        name = config["models"][entry["model"]]["dataset"]
        dataset = config["datasets"][name]
        if why_unavailable(dataset):
            continue
        for target, classes in targets_of(where, entry, dataset, class_names(dataset)).items():
            override = entry.get("overrides", {}).get(target, {})
            found.append(
                ProblemSpec(
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
    for _, entry in indirect_entries(config):
        thresholds = sorted(entry["thresholds"])
        compared = thresholds if entry["compare_at"] is None else sorted(entry["compare_at"])
        for name in entry["datasets"]:
            if missing_datasets(config, entry, name):
                continue
            override = entry.get("overrides", {}).get(name, {})
            transfer = merged(merged(config["transfer"], entry.get("transfer", {})), override)
            for student in entry["students"]:
                at = compared if student in COMPARED else thresholds if student in MASKED else [None]
                found += [
                    StudentSpec(
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
    for _, entry in direct_entries(config):
        name = config["models"][entry["model"]]["dataset"]
        if why_unavailable(config["datasets"][name]):
            # A dictionary is a set that keeps its order.
            waiting.setdefault(name, {})[f"{entry['model']} {entry['problem']}"] = None
    for _, entry in indirect_entries(config):
        for target in entry["datasets"]:
            for name in missing_datasets(config, entry, target):
                waiting.setdefault(name, {})[f"{entry['model']} indirect"] = None
    lines = []
    for name, entries in waiting.items():
        dataset = config["datasets"][name]
        reason = why_unavailable(dataset).removeprefix(dataset["kind"] + ": ")
        lines.append(f"datasets.{name}: {reason} ({', '.join(entries)}).")
    return lines


def dataset_entry(config, name):
    """The complete entry of a data set, sorted by key: what `seam.data` takes.

    `array_gb` is in it only where the images are large: nothing else depends on it.
    """
    entry = config["datasets"][name]
    return _sorted({**entry, "array_gb": config["array_gb"]} if entry.get("size", 0) >= LARGE else entry)


def source_weights(config, name):
    """Return what a source model's weights are fetched from, as `seam.models.published.fetch_weights` takes it.

    class_lists: lists of class names that the outputs of the weights may stand for. Published weights know all
    classes, in the data set's order, also where the config asks for a subset. The outputs of a weights file of the
    user are in the order that the config gives, if it gives one. torchvision's weights need no image of ImageNet: a
    change of its root changes nothing here.
    """
    model = config["models"][name]
    entry = config["datasets"][model["dataset"]]
    is_file, normalization = is_weights_file(model["weights"]), model["normalization"]
    if entry["kind"] == "imagenet" and not is_file:
        entry = {**entry, "root": None}
    every, chosen = class_names({**entry, "classes": None}), class_names(entry)
    return {
        "architecture": model["architecture"],
        "class_lists": [chosen, every] if is_file else [every],
        "kind": entry["kind"],
        "normalization": normalization and [normalization["mean"], normalization["std"]],
        "weights": model["weights"],
    }


def stacks(problems, most):
    """Return the target problems in lists of at most `most` that one job can search in one pass.

    Those in a list have the same source model, kind of problem, number of classes and settings. Their order, and that
    of the lists, is that of `problems`.
    """
    found = {}
    for problem in problems:
        key = problem.model, problem.problem, len(problem.classes), repr(problem.settings)
        found.setdefault(key, []).append(problem)
    return [alike[start : start + most] for alike in found.values() for start in range(0, len(alike), most)]


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
    files = [model["weights"]] if is_weights_file(model["weights"]) else []
    path, _, _ = model["architecture"].rpartition(":")
    return files + ([path] if path.endswith(".py") else [])


def _sorted(mapping):
    return {key: _sorted(value) if isinstance(value, dict) else value for key, value in sorted(mapping.items())}

"""What a run consists of: the checked configuration, its target problems and its students.

    config = validate(raw, "workflow/schemas/config.schema.yaml")
    for problem in target_problems(config):
        print(problem.model, problem.target, problem.settings["alpha"])
    for student in students(config):
        print(student.model, student.dataset, student.method, student.transfer["finetune"]["lr"])

A mistake ends in a UserError of one sentence that names the key, such as
`search.lr_msk is not a known key: did you mean lr_mask?`. This package imports neither torch nor Snakemake, because
all of it runs each time that Snakemake reads the Snakefile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seam.config.checks.datasets import check_dataset
from seam.config.checks.models import check_model, model_classes
from seam.config.checks.reuse import check_direct_reuse, check_indirect_reuse, check_stack
from seam.config.entries import direct_entries, folder_name, indirect_entries, missing_datasets, targets_of
from seam.config.schema import merged, normalised, read_schema, with_defaults, with_text_keys
from seam.config.violations import check_schema
from seam.data.kinds.registry import IMAGENET, class_names, why_unavailable
from seam.models.weights import is_weights_file
from seam.settings import TIMES, SearchSettings, search_settings

MASKED = ("seam", "magnitude", "random")  # students of which there is one for each threshold
COMPARED = ("magnitude", "random")  # students that `compare_at` limits to some of the thresholds
LARGE_IMAGE = 128  # px: decoded images of this size and more take so much disk that they have a budget


@dataclass(frozen=True)
class ProblemSpec:
    """One target problem of direct reuse; its results are in results/direct/{model}/{problem}/{target}/."""

    model: str
    dataset: str
    problem: str  # binary, group, multiclass or multiclass_rest
    target: str  # the name of its folder, unique for its model and kind of problem
    classes: list[str]  # binary: the target class alone; else the group's classes, in the head's order
    settings: dict[str, Any]  # of the search, sorted by name
    timing: dict[str, Any]  # of the latency measurement, sorted by name
    recovery: dict[str, Any] = field(default_factory=dict)  # sorted by name; empty without recovery
    baselines: tuple[str, ...] = ()  # without a search; results in .../{target}/baselines/{baseline}/

    @property
    def outputs(self) -> int:
        """The number of outputs of its model."""
        return {"binary": 2, "group": 2, "multiclass_rest": len(self.classes) + 1}.get(self.problem, len(self.classes))


@dataclass(frozen=True)
class StudentSpec:
    """One student of indirect reuse; its results are in results/indirect/{model}/{dataset}/{method}/."""

    model: str  # the source model
    dataset: str  # the data set that it is trained on
    student: str  # standard, retrain, remos, seam, magnitude or random
    threshold: float | None  # the share of weights to remove; None for the students without a search
    thresholds: tuple[float, ...]  # all of this model and data set, ascending: one search stores its masks at each
    transfer: dict[str, Any]  # the settings of each step, sorted by name
    attack: dict[str, Any]  # sorted by name; the same for all students of a model and data set

    @property
    def method(self) -> str:
        """The name of its folder: `standard`, `seam-0.6`."""
        return self.student if self.threshold is None else f"{self.student}-{self.threshold:g}"


def validate(raw: dict[str, Any], schema_path: str | Path) -> dict[str, Any]:
    """Return the configuration, as read from YAML, checked and complete; `raw` itself does not change.

    Every default is filled in, numbers are floats if the schema says number, class names are text, and the home
    folder replaces `~` in paths. So two ways to write the same configuration give equal results.
    Raises UserError with one sentence that names the key, its value and what is allowed.
    """
    schema = read_schema(schema_path)
    config = with_text_keys(raw)
    check_schema(config, schema)
    config = normalised(with_defaults(config, schema, schema))
    check_stack(config)
    classes = {name: check_dataset(f"datasets.{name}", entry) for name, entry in config["datasets"].items()}
    for name, model in config["models"].items():
        check_model(f"models.{name}", model, config["datasets"])
    check_direct_reuse(config, classes)
    check_indirect_reuse(config)
    return config


def target_problems(config: dict[str, Any]) -> list[ProblemSpec]:
    """Return the target problems of a checked configuration, without those whose data are not given."""
    problems = []
    for key, entry in direct_entries(config):
        name = config["models"][entry["model"]]["dataset"]
        dataset = config["datasets"][name]
        if why_unavailable(dataset):
            continue
        for target, classes in targets_of(key, entry, dataset, class_names(dataset)).items():
            override = entry.get("overrides", {}).get(target, {})
            problem = ProblemSpec(
                model=entry["model"],
                dataset=name,
                problem=entry["problem"],
                target=folder_name(target),
                classes=list(classes),
                settings=search_settings({**config["search"], **entry.get("search", {}), **override}),
                timing=_timing({**config["timing"], **entry.get("timing", {})}),
                recovery=_recovery({**config["recovery"], **entry.get("recovery", {})}),
                baselines=tuple(entry.get("baselines", config["baselines"])),
            )
            problems.append(problem)
    return problems


def students(config: dict[str, Any]) -> list[StudentSpec]:
    """Return the students of a checked configuration, without those whose data are not given."""
    specs = []
    for _, entry in indirect_entries(config):
        thresholds = sorted(entry["thresholds"])
        compared = thresholds if entry["compare_at"] is None else sorted(entry["compare_at"])
        for name in entry["datasets"]:
            if missing_datasets(config, entry, name):
                continue
            override = entry.get("overrides", {}).get(name, {})
            transfer = _sorted(merged(merged(config["transfer"], entry.get("transfer", {})), override))
            attack = _sorted({**config["attack"], **entry.get("attack", {})})
            for student in entry["students"]:
                student_thresholds = compared if student in COMPARED else thresholds if student in MASKED else [None]
                specs += [
                    StudentSpec(entry["model"], name, student, threshold, tuple(thresholds), transfer, attack)
                    for threshold in student_thresholds
                ]
    return specs


def left_out(config: dict[str, Any]) -> list[str]:
    """Return one line for each data set that is needed but not given: why, and what is left out without it."""
    users: dict[str, list[str]] = {}  # what needs each missing data set
    for _, entry in direct_entries(config):
        name = config["models"][entry["model"]]["dataset"]
        if why_unavailable(config["datasets"][name]):
            users.setdefault(name, []).append(f"{entry['model']} {entry['problem']}")
    for _, entry in indirect_entries(config):
        for target in entry["datasets"]:
            for name in missing_datasets(config, entry, target):
                users.setdefault(name, []).append(f"{entry['model']} indirect")
    lines = []
    for name, entries in users.items():
        dataset = config["datasets"][name]
        reason = (why_unavailable(dataset) or "").removeprefix(dataset["kind"] + ": ")
        lines.append(f"datasets.{name}: {reason} ({', '.join(dict.fromkeys(entries))}).")
    return lines


def dataset_entry(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the complete entry of a data set, sorted by key, as `seam.data.kinds.registry` takes it.

    It has `array_gb` only if the images are large: no other data set depends on it. No prepared data set depends on
    `groups`, which name target problems.
    """
    entry = dict(config["datasets"][name])
    if "groups" in entry:
        entry["groups"] = None
    large = entry.get("size", 0) >= LARGE_IMAGE
    return _sorted({**entry, "array_gb": config["array_gb"]} if large else entry)


def classes_of(config: dict[str, Any], name: str) -> list[str]:
    """Return the classes of a data set, in order; [] if its images are not given."""
    entry = config["datasets"][name]
    return [] if why_unavailable(entry) else class_names(entry)


def source_weights(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what a source model's weights are fetched from, as `seam.models.published.fetch_weights` takes it.

    class_lists: lists of class names that the outputs of the weights may stand for. Published weights know all
    classes, in the data set's order, also if the config asks for a subset. The outputs of a weights file of the
    user are in the order that the config gives, if it gives one. torchvision's weights need no image of ImageNet: a
    change of its root changes nothing here.
    """
    model = config["models"][name]
    entry = config["datasets"][model["dataset"]]
    is_file, normalization = is_weights_file(model["weights"]), model["normalization"]
    if entry["kind"] == "imagenet" and not is_file:
        entry = {**entry, "root": None}
    every, chosen = class_names({**entry, "classes": None}), class_names(entry)
    reader_options = {} if model.get("weights_key") is None else {"key": model["weights_key"]}
    if (outputs := model_classes(model, entry)) is not None:
        reader_options["outputs"] = outputs
        is_hub = model["weights"] == "hub"
        return {
            "architecture": model["architecture"],
            "class_lists": [chosen, class_names(IMAGENET)] if outputs == "weights" else [chosen],
            "kind": model["classes"] if is_hub else entry["kind"],
            "normalization": normalization and [normalization["mean"], normalization["std"]],
            "weights": model["weights"],
            **reader_options,
        }
    return {
        "architecture": model["architecture"],
        "class_lists": [chosen, every] if is_file else [every],
        "kind": entry["kind"],
        "normalization": normalization and [normalization["mean"], normalization["std"]],
        "weights": model["weights"],
        **reader_options,
    }


def model_settings(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return everything in the configuration that determines a source model, sorted by key.

    It has `training` (complete) and `seed` only with `weights: train`: no other model depends on them.
    """
    model = config["models"][name]
    settings = {key: model[key] for key in ("architecture", "dataset", "weights", "normalization")}
    if model["weights"] == "train":
        settings |= {"training": {**config["training"], **model.get("training", {})}, "seed": config["seed"]}
    return _sorted(settings)


def model_files(config: dict[str, Any], name: str) -> list[str]:
    """Return the user's own files that a source model is made from: its weights, class names and its architecture."""
    model = config["models"][name]
    files = [model["weights"]] if is_weights_file(model["weights"]) else []
    if isinstance(model.get("classes"), str) and os.path.isfile(model["classes"]):
        files.append(model["classes"])
    path, _, _ = model["architecture"].rpartition(":")
    return files + ([path] if path.endswith(".py") else [])


def stacks(problems: list[ProblemSpec], most: int) -> list[list[ProblemSpec]]:
    """Return the target problems in lists of at most `most` that one job can search in one pass.

    The problems of a list have the same source model, kind of problem, number of classes and settings. Their order,
    and that of the lists, is that of `problems`. Searches with a budget or a penalty by cost, which cannot share a
    pass, have a list each.
    """
    alike: dict[tuple, list[ProblemSpec]] = {}
    for problem in problems:
        separate = "" if SearchSettings(**problem.settings).can_share_a_pass else problem.target
        key = problem.model, problem.problem, len(problem.classes), repr(problem.settings), separate
        alike.setdefault(key, []).append(problem)
    return [group[start : start + most] for group in alike.values() for start in range(0, len(group), most)]


def budget_engines(problems: list[ProblemSpec]) -> list[str]:
    """Return the engines that budgets of time name."""
    budgets = [problem.settings.get("budget", {}) for problem in problems]
    return sorted({budget["engine"] for budget in budgets if "engine" in budget and set(budget) & set(TIMES)})


def _recovery(settings: dict[str, Any]) -> dict[str, Any]:
    return _sorted(settings) if settings["epochs"] else {}


def _timing(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the latency measurement, sorted by name, with single values of lists as lists."""
    lists = {key: settings[key] for key in ("batch_size", "threads")}
    lists = {key: value if isinstance(value, list) else [value] for key, value in lists.items()}
    return _sorted({**settings, **lists})


def _sorted(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: _sorted(value) if isinstance(value, dict) else value for key, value in sorted(mapping.items())}

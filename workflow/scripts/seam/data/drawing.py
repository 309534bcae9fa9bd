"""Which images a target problem of the config has: the same in its search and in every later job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seam.data.problems import TargetProblem, target_problem
from seam.data.storage import Dataset
from seam.seeds import derive_seed


def draw_problem(
    dataset: Dataset, name: str, kind: str, target: str, members: Sequence[str], seed: int, holdout: float
) -> TargetProblem:
    """Return a target problem of a config, the same whatever the source model.

    name: of the data set; kind: as in `TargetProblem`; target: the name of its folder; members: its classes; seed: the
    config's. All models are compared on the same images, because they are drawn from these names alone.
    """
    return target_problem(kind, dataset, target, members, problem_seed(name, kind, target, seed), holdout)


def problem_seed(name: str, kind: str, target: str, seed: int) -> int:
    """Return the seed from which the images of a problem are drawn, and then those that are held out."""
    return derive_seed(seed, "problem", name, kind, target)


def problem_of_result(dataset: Dataset, metrics: Mapping[str, Any]) -> TargetProblem:
    """Return the target problem of a finished search again, from its metrics.json."""
    kind, target, seed = metrics["problem"], metrics["target"], metrics["seed"]
    share = held_out_share(metrics["settings"])
    return draw_problem(dataset, metrics["dataset"], kind, target, members_of_result(metrics), seed, share)


def members_of_result(metrics: Mapping[str, Any]) -> Sequence[str]:
    """Return the data set's classes that are the target of a finished search, from its metrics.json."""
    classes = metrics["classes"]
    members = {"binary": classes[:1], "group": metrics.get("members"), "multiclass_rest": classes[:-1]}
    return members.get(metrics["problem"], classes) or ()


def held_out_share(settings: Mapping[str, Any]) -> float:
    """Return the share of a problem's training images that a search with these settings held out.

    settings: those of its metrics.json. A search with few images may hold out none, whatever the config says.
    """
    return settings["holdout"] if settings["selection"] == "holdout" else 0.0

"""Which images a target problem of the config has: the same in its search and in every later job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seam.data.problems import TargetProblem, binary_problem, multiclass_problem
from seam.data.storage import Dataset
from seam.seeds import derive_seed


def draw_problem(
    dataset: Dataset, name: str, kind: str, target: str, members: Sequence[str], seed: int, holdout: float
) -> TargetProblem:
    """Return a target problem of a config, the same whatever the source model.

    name: of the data set; kind: binary or multiclass; target: the name of its folder; members: its classes; seed: the
    config's. All models are compared on the same images, because they are drawn from these names alone.
    """
    draw = derive_seed(seed, "problem", name, kind, target)
    if kind == "binary":
        return binary_problem(dataset, members[0], draw, holdout)
    return multiclass_problem(dataset, members, draw, holdout)


def problem_of_result(dataset: Dataset, metrics: Mapping[str, Any]) -> TargetProblem:
    """Return the target problem of a finished search again, from its metrics.json."""
    kind, settings = metrics["problem"], metrics["settings"]
    members = metrics["classes"][:1] if kind == "binary" else metrics["classes"]
    holdout = settings["holdout"] if settings["selection"] == "holdout" else 0.0
    return draw_problem(dataset, metrics["dataset"], kind, metrics["target"], members, metrics["seed"], holdout)

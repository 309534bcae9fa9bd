"""Target problems: the images on which a re-engineered model is searched, selected and evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from seam.data.storage import Dataset, Split
from seam.errors import UserError


@dataclass(frozen=True)
class Subset:
    """Images of one split: `indices` into it, and `labels`, the head's output for each image; int64 [N]."""

    indices: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class TargetProblem:
    """A classification problem over some classes of a data set.

    kind: binary or multiclass.
    classes: the head's outputs in order; a binary problem has (target, "rest").
    members: the data set's classes that are the target.
    train, holdout: disjoint subsets of the training split; test: a subset of the test split.
    """

    kind: str
    classes: tuple[str, ...]
    members: tuple[str, ...]
    train: Subset
    holdout: Subset
    test: Subset


def binary_problem(dataset: Dataset, target: str, seed: int, holdout: float = 0.0) -> TargetProblem:
    """Return the problem `target` (label 0) against the rest (label 1), with as many images of each.

    The images of the rest are drawn from all other classes. If the target has more images than all other classes
    together, it is sampled down to their number.
    """
    index = _class_index(dataset, target)

    def balanced(split: Split, number: int) -> Subset:
        positives, others = np.flatnonzero(split.labels == index), np.flatnonzero(split.labels != index)
        random, count = np.random.default_rng([seed, number]), min(len(positives), len(others))
        negatives = np.sort(random.choice(others, count, replace=False))
        if len(positives) > count:
            positives = np.sort(random.choice(positives, count, replace=False))
        return Subset(
            np.concatenate([positives, negatives]),
            np.repeat(np.array([0, 1], np.int64), [len(positives), len(negatives)]),
        )

    return _problem("binary", (target, "rest"), (target,), dataset, balanced, seed, holdout)


def multiclass_problem(dataset: Dataset, classes: Sequence[str], seed: int, holdout: float = 0.0) -> TargetProblem:
    """Return the problem of telling `classes` apart, with all their images; labels are in the order of `classes`."""
    label = np.full(len(dataset.classes), -1, np.int64)
    for number, name in enumerate(classes):
        label[_class_index(dataset, name)] = number

    def group(split: Split, _: int) -> Subset:
        indices = np.flatnonzero(label[split.labels] >= 0)
        return Subset(indices, label[split.labels[indices]])

    return _problem("multiclass", tuple(classes), tuple(classes), dataset, group, seed, holdout)


def _problem(
    kind: str,
    classes: tuple[str, ...],
    members: tuple[str, ...],
    dataset: Dataset,
    choose: Callable[[Split, int], Subset],
    seed: int,
    share: float,
) -> TargetProblem:
    train, test = choose(dataset.train, 0), choose(dataset.test, 1)
    for name, subset in (("training", train), ("test", test)):
        require_every_class(subset.labels, classes, f"The {name} images of the problem {'/'.join(classes)}")
    train, holdout = hold_out(train, share, seed)
    return TargetProblem(kind, classes, members, train, holdout, test)


def require_every_class(labels: np.ndarray, classes: Sequence[str], owner: str) -> None:
    """Raise UserError if a class has no image. `owner` begins the sentence: "The test images of birds"."""
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise UserError(f"{owner} hold none of class {name}: add some, or take the class out of the config.")


def hold_out(subset: Subset, share: float, seed: int) -> tuple[Subset, Subset]:
    """Split a subset into (training, held-out) images.

    `share` of each class's images, but at least one, is drawn at random and held out; share 0 holds out nothing.
    Raises UserError if a class has a single image.
    """
    if not share:
        return subset, Subset(subset.indices[:0], subset.labels[:0])
    random, held = np.random.default_rng([seed, 2]), np.zeros(len(subset), bool)
    for label in np.unique(subset.labels):
        images = np.flatnonzero(subset.labels == label)
        if len(images) < 2:
            raise UserError("A class with a single training image cannot be split: add images, or set selection: test.")
        held[random.choice(images, max(1, round(share * len(images))), replace=False)] = True
    return Subset(subset.indices[~held], subset.labels[~held]), Subset(subset.indices[held], subset.labels[held])


def _class_index(dataset: Dataset, name: str) -> int:
    if name not in dataset.classes:
        raise UserError(f"The data set has no class {name}; it has {', '.join(dataset.classes[:10])}, ...")
    return dataset.classes.index(name)

"""Target problems: the images on which a re-engineered model is searched, selected and evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from seam.data.storage import Dataset, Split
from seam.errors import UserError

PROBLEMS = ("binary", "group", "multiclass", "multiclass_rest")
REST = "rest"  # the output that stands for all other classes
UNEQUAL = 2.0  # classes are unequal if the largest has more than so many times the images of the smallest


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

    kind: binary (a class against the rest), group (several classes, as one, against the rest), multiclass (classes
        among themselves) or multiclass_rest (the same, with one more output for all other classes).
    classes: the head's outputs in order. The rest is the last one, and a group is the first.
    members: the data set's classes that are the target.
    train, holdout: disjoint subsets of the training split; test: a subset of the test split.
    """

    kind: str
    classes: tuple[str, ...]
    members: tuple[str, ...]
    train: Subset
    holdout: Subset
    test: Subset

    @property
    def is_unequal(self) -> bool:
        """Whether the classes differ so much in their number of images that plain accuracy misleads."""
        splits = np.concatenate([self.train.labels, self.holdout.labels]), self.test.labels
        return any(are_unequal(labels, len(self.classes)) for labels in splits)


def target_problem(
    kind: str, dataset: Dataset, target: str, members: Sequence[str], seed: int, holdout: float = 0.0
) -> TargetProblem:
    """Return the problem of a kind over the classes `members`; `target` is the name of a group as one class.

    Raises UserError if the kind is unknown or does not go with so many classes, or if images are missing.
    """
    if kind not in PROBLEMS:
        raise UserError(f"{kind} is no kind of problem: choose among {', '.join(PROBLEMS)}.")
    if (len(members) == 1) != (kind == "binary"):
        needed = "one class" if kind == "binary" else "at least two classes"
        raise UserError(f"A problem of the kind {kind} is about {needed}, and this one names {len(members)}.")
    if kind == "binary":
        return binary_problem(dataset, members[0], seed, holdout)
    if kind == "group":
        return group_problem(dataset, target, members, seed, holdout)
    if kind == "multiclass_rest":
        return multiclass_rest_problem(dataset, members, seed, holdout)
    return multiclass_problem(dataset, members, seed, holdout)


def binary_problem(dataset: Dataset, target: str, seed: int, holdout: float = 0.0) -> TargetProblem:
    """Return the problem `target` (label 0) against the rest (label 1), with as many images of each.

    The images of the rest are drawn from all other classes. If the target has more images than all other classes
    together, it is sampled down to their number.
    """
    return _against_the_rest("binary", target, (target,), dataset, seed, holdout)


def group_problem(
    dataset: Dataset, name: str, members: Sequence[str], seed: int, holdout: float = 0.0
) -> TargetProblem:
    """Return the problem of the group `name` of classes (label 0) against the rest (label 1), as `binary_problem`."""
    return _against_the_rest("group", name, tuple(members), dataset, seed, holdout)


def _against_the_rest(
    kind: str, name: str, members: tuple[str, ...], dataset: Dataset, seed: int, holdout: float
) -> TargetProblem:
    positions = [_class_index(dataset, member) for member in members]

    def balanced(split: Split, number: int) -> Subset:
        is_target = np.isin(split.labels, positions)
        positives, others = np.flatnonzero(is_target), np.flatnonzero(~is_target)
        random, count = np.random.default_rng([seed, number]), min(len(positives), len(others))
        negatives = np.sort(random.choice(others, count, replace=False))
        if len(positives) > count:
            positives = np.sort(random.choice(positives, count, replace=False))
        return Subset(
            np.concatenate([positives, negatives]),
            np.repeat(np.array([0, 1], np.int64), [len(positives), len(negatives)]),
        )

    return _problem(kind, (name, REST), members, dataset, balanced, seed, holdout)


def multiclass_problem(dataset: Dataset, classes: Sequence[str], seed: int, holdout: float = 0.0) -> TargetProblem:
    """Return the problem of telling `classes` apart, with all their images; labels are in the order of `classes`."""
    label = _head_labels(dataset, classes)

    def group(split: Split, _: int) -> Subset:
        indices = np.flatnonzero(label[split.labels] >= 0)
        return Subset(indices, label[split.labels[indices]])

    return _problem("multiclass", tuple(classes), tuple(classes), dataset, group, seed, holdout)


def multiclass_rest_problem(dataset: Dataset, classes: Sequence[str], seed: int, holdout: float = 0.0) -> TargetProblem:
    """Return the problem of telling `classes` apart and from the rest, which is the last label.

    Each of the classes has all its images. The rest has as many as they have on average, drawn from all other classes.
    """
    label = _head_labels(dataset, classes)

    def group(split: Split, number: int) -> Subset:
        members = np.flatnonzero(label[split.labels] >= 0)
        others = np.flatnonzero(label[split.labels] < 0)
        count = min(round(len(members) / len(classes)), len(others))
        negatives = np.random.default_rng([seed, number]).choice(others, count, replace=False)
        indices = np.sort(np.concatenate([members, negatives]))
        labels = label[split.labels[indices]]
        return Subset(indices, np.where(labels < 0, len(classes), labels))

    return _problem("multiclass_rest", (*classes, REST), tuple(classes), dataset, group, seed, holdout)


def _head_labels(dataset: Dataset, classes: Sequence[str]) -> np.ndarray:
    """Return the head's output for each class of the data set, -1 for those that are not among `classes`."""
    label = np.full(len(dataset.classes), -1, np.int64)
    for number, name in enumerate(classes):
        label[_class_index(dataset, name)] = number
    return label


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
    positions = [_class_index(dataset, member) for member in members]
    for name, split, subset in (("training", dataset.train, train), ("test", dataset.test, test)):
        owner = f"The {name} images of the problem {'/'.join(classes)}"
        if kind != "multiclass" and np.isin(split.labels, positions).all():
            raise UserError(f"{owner} hold none of the rest: add images of other classes than {', '.join(members)}.")
        require_every_class(subset.labels, classes, owner)
    train, holdout = hold_out(train, share, seed)
    return TargetProblem(kind, classes, members, train, holdout, test)


def are_unequal(labels: np.ndarray, classes: int) -> bool:
    """Return whether the largest of so many classes has more than UNEQUAL times the images of the smallest."""
    counts = np.bincount(labels, minlength=classes)
    return bool(counts.max() > UNEQUAL * counts.min())


def class_weights(labels: np.ndarray, classes: int) -> list[float]:
    """Return the weight of an image of each class: all classes weigh the same, and an image weighs 1 on average."""
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * counts)).tolist()


def require_every_class(labels: np.ndarray, classes: Sequence[str], owner: str) -> None:
    """Raise UserError if a class has no image. `owner` begins the sentence: "The test images of birds"."""
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise UserError(f"{owner} hold none of class {name}: add some, or leave the class out.")


def hold_out(subset: Subset, share: float, seed: int) -> tuple[Subset, Subset]:
    """Split a subset into (training, held-out) images.

    `share` of each class's images, but at least one and not all, is drawn at random and held out; share 0 holds out
    nothing. Raises UserError if a class has a single image.
    """
    if not share:
        return subset, Subset(subset.indices[:0], subset.labels[:0])
    random, held = np.random.default_rng([seed, 2]), np.zeros(len(subset), bool)
    for label in np.unique(subset.labels):
        images = np.flatnonzero(subset.labels == label)
        if len(images) < 2:
            raise UserError("A class with a single training image cannot be split: add images, or set selection: test.")
        count = min(max(1, round(share * len(images))), len(images) - 1)
        held[random.choice(images, count, replace=False)] = True
    return Subset(subset.indices[~held], subset.labels[~held]), Subset(subset.indices[held], subset.labels[held])


def _class_index(dataset: Dataset, name: str) -> int:
    if name not in dataset.classes:
        raise UserError(f"The data set has no class {name}; it has {', '.join(dataset.classes[:10])}, ...")
    return dataset.classes.index(name)

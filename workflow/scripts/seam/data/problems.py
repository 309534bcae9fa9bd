"""Target problems: which images a re-engineered model is searched, selected and judged on."""

from dataclasses import dataclass

import numpy as np

from seam.errors import UserError


@dataclass(frozen=True)
class Subset:
    """Images of one split: `indices` into it and `labels`, the head's output for each; int64 [N]."""

    indices: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.indices)


@dataclass(frozen=True)
class TargetProblem:
    """A classification problem over some classes of a data set.

    classes: the head's outputs in order; a binary problem has (target, "rest").
    members: the data set's classes that are the target, by name.
    train, holdout: parts of the training split; test: of the test split.
    """

    kind: str
    classes: tuple
    members: tuple
    train: Subset
    holdout: Subset
    test: Subset


def binary_problem(dataset, target, seed, holdout=0.0):
    """`target` against the rest: label 0 for the target's images, 1 for as many drawn from all others.

    Of a target with more images than all others together as many are drawn as those have.
    """
    index = _index(dataset, target)

    def balanced(split, number):
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


def multiclass_problem(dataset, classes, seed, holdout=0.0):
    """A group of classes among themselves, all their images; labels in the order of `classes`."""
    label = np.full(len(dataset.classes), -1, np.int64)
    for number, name in enumerate(classes):
        label[_index(dataset, name)] = number

    def group(split, _):
        indices = np.flatnonzero(label[split.labels] >= 0)
        return Subset(indices, label[split.labels[indices]])

    return _problem("multiclass", tuple(classes), tuple(classes), dataset, group, seed, holdout)


def _problem(kind, classes, members, dataset, choose, seed, share):
    train, test = choose(dataset.train, 0), choose(dataset.test, 1)
    for name, part in (("training", train), ("test", test)):
        require_every_class(part.labels, classes, f"The {name} images of the problem {'/'.join(classes)}")
    train, holdout = hold_out(train, share, seed)
    return TargetProblem(kind, classes, members, train, holdout, test)


def require_every_class(labels, classes, what):
    """Raises UserError where a class has no image; `what` has them: "The test images of birds"."""
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise UserError(f"{what} hold none of class {name}: add some, or take the class out of the config.")


def hold_out(part, share, seed):
    """(rest, held out): `share` of each class's images, at least one, drawn at random, is held out."""
    if not share:
        return part, Subset(part.indices[:0], part.labels[:0])
    random, held = np.random.default_rng([seed, 2]), np.zeros(len(part), bool)
    for label in np.unique(part.labels):
        images = np.flatnonzero(part.labels == label)
        if len(images) < 2:
            raise UserError("A class with a single training image cannot be split: add images, or set selection: test.")
        held[random.choice(images, max(1, round(share * len(images))), replace=False)] = True
    return Subset(part.indices[~held], part.labels[~held]), Subset(part.indices[held], part.labels[held])


def _index(dataset, name):
    if name not in dataset.classes:
        raise UserError(f"The data set has no class {name}; it has {', '.join(dataset.classes[:10])}, ...")
    return dataset.classes.index(name)

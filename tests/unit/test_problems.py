from types import SimpleNamespace

import numpy as np
import pytest

from seam.data.problems import Subset, binary_problem, hold_out, multiclass_problem
from seam.errors import UserError


@pytest.fixture
def dataset():
    """Ten classes, 50 training images and 10 test images each, in a random order."""
    random = np.random.default_rng(0)

    def images(count):
        return SimpleNamespace(labels=random.permutation(np.repeat(np.arange(10), count)))

    return SimpleNamespace(classes=[f"c{i}" for i in range(10)], train=images(50), test=images(10))


def test_a_binary_problem_is_balanced_in_both_splits(dataset):
    problem = binary_problem(dataset, "c3", seed=0)
    for part, split_, count in ((problem.train, dataset.train, 50), (problem.test, dataset.test, 10)):
        assert np.bincount(part.labels).tolist() == [count, count]
        original = split_.labels[part.indices]
        assert np.array_equal(original == 3, part.labels == 0)  # the target is label 0
        assert len(set(part.indices)) == 2 * count
    assert problem.classes == ("c3", "rest")


def test_a_target_of_more_than_half_of_the_images_is_balanced_too(dataset):
    dataset.train.labels = np.array([0] * 30 + [1] * 12)
    dataset.test.labels = np.array([1] * 3 + [0] * 12)
    dataset.classes = ["most", "few"]
    problem = binary_problem(dataset, "most", seed=0)
    assert np.bincount(problem.train.labels).tolist() == [12, 12]
    assert np.bincount(problem.test.labels).tolist() == [3, 3]
    assert (dataset.train.labels[problem.train.indices] == problem.train.labels).all()
    assert len(set(problem.train.indices)) == 24


def test_negatives_depend_on_the_seed_alone(dataset):
    first, again, other = (binary_problem(dataset, "c3", seed).train.indices for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    negatives = dataset.train.labels[first[50:]]
    assert len(np.unique(negatives)) > 4  # from all over the other classes


def test_a_group_has_all_its_images_labelled_in_its_order(dataset):
    problem = multiclass_problem(dataset, ["c7", "c2", "c5"], seed=0)
    original = dataset.test.labels[problem.test.indices]
    assert len(problem.test) == 30
    assert np.array_equal(np.array([7, 2, 5])[problem.test.labels], original)


def test_held_out_images_are_not_trained_on(dataset):
    whole, problem = (
        multiclass_problem(dataset, ["c1", "c2"], 0),
        multiclass_problem(dataset, ["c1", "c2"], 0, holdout=0.2),
    )
    assert len(whole.holdout) == 0 and len(problem.holdout) == 20
    assert np.bincount(problem.holdout.labels).tolist() == [10, 10]
    assert not set(problem.train.indices) & set(problem.holdout.indices)
    assert set(problem.train.indices) | set(problem.holdout.indices) == set(whole.train.indices)
    assert np.array_equal(problem.test.indices, whole.test.indices)


def test_every_class_is_held_out_at_least_once():
    part = Subset(np.arange(6), np.array([0, 0, 0, 0, 1, 1]))
    rest, held = hold_out(part, 0.1, seed=0)
    assert sorted(held.labels) == [0, 1] and len(rest) == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: binary_problem(d, "c99", 0), "no class c99"),
        (
            lambda d: multiclass_problem(
                SimpleNamespace(classes=d.classes, train=d.train, test=SimpleNamespace(labels=np.zeros(3, int))),
                ["c1", "c2"],
                0,
            ),
            "test images .* none of class c1",
        ),
        (lambda d: hold_out(Subset(np.arange(1), np.array([0])), 0.5, 0), "single training image"),
    ],
)
def test_what_cannot_be_a_problem_is_said_in_a_sentence(dataset, change, sentence):
    with pytest.raises(UserError, match=sentence):
        change(dataset)

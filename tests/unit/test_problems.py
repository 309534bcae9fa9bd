from types import SimpleNamespace

import numpy as np
import pytest

from seam.data.problems import (
    Subset,
    TargetProblem,
    binary_problem,
    class_weights,
    hold_out,
    multiclass_problem,
    target_problem,
)
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


def test_a_group_is_one_class_against_as_many_of_the_rest(dataset):
    problem = target_problem("group", dataset, "odd", ["c1", "c3", "c5"], seed=0)
    assert problem.classes == ("odd", "rest") and problem.members == ("c1", "c3", "c5")
    for part, split_, count in ((problem.train, dataset.train, 150), (problem.test, dataset.test, 30)):
        assert np.bincount(part.labels).tolist() == [count, count]
        original = split_.labels[part.indices]
        assert np.array_equal(np.isin(original, [1, 3, 5]), part.labels == 0)
        assert len(set(part.indices)) == 2 * count


def test_a_group_of_most_classes_is_sampled_down(dataset):
    problem = target_problem("group", dataset, "most", [f"c{i}" for i in range(8)], seed=0)
    assert np.bincount(problem.train.labels).tolist() == [100, 100]


def test_the_rest_is_a_class_of_its_own_beside_several(dataset):
    problem = target_problem("multiclass_rest", dataset, "pair", ["c7", "c2"], seed=0, holdout=0.2)
    assert problem.classes == ("c7", "c2", "rest")
    every = np.concatenate([problem.train.indices, problem.holdout.indices])
    assert np.bincount(dataset.train.labels[every])[[7, 2]].tolist() == [50, 50] and len(every) == 150
    for part, split_ in ((problem.train, dataset.train), (problem.test, dataset.test)):
        original = split_.labels[part.indices]
        expected = np.select([original == 7, original == 2], [0, 1], 2)
        assert np.array_equal(part.labels, expected)
    assert np.bincount(problem.holdout.labels).tolist() == [10, 10, 10]


def test_the_rest_has_no_more_images_than_there_are(dataset):
    problem = target_problem("multiclass_rest", dataset, "all", [f"c{i}" for i in range(9)], seed=0)
    assert np.bincount(problem.test.labels).tolist() == [10] * 10
    dataset.train.labels = np.array([0] * 30 + [1] * 30 + [2] * 4)
    dataset.test.labels, dataset.classes = np.array([0, 1, 2]), ["a", "b", "c"]
    problem = target_problem("multiclass_rest", dataset, "ab", ["a", "b"], seed=0)
    assert np.bincount(problem.train.labels).tolist() == [30, 30, 4] and problem.is_unequal


def test_classes_are_unequal_from_more_than_twice_the_images(dataset):
    def problem(large, small):
        dataset.train.labels = np.array([0] * large + [1] * small)
        dataset.test.labels, dataset.classes = np.array([0, 1]), ["large", "small"]
        return target_problem("multiclass", dataset, "both", ["large", "small"], seed=0, holdout=0.1)

    assert problem(40, 19).is_unequal and not problem(40, 20).is_unequal
    dataset_of_equal = problem(20, 20)
    assert not dataset_of_equal.is_unequal
    assert TargetProblem(
        **{**vars(dataset_of_equal), "test": Subset(np.arange(4), np.array([0, 0, 0, 1]))}
    ).is_unequal, "unequal test images mislead, too"


def test_weights_make_classes_count_the_same():
    labels = np.array([0] * 20 + [1] * 400)
    weights = class_weights(labels, 2)
    assert weights == [10.5, 0.525]
    assert np.isclose(np.array(weights)[labels].mean(), 1)
    assert class_weights(np.array([0, 1, 1, 0]), 2) == [1, 1]

"""Classes of very unequal size: what decides, what is recorded, and a result that always says the same."""

import functools
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from colours import ARCHITECTURE

from seam import evaluation
from seam.data.kinds.registry import prepare_dataset
from seam.errors import UserError
from seam.evaluation import (
    balanced_accuracy,
    class_metrics,
    confusion_matrix,
    require_better_than_guessing,
    require_several_answers,
    source_accuracy,
    source_predictions,
)
from seam.files import read_json
from seam.reuse import direct
from seam.reuse.baselines import train_baseline
from seam.reuse.direct import Reengineering, reengineer
from seam.reuse.recovered_baselines import recover_baseline
from seam.reuse.recovery import recover
from seam.search.stack import losses
from seam.training.losses import class_loss

SETTINGS = {"epochs": 10, "batch_size": 16, "lr_mask": 0.05, "lr_head": 0.05, "alpha": 0.3, "few_images": 0}
SOURCE = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def unequal_folder(colours, tmp_path_factory):
    """The colours with 5 training and 10 test images of red, and 40 and 20 of all others."""
    root = tmp_path_factory.mktemp("unequal")
    shutil.copytree(colours, root / "images")
    for split, count in (("train", 5), ("test", 6)):
        for path in sorted((root / "images" / split / "red").iterdir())[count:]:
            path.unlink()
    prepare_dataset({"kind": "imagefolder", "root": str(root / "images"), "size": 16}, root / "prepared")
    return root / "prepared"


@pytest.fixture
def arguments(tmp_path, model_folder, unequal_folder):
    """The arguments of `reengineer` for red (few images) and blue."""
    return {
        "folder": tmp_path / "result", "model_folder": model_folder, "dataset_folder": unequal_folder,
        "model": "small", "dataset": "unequal", "problem": "multiclass", "target": "pair", "members": ["red", "blue"],
        "settings": SETTINGS, "seed": 0, "device": "cpu", "checkpoint": tmp_path / "checkpoint.pt",
        "architecture": ARCHITECTURE,
    }  # fmt: skip


def logits_of(predictions, classes):
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


def test_balanced_accuracy_is_the_mean_of_the_recalls():
    labels = torch.tensor([0] * 2 + [1] * 8)
    always = logits_of([1] * 10, 2)
    assert evaluation.accuracy(always, labels) == 0.8
    assert balanced_accuracy(always, labels) == 0.5
    assert balanced_accuracy(logits_of([0, 1] + [1] * 6 + [0] * 2, 2), labels) == (0.5 + 0.75) / 2
    assert balanced_accuracy(logits_of([1] * 8, 3), labels[2:]) == 1  # of the classes that there are


def test_confusion_matrix_and_metrics_by_hand():
    predictions, labels = torch.tensor([0, 1, 1, 1, 0]), torch.tensor([0, 0, 1, 1, 1])
    matrix = confusion_matrix(predictions, labels, 3)
    assert matrix == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    metrics = class_metrics(matrix, ["a", "b", "c"])
    assert metrics["a"] == {"recall": 0.5, "precision": 0.5}
    assert metrics["b"] == {"recall": 2 / 3, "precision": 2 / 3}
    assert metrics["c"] == {"recall": None, "precision": None}


@pytest.mark.parametrize(
    ("kind", "members", "every", "restricted"),
    [
        ("binary", ["c"], [1, 0, 1], [1, 0, 1]),
        ("group", ["c", "a"], [0, 0, 1], [0, 0, 1]),
        ("multiclass", ["c", "a"], [1, 0, -1], [1, 0, 0]),
        ("multiclass_rest", ["c", "a"], [1, 0, 2], [1, 0, 2]),
    ],
)
def test_what_the_source_models_answers_stand_for(kind, members, every, restricted):
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 0, 9, 0], [1, 0, 2, 9]])  # a, c, d
    problem = SimpleNamespace(kind=kind, members=members)
    assert [each.tolist() for each in source_predictions(logits, problem, SOURCE)] == [every, restricted]
    labels = torch.tensor(restricted)
    assert source_accuracy(logits, labels, problem, SOURCE)[1] == 1


def test_guessing_among_unequal_classes_is_judged_by_the_small_ones():
    require_better_than_guessing(0.40, 2, 420, "It", counts=[20, 400])  # chance, with so few of one class
    with pytest.raises(UserError, match="balanced accuracy of 40.0 % on 1000 test images, and guessing 50.0 %"):
        require_better_than_guessing(0.40, 2, 1000, "It", counts=[500, 500])
    with pytest.raises(UserError, match="gets 40.0 % of 1000 test images right, and guessing 50.0 %"):
        require_better_than_guessing(0.40, 2, 1000, "It")


def test_a_single_answer_is_an_error_unless_chance_explains_it(caplog):
    classes = ["cat", "dog"]
    with pytest.raises(UserError, match="It says dog for each of the 420 test images, of which 20 are of other"):
        require_several_answers([[0, 20], [0, 400]], classes, "It", "do this.")
    require_several_answers([[0, 0], [0, 420]], classes, "It", "do this.")  # a single class
    require_several_answers([[0, 20], [1, 399]], classes, "It", "do this.")
    assert not caplog.records
    require_several_answers([[0, 2], [0, 2]], classes, "It", "do this.")
    assert "It says dog for each of the 4" in caplog.text


def test_the_weighted_loss_is_that_of_images_repeated():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 3, generator=generator), torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    weights = [2.0, 1.0, 0.5]
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = (each * torch.tensor(weights)[labels]).mean()
    torch.testing.assert_close(class_loss(weights, torch.device("cpu"))(logits, labels), expected)
    stacked = losses(torch.stack([logits, -logits], 1), torch.stack([labels, labels], 1), torch.tensor(weights))
    torch.testing.assert_close(stacked[0], expected)


def test_balanced_accuracy_decides_where_classes_are_unequal(arguments):
    metrics = reengineer(**arguments)
    stored = json.loads((arguments["folder"] / "metrics.json").read_text())
    assert stored["decided_by"] == "balanced_accuracy"
    assert stored["test_images"] == {"red": 6, "blue": 20}
    matrix = stored["confusion"]["reengineered"]
    assert [sum(row) for row in matrix] == [6, 20]
    recalls = [matrix[0][0] / 6, matrix[1][1] / 20]
    assert [stored["per_class"]["reengineered"][name]["recall"] for name in ("red", "blue")] == recalls
    assert math.isclose(stored["balanced_accuracy"]["reengineered"], sum(recalls) / 2)
    assert stored["accuracy"]["reengineered"] == (matrix[0][0] + matrix[1][1]) / 26
    assert metrics["holdout_accuracy"]["source"] in (0.5, 0.75, 1.0, *np.arange(17) / 16)  # a red and eight blue


@pytest.mark.parametrize(("balance", "members"), [("never", ["red", "blue"]), ("auto", ["green", "blue"])])
def test_plain_accuracy_decides_otherwise(arguments, balance, members):
    made = Reengineering(**arguments | {"members": members, "settings": SETTINGS | {"balance": balance}})
    assert made.class_weights is None and made.measure is evaluation.accuracy
    always = Reengineering(**arguments | {"members": members, "settings": SETTINGS | {"balance": "always"}})
    assert always.measure is balanced_accuracy and len(always.class_weights) == 2


@pytest.mark.parametrize("kind", ["group", "multiclass_rest"])
def test_problems_with_a_rest_are_re_engineered(arguments, kind, dataset_folder):
    reengineer(**arguments | {"problem": kind, "dataset_folder": dataset_folder})
    metrics = read_json(arguments["folder"] / "metrics.json")
    assert metrics["classes"] == (["pair", "rest"] if kind == "group" else ["red", "blue", "rest"])
    assert metrics["decided_by"] == "accuracy"
    assert metrics["accuracy"]["source"] == metrics["accuracy"]["source_restricted"] > 0.8
    assert metrics["accuracy"]["reengineered"] > 0.6
    assert metrics["test_images"] == (
        {"pair": 40, "rest": 40} if kind == "group" else dict.fromkeys(metrics["classes"], 20)
    )


def test_a_result_with_a_single_answer_fails_its_job_and_leaves_no_metrics(arguments, monkeypatch, caplog):
    load = direct.load_reengineered

    @functools.wraps(load)
    def constant(*paths, **options):
        model = load(*paths, **options)
        model.get_submodule("head").bias[1] += 1e6
        return model

    monkeypatch.setattr(direct, "load_reengineered", constant)
    monkeypatch.setattr(evaluation, "FEWEST_OTHERS", 6)
    with pytest.raises(UserError, match="multiclass problem pair says blue for each of the 26 test images, of which 6"):
        reengineer(**arguments)
    assert not (arguments["folder"] / "metrics.json").exists()
    reengineer(**arguments, allow_one_answer=True)
    assert "pair says blue for each of the 26 test images" in caplog.text


def baseline_of(arguments, name):
    folder = arguments["folder"] / "baselines" / name
    training = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005, "label_smoothing": 0.0}
    return train_baseline(
        name, arguments["folder"], training if name == "scratch" else None,
        **arguments | {"folder": folder, "checkpoint": folder / "c.pt"},
    )  # fmt: skip


def recovery_of(arguments, **others):
    own = {name: value for name, value in arguments.items() if name != "folder"}
    own |= {"settings": {"epochs": 2, "batch_size": 16}, "checkpoint": arguments["folder"] / "r.pt"}
    return own | {"folder": arguments["folder"], "masks_folder": arguments["folder"]} | others


@pytest.mark.parametrize("name", ["random", "scratch"])
def test_a_baseline_is_trained_and_judged_as_the_search(arguments, name, monkeypatch):
    searched = reengineer(**arguments)
    weighed = []
    monkeypatch.setattr(
        "seam.reuse.direct.class_loss",
        lambda weights, *others: weighed.append(weights) or class_loss(weights, *others),
    )
    metrics = baseline_of(arguments, name)
    assert weighed and None not in weighed
    assert metrics["decided_by"] == "balanced_accuracy"
    assert metrics["balanced_accuracy"]["source"] == searched["balanced_accuracy"]["source"]
    assert metrics["holdout_accuracy"]["source"] == searched["holdout_accuracy"]["source"]
    history = pd.read_csv(arguments["folder"] / "baselines" / name / "history.csv")
    assert metrics["holdout_accuracy"]["baseline"] == history["accuracy"].max()
    assert all(value % (1 / 16) == 0 for value in history["accuracy"])  # of a red and eight blue images


def test_training_from_nothing_weighs_the_classes_alike(arguments):
    """Otherwise the gradient of the five red images is lost among those of forty blue ones."""
    histories = []
    for balance in ("never", "always"):
        own = arguments | {"settings": SETTINGS | {"balance": balance}, "folder": arguments["folder"] / balance}
        reengineer(**own)
        baseline_of(own, "scratch")
        histories.append(pd.read_csv(own["folder"] / "baselines/scratch/history.csv")["loss"])
    assert histories[0][0] != histories[1][0]


@pytest.mark.parametrize("balance", ["auto", "always", "never"])
def test_the_recovery_is_judged_and_weighs_as_the_search(arguments, balance, monkeypatch):
    from seam.reuse import recovery as module

    searched = reengineer(**arguments | {"settings": SETTINGS | {"balance": balance}})
    train, weights = module.train, []
    monkeypatch.setattr(module, "train", lambda *each: weights.append(each[7]) or train(*each))
    metrics = recover(**recovery_of(arguments))
    assert (weights[0] is None) == (balance == "never")
    # The same model on the same images, in the same measure.
    assert metrics["holdout_accuracy"]["before"] == searched["holdout_accuracy"]["reengineered"]
    history = pd.read_csv(arguments["folder"] / "recovery.csv")
    assert metrics["holdout_accuracy"]["after"] == history["accuracy"].iloc[-1]


def test_a_recovery_holds_out_no_image_that_a_search_with_few_images_trained_on(arguments, monkeypatch):
    """With few images the search takes `selection: last`, whatever the config says."""
    from seam.reuse import recovery as module

    arguments["settings"] = SETTINGS | {"few_images": 50}
    searched = reengineer(**arguments)
    assert searched["images"]["holdout"] == 0
    seen = []
    of_images = module.TrainingImages
    monkeypatch.setattr(module, "TrainingImages", lambda *each: seen.append(len(each[1].train)) or of_images(*each))
    assert recover(**recovery_of(arguments))["holdout_accuracy"] is None
    baseline_of(arguments, "magnitude")
    folder = arguments["folder"] / "baselines/magnitude"
    metrics = recover_baseline(
        "magnitude-recovered", **recovery_of(arguments, folder=folder / "own", masks_folder=folder)
    )
    assert metrics["holdout_accuracy"] is None and metrics["balanced_accuracy"]["before_recovery"] > 0
    assert seen == [searched["images"]["train"]] * 2

"""Numbers that go wrong: each stops its own job with one sentence, and the others' results are made all the same."""

import json

import numpy as np
import pytest
import torch
from colours import ARCHITECTURE
from torch.nn.functional import cross_entropy

from seam.data.preparation import write_dataset
from seam.data.problems import binary_problem, group_problem, multiclass_problem
from seam.data.storage import Split, open_dataset
from seam.errors import UserError
from seam.evaluation import predict, require_better_than_guessing
from seam.masks.masks import Masks
from seam.models.architectures import build_model
from seam.models.weights import Source, open_source, save_source
from seam.reuse.direct import reengineer
from seam.reuse.source_evaluation import evaluate_source
from seam.reuse.source_training import train_source
from seam.reuse.students import train_student
from seam.reuse.transfer import Transfer

COMMON = {"batch_size": 16, "selection": "holdout", "holdout": 0.2, "last_layer": None}
SETTINGS = {"architecture": ARCHITECTURE, "dataset": "colours", "weights": "train"}

# ---------------------------------------------------------------------- a loss that is no number


def bad_after(steps, value):
    """A cross entropy that becomes `value` after so many steps."""
    calls = []

    def loss(*arguments, **options):
        calls.append(1)
        return cross_entropy(*arguments, **options) * (1.0 if len(calls) <= steps else value)

    return loss


def training(folder, model_folder, dataset_folder):
    settings = {**SETTINGS, "normalization": None, "seed": 0}
    settings["training"] = {"epochs": 3, "batch_size": 16, "lr": 0.05}
    train_source(folder / "w.safetensors", folder / "h.csv", "small", dataset_folder, settings, "cpu", folder / "x.pt")


def searching(folder, model_folder, dataset_folder):
    settings = {"epochs": 4, "batch_size": 16, "lr_mask": 0.05, "few_images": 0}
    names = {"model": "small", "dataset": "colours", "problem": "binary", "target": "red", "members": ["red"]}
    reengineer(
        folder=folder, model_folder=model_folder, dataset_folder=dataset_folder, **names, settings=settings, seed=0,
        device="cpu", checkpoint=folder / "x.pt", architecture=ARCHITECTURE,
    )  # fmt: skip


def finetuning(folder, model_folder, dataset_folder):
    settings = {"epochs": 3, "patience": 3, "lr": 0.01, "lr_last": 0.05, "weight_decay": 0.0}
    train_student(
        folder, model_folder, dataset_folder, "small", "colours", "standard", None, COMMON, settings, 0,
        {"architecture": "small", "weights_origin": "train"}, "cpu", folder / "x.pt",
        architecture=ARCHITECTURE,
    )  # fmt: skip


def supervised_loss(patch, loss):
    patch.setattr("seam.training.supervised.cross_entropy", loss)


def search_loss(patch, loss):
    patch.setattr("seam.search.plain.class_loss", lambda weights, device: loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("job", "use_loss", "steps", "advice"),  # all but the last step of two epochs
    [
        (training, supervised_loss, 19, "lower training.lr"),
        (searching, search_loss, 7, "lower lr_mask, lr_head or alpha"),
        (finetuning, supervised_loss, 15, "lower its lr in transfer"),
    ],
)
def test_a_loss_that_is_not_finite_stops_its_job_and_the_last_good_state_is_kept(
    tmp_path, model_folder, dataset_folder, monkeypatch, job, use_loss, steps, advice, value
):
    with monkeypatch.context() as patch:
        use_loss(patch, bad_after(steps, value))
        sentence = rf"The loss became {value} in epoch 2: {advice} \(the last good state is in .*x.pt\)\."
        with pytest.raises(UserError, match=sentence):
            job(tmp_path, model_folder, dataset_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]  # and nothing of a result
    state = torch.load(tmp_path / "x.pt", weights_only=True)["state"]
    assert state["run"]["epoch"] == 2 and len(state["run"]["history"]) == 1
    job(tmp_path, model_folder, dataset_folder)  # resumes from there
    assert not (tmp_path / "x.pt").exists() and list(tmp_path.glob("*.csv"))


def test_logits_that_are_not_finite_are_never_an_accuracy():
    batches = [(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))]
    assert predict(torch.nn.Identity(), batches)[0].shape == (4, 3)
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="became NaN or infinite: lower its learning rates"):
            predict(torch.nn.Identity(), [*batches, (torch.full((1, 3), value), torch.zeros(1, dtype=torch.long))])


# ---------------------------------------------------------------------- masks that keep nothing


def test_masks_without_a_weight_are_named_with_their_epoch():
    masks = Masks(torch.nn.Linear(4, 2))
    assert masks.retention(1) == 1.0
    for value in masks.values.values():
        value.fill_(-1.0)
    with pytest.raises(UserError, match="No weight was left in epoch 7: lower alpha or lr_mask"):
        masks.retention(7)


# ---------------------------------------------------------------------- images that are not there


@pytest.fixture
def lacking(tmp_path, dataset_folder):
    """A function that gives the data set without the images of a class in a split."""

    def without(split, name):
        images = open_dataset(dataset_folder)
        splits = {"train": images.train, "test": images.test}
        kept = splits[split].labels != images.classes.index(name)
        size = images.size
        splits[split] = Split(splits[split].labels[kept], size, np.asarray(splits[split].images)[kept])
        write_dataset(tmp_path / "colours", splits, images.kind, images.classes, list(images.augmentation))
        return tmp_path / "colours"

    return without


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_problem_without_images_is_a_sentence(lacking, split):
    images, name = open_dataset(lacking(split, "red")), {"train": "training", "test": "test"}[split]
    for problem, sentence in (
        (
            lambda: binary_problem(images, "red", 0),
            f"The {name} images of the problem red/rest hold none of class red: add",
        ),
        (
            lambda: multiclass_problem(images, ["blue", "red"], 0),
            f"The {name} images of the problem blue/red hold none of c",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            problem()
    assert len(multiclass_problem(images, ["blue", "green"], 0).test) == 40  # others do not mind
    with pytest.raises(UserError, match=f"The {name} images of .*/rest hold none of the rest: add .* than blue, gre"):
        group_problem(images, "all", ["blue", "green", "yellow"], 0)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_student_needs_images_of_every_class(lacking, model_folder, split):
    folder, name = lacking(split, "red"), {"train": "training", "test": "test"}[split]
    for selection in ("holdout", "test"):
        with pytest.raises(UserError, match=f"The {name} images of colours hold none of class red: add some, or lea"):
            Transfer(
                model_folder, folder, ("small", "colours", "standard"), COMMON | {"selection": selection}, 0, "cpu",
                ARCHITECTURE,
            )  # fmt: skip


# ---------------------------------------------------------------------- a source model that knows nothing


@pytest.fixture
def mixed_up(tmp_path, model_folder):
    """The source model with its classes in a wrong order."""
    source = open_source(model_folder, architecture=ARCHITECTURE)
    source.classes = source.classes[1:] + source.classes[:1]
    save_source(tmp_path / "mixed" / "source.safetensors", source)
    return tmp_path / "mixed"


def evaluate(folder, dataset_folder, tmp_path):
    weights = folder / "source.safetensors"
    evaluate_source(tmp_path / "metrics.json", "small", weights, dataset_folder, SETTINGS, "cpu")
    return json.loads((tmp_path / "metrics.json").read_text())


def test_a_source_model_below_chance_is_a_sentence(mixed_up, model_folder, dataset_folder, tmp_path):
    sentence = (
        r"The source model small on colours gets [0-9.]+ % of 80 test images right, and guessing 25.0 %: check that "
        "its classes are in the order in which it was trained, and its normalization"
    )
    with pytest.raises(UserError, match=sentence):
        evaluate(mixed_up, dataset_folder, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    assert evaluate(model_folder, dataset_folder, tmp_path)["accuracy"] > 0.7


def test_a_source_model_below_chance_is_not_searched(mixed_up, dataset_folder, tmp_path):
    with pytest.raises(
        UserError, match=r"small on the multiclass problem cold gets [0-9.]+ % of 40 .* guessing 50.0 %"
    ):
        reengineer(
            folder=tmp_path / "out", model_folder=mixed_up, dataset_folder=dataset_folder, model="small",
            dataset="colours", problem="multiclass", target="cold", members=["blue", "green"],
            settings={"epochs": 2, "batch_size": 16}, seed=0, device="cpu", checkpoint=tmp_path / "x.pt",
            architecture=ARCHITECTURE,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("seed"), range(4))
def test_a_model_that_was_never_trained_is_not_refused(seed, model_folder, dataset_folder, tmp_path, caplog):
    torch.manual_seed(seed)
    trained = open_source(model_folder, architecture=ARCHITECTURE)
    save_source(
        tmp_path / "source.safetensors",
        Source(build_model(ARCHITECTURE, 4), trained.classes, trained.normalization, ARCHITECTURE),
    )
    accuracy = evaluate(tmp_path, dataset_folder, tmp_path)["accuracy"]
    assert ("no better than that" in caplog.text) == (accuracy <= 0.25)


def test_chance_has_room_for_few_images():
    require_better_than_guessing(0.0, 10, 20, "It")  # none of 20 right happens
    with pytest.raises(UserError):
        require_better_than_guessing(0.0, 10, 200, "It")
    require_better_than_guessing(0.41, 2, 200, "It")
    with pytest.raises(UserError):
        require_better_than_guessing(0.39, 2, 200, "It")


def test_a_source_model_whose_data_lack_a_class_is_a_sentence(lacking, model_folder, tmp_path):
    folder = lacking("test", "red")
    with pytest.raises(UserError, match="The test images of colours hold none of class red"):
        evaluate(model_folder, folder, tmp_path)


def test_weights_that_overflow_are_a_sentence(model_folder, dataset_folder, tmp_path):
    source = open_source(model_folder, architecture=ARCHITECTURE)
    with torch.no_grad():
        next(iter(source.module.parameters())).fill_(1e38)
    save_source(tmp_path / "large" / "source.safetensors", source)
    with pytest.raises(UserError, match="became NaN or infinite"):
        evaluate(tmp_path / "large", dataset_folder, tmp_path)

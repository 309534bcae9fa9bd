import json

import numpy as np
import pandas as pd
import pytest
import torch
from colours import ARCHITECTURE
from safetensors.torch import load_file

from seam.data.storage import open_dataset
from seam.errors import UserError
from seam.files import load_tensors, read_json
from seam.masks.bits import unpack_bits
from seam.masks.layers import maskable
from seam.models.weights import open_source
from seam.reuse.defects import attack_source, evaluate_defects
from seam.reuse.load import load_student
from seam.reuse.students import bits_of, train_head, train_student
from seam.reuse.threshold_search import search_masks
from seam.reuse.transfer import Transfer
from seam.search.by_threshold import search_by_threshold
from seam.settings import LastLayerSettings, ThresholdSearchSettings
from seam.training.supervised import train_last_layer

COMMON = {"batch_size": 16, "selection": "holdout", "holdout": 0.2, "last_layer": None}
SGD = {"epochs": 6, "patience": 6, "lr": 0.05, "weight_decay": 1e-4, "momentum": 0.5}
SEARCH = {"epochs": 80, "lr_mask": 0.02, "lr_last": 0.01, "alpha": 0.03}
ATTACK = {"eps": 0.1, "step": 0.01, "steps": 10, "clip": [-2.2, 2.2], "target": 1000.0, "weight": 0.1, "batch_size": 32}
ORIGIN = {"architecture": "small.py:build", "weights_origin": "train"}
THRESHOLDS = [0.3, 0.5, 0.6]


@pytest.fixture(scope="module")
def places(model_folder, dataset_folder):
    return {"model_folder": model_folder, "dataset_folder": dataset_folder, "model": "small", "dataset": "colours"} | {
        "architecture": ARCHITECTURE
    }


@pytest.fixture(scope="module")
def search(places, tmp_path_factory):
    """The folder of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("search")
    shared = places | {"common": COMMON, "seed": 0, "device": "cpu", "checkpoint": folder / "x.pt"}
    train_head(folder, head=SGD, **shared)
    search_masks(folder, search=SEARCH, thresholds=THRESHOLDS, **shared)
    return folder


@pytest.fixture(scope="module")
def student(places, search, tmp_path_factory):
    """A function that makes a student, each once; gives its folder."""
    made = {}

    def make(name, threshold=None, **changes):
        key = name, threshold, json.dumps(changes)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(name)
            arguments = {"common": COMMON, "settings": SGD | {"lr_last": 0.1}, "seed": 0} | changes
            train_student(
                made[key], **places, student=name, threshold=threshold, origin=ORIGIN, device="cpu",
                checkpoint=made[key] / "x.pt", masks=search / "masks.safetensors", **arguments,
            )  # fmt: skip
        return made[key]

    return make


def training(folder):
    return json.loads((folder / "training.json").read_text())


def bits(search, threshold, model_folder):
    tensors, _ = load_tensors(search / "masks.safetensors")
    chosen = {key.partition("/")[2]: value for key, value in tensors.items() if key.startswith(f"{threshold:g}/")}
    return unpack_bits(chosen, open_source(model_folder, architecture=ARCHITECTURE).module)


# ---------------------------------------------------------------------- steps 1 and 2


def test_the_head_alone_is_trained_and_learns(search, model_folder):
    history = pd.read_csv(search / "head.csv")
    assert history["accuracy"].max() > 0.8 and history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert set(load_file(search / "head.safetensors")) == {"weight", "bias"}


class Statistics(torch.nn.Module):
    """A batch norm by hand."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 8, 1, 1))

    def forward(self, images):
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(images.mean((0, 2, 3), keepdim=True), 0.1)
        return images - self.mean


def test_statistics_that_are_no_batch_norms_stay_in_steps_1_and_2():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), Statistics(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 2)
    )
    images, labels = torch.randn(32, 3, 8, 8) + 1, torch.arange(32) % 2
    batches = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    head = LastLayerSettings(epochs=2, patience=2, lr=0.1, weight_decay=0.0, momentum=0.0)
    train_last_layer(model, "4", batches, batches, head)
    assert not model[1].mean.any()
    settings = ThresholdSearchSettings(epochs=2, lr_mask=0.01, lr_last=0.01, alpha=0.0)
    search_by_threshold(model, "4", batches, batches, settings, [0.9])
    assert not model[1].mean.any()


def test_one_search_stores_the_masks_of_all_thresholds(search, model_folder):
    history = pd.read_csv(search / "history.csv")
    _, about = load_tensors(search / "masks.safetensors")
    for threshold in THRESHOLDS:
        found = bits(search, threshold, model_folder)
        kept = sum(int(b.sum()) for b in found.values()) / sum(b.numel() for b in found.values())
        epoch = about["reached"][f"{threshold:g}"]
        assert 1 - kept >= threshold and kept == pytest.approx(history["retention"][epoch - 1])
        assert (1 - history["retention"][: epoch - 1] < threshold).all()  # the first such epoch
        assert not any(name.startswith("8.") for name in found)  # the last layer has no mask
    assert len(history) == about["reached"]["0.6"]  # and then it ends


def test_a_threshold_that_was_not_reached_is_an_error_of_its_student(search, places, tmp_path):
    shared = places | {"common": COMMON, "seed": 0, "device": "cpu", "checkpoint": tmp_path / "x.pt"}
    (tmp_path / "head.safetensors").write_bytes((search / "head.safetensors").read_bytes())
    (tmp_path / "head.csv").write_bytes((search / "head.csv").read_bytes())
    epochs = load_tensors(search / "masks.safetensors")[1]["reached"]["0.3"]
    search_masks(tmp_path, search=SEARCH | {"epochs": epochs}, thresholds=[0.3, 0.9], **shared)
    source = open_source(places["model_folder"], architecture=ARCHITECTURE).module
    assert bits_of(tmp_path / "masks.safetensors", "seam", 0.3, source, None)[1] == epochs
    with pytest.raises(UserError, match=r"removed at most 0\.\d+ of the weights, not 0.9: give transfer.search more"):
        bits_of(tmp_path / "masks.safetensors", "seam", 0.9, source, None)


def test_ordered_masks_remove_the_smallest_weights_first(search, places, model_folder, tmp_path):
    """At a rate at which all equal masks stay above zero in the first epoch, ordered ones have begun to fall."""
    shared = places | {"common": COMMON, "seed": 0, "device": "cpu"}
    removed = {}
    for order in ("equal", "magnitude"):
        folder = tmp_path / order
        folder.mkdir()
        (folder / "head.safetensors").write_bytes((search / "head.safetensors").read_bytes())
        settings = SEARCH | {"epochs": 1, "lr_mask": 0.06, "alpha": 100.0, "initial_masks": order}
        search_masks(folder, search=settings, thresholds=[0.01], checkpoint=folder / "x.pt", **shared)
        removed[order] = 1 - pd.read_csv(folder / "history.csv")["retention"].iloc[0]
    assert removed["equal"] == 0 < 0.01 <= removed["magnitude"] < 0.9
    source = open_source(model_folder, architecture=ARCHITECTURE).module
    for name, bit in bits(tmp_path / "magnitude", 0.01, model_folder).items():
        weight = dict(source.named_parameters())[name].detach().abs()
        if 0 < bit.sum() < bit.numel():
            assert weight[bit].mean() > weight[~bit].mean()


# ---------------------------------------------------------------------- step 3, and the other students


def test_every_student_learns_the_target(student):
    for name, threshold in (("standard", None), ("retrain", None), ("seam", 0.5), ("magnitude", 0.5), ("random", 0.5)):
        found = training(student(name, threshold))
        assert found["holdout_accuracy"] > 0.7, name
        assert found["student"] == name and found["threshold"] == threshold
        assert found["images"] == {"train": 128, "holdout": 32, "test": 80}


def test_the_results_of_a_masked_student_have_its_retention(student, search):
    found = training(student("seam", 0.5))
    history = pd.read_csv(search / "history.csv")
    assert found["retention"] == found["kept"] / found["weights"] <= 0.5
    assert found["retention"] == pytest.approx(history["retention"][found["search_epochs"] - 1])
    seconds = pd.read_csv(search / "head.csv")["seconds"].sum() + history["seconds"][: found["search_epochs"]].sum()
    assert found["search_seconds"] == pytest.approx(seconds)
    assert training(student("standard"))["retention"] is None


def test_zeros_grow_back_as_published_unless_they_are_kept(student, search, model_folder):
    masks = bits(search, 0.5, model_folder)
    settings = SGD | {"lr_last": 0.1, "keep_zeros": True}
    for folder, kept in ((student("seam", 0.5), False), (student("seam", 0.5, settings=settings), True)):
        weights = maskable(load_student(folder, ARCHITECTURE))
        removed = torch.cat([weights[name][~bit] for name, bit in masks.items()])
        assert bool((removed == 0).all()) is kept
        assert training(folder)["settings"]["finetune"].get("keep_zeros", False) is kept


def test_masks_for_comparison_keep_as_many_weights_of_each_parameter(search, model_folder):
    source, path = open_source(model_folder, architecture=ARCHITECTURE).module, search / "masks.safetensors"
    seam = bits(search, 0.5, model_folder)
    for name in ("magnitude", "random"):
        generator = torch.Generator().manual_seed(0)
        found, _, _ = bits_of(path, name, 0.5, source, generator)
        assert {k: int(b.sum()) for k, b in found.items()} == {k: int(b.sum()) for k, b in seam.items()}
        assert any(not torch.equal(found[k], seam[k]) for k in seam)
        for key, bit in found.items():
            weight = source.get_parameter(key).abs()
            if name == "magnitude" and 0 < bit.sum() < bit.numel():
                assert weight[bit].min() >= weight[~bit].max()


def test_retraining_knows_nothing_of_the_source_model(student, model_folder):
    source = open_source(model_folder, architecture=ARCHITECTURE).module.state_dict()
    for name, near in (("standard", True), ("retrain", False)):
        weights = load_student(student(name), ARCHITECTURE).state_dict()["0.weight"]
        assert torch.allclose(weights, source["0.weight"], atol=0.2) is near


def test_remos_removes_its_share_of_the_convolutions_before_it_finetunes(student, model_folder):
    settings = SGD | {"lr_last": 0.1, "ratio": 0.2, "coverage": 0.4}
    found = training(student("remos", settings=settings))
    source = open_source(model_folder, architecture=ARCHITECTURE).module
    count = sum(source.get_parameter(f"{name}.weight").numel() for name in ("0", "3"))
    assert found["weights"] == training(student("random", 0.5))["weights"] > count
    assert found["weights"] - found["kept"] == round(0.2 * count)
    assert found["settings"]["remos"] == settings and found["holdout_accuracy"] > 0.6
    assert found["search_epochs"] is None and found["threshold"] is None
    kept = student("remos", settings=settings | {"keep_zeros": True})
    weights = load_student(kept, ARCHITECTURE)
    zeros = sum(int((weights.get_parameter(f"{name}.weight") == 0).sum()) for name in ("0", "3"))
    assert zeros == round(0.2 * count)


def test_the_same_seed_gives_the_same_student_and_another_does_not(student):
    first = (student("random", 0.5) / "student.safetensors").read_bytes()
    again = student("random", 0.5, common=dict(COMMON))
    assert (again / "student.safetensors").read_bytes() == first
    other = student("random", 0.5, seed=1)
    assert (other / "student.safetensors").read_bytes() != first


def test_the_best_epoch_is_kept_and_patience_ends_the_training(student):
    folder = student("standard", settings=SGD | {"lr_last": 0.1, "epochs": 40, "patience": 3})
    history, found = pd.read_csv(folder / "history.csv"), training(folder)
    assert found["epochs"] == len(history) < 40
    assert found["selected_epoch"] == history["accuracy"].idxmax() + 1 == len(history) - 3
    assert found["holdout_accuracy"] == history["accuracy"].max()


def test_the_published_selection_trains_on_all_images(student):
    found = training(student("standard", common=COMMON | {"selection": "test"}))
    assert found["images"] == {"train": 160, "holdout": 0, "test": 80} and found["holdout_accuracy"] is None


# ---------------------------------------------------------------------- attack and defects


@pytest.fixture(scope="module")
def attack(places, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attack")
    attack_source(folder, **places, last_layer=None, settings=ATTACK, seed=0, device="cpu")
    return folder


def test_the_same_perturbations_are_made_again(attack, places, tmp_path):
    attack_source(tmp_path, **places, last_layer=None, settings=ATTACK, seed=0, device="cpu")
    first, again = (np.load(folder / "perturbations.npy") for folder in (attack, tmp_path))
    assert np.array_equal(first, again) and first.shape == (80, 16, 16, 3)
    about = json.loads((attack / "attack.json").read_text())
    assert about["images"] == 80 and about["loss_after"] > about["loss_before"]


def test_an_attack_on_the_student_itself_is_one_more_number(attack, student, dataset_folder):
    folder = student("standard")
    metrics = []
    for adaptive in (True, True, False):
        evaluate_defects(folder, attack, dataset_folder, "cpu", architecture=ARCHITECTURE, adaptive=adaptive)
        metrics.append(read_json(folder / "metrics.json"))
    first, again, without = metrics
    assert first == again
    assert {**without, "right_adaptive": first["right_adaptive"]} == {
        name: value for name, value in first.items() if name != "accuracy_adaptive"
    }
    assert first["accuracy_adaptive"] == first["right_adaptive"] / 80 <= first["accuracy_perturbed"] + 0.1


def test_defects_are_counted_as_by_hand(attack, student, dataset_folder):
    folder = student("standard")
    evaluate_defects(folder, attack, dataset_folder, "cpu", batch_size=7, architecture=ARCHITECTURE)
    found, images = json.loads((folder / "metrics.json").read_text()), open_dataset(dataset_folder)
    model, levels = load_student(folder, ARCHITECTURE), np.load(attack / "perturbations.npy")
    mean, std = (torch.tensor(v)[:, None, None] for v in model.normalization)
    right = inherited = 0
    for image, level, label in zip(images.test.images, levels, images.test.labels, strict=True):
        clean = (torch.tensor(image).permute(2, 0, 1) / 255 - mean) / std
        moved = clean.clamp(-2.2, 2.2) + torch.tensor(level).permute(2, 0, 1) * 0.1 / 127
        with torch.no_grad():
            answers = model(torch.stack([clean, moved.clamp(-2.2, 2.2)])).argmax(1).tolist()
        right += answers[0] == label
        inherited += answers[0] == label and answers[1] != label
    assert (found["right"], found["inherited"]) == (right, inherited)
    assert found["defect_inheritance_rate"] == inherited / right and found["accuracy"] == right / 80
    weights = maskable(model)
    assert found["weights"] == sum(p.numel() for p in weights.values())
    assert found["sparsity"] == found["zeros"] / found["weights"]


def test_a_student_that_keeps_its_zeros_is_sparse(attack, student, dataset_folder):
    folder = student("seam", 0.5, settings=SGD | {"lr_last": 0.1, "keep_zeros": True})
    evaluate_defects(folder, attack, dataset_folder, "cpu", architecture=ARCHITECTURE)
    assert json.loads((folder / "metrics.json").read_text())["sparsity"] > 0.35


def test_held_out_images_are_not_trained_on(places):
    folders = {name: places[name] for name in ("model_folder", "dataset_folder", "architecture")}
    transfer = Transfer(**folders, names=("small", "colours", "x"),
                        common=COMMON, seed=0, device="cpu")  # fmt: skip
    assert not set(transfer.train.indices) & set(transfer.holdout.indices)
    assert len(transfer.test) == 80


def test_a_damaged_student_is_one_sentence(student, tmp_path):
    source = student("standard") / "student.safetensors"
    (tmp_path / "student.safetensors").write_bytes(source.read_bytes()[:-10])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        load_student(tmp_path, ARCHITECTURE)

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from colours import ARCHITECTURE
from safetensors.torch import load_file

import seam
from seam import evaluation
from seam.data.storage import open_dataset
from seam.errors import UserError
from seam.files import load_tensors, save_tensors
from seam.masks.layers import maskable
from seam.models.weights import open_source
from seam.reuse.direct import reengineer

SETTINGS = {"epochs": 24, "batch_size": 16, "lr_mask": 0.1, "lr_head": 0.05, "patience": 100, "few_images": 0}


def run(folder, model_folder, dataset_folder, problem="binary", target="red", members=("red",), seed=0, **settings):
    return reengineer(
        folder=folder, model_folder=model_folder, dataset_folder=dataset_folder, model="small", dataset="colours",
        problem=problem, target=target, members=list(members), settings=SETTINGS | settings, seed=seed, device="cpu",
        checkpoint=folder / "checkpoint.pt", architecture=ARCHITECTURE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory, model_folder):
    """Folders as the workflow has them, so that the masks find their source model."""
    root = tmp_path_factory.mktemp("results")
    shutil.copytree(model_folder, root / "models" / "small")
    return root


@pytest.fixture(scope="module")
def red(results, dataset_folder):
    folder = results / "direct" / "small" / "binary" / "red"
    run(folder, results / "models" / "small", dataset_folder)
    return folder


def test_the_problem_is_solved_with_fewer_weights(red):
    metrics = json.loads((red / "metrics.json").read_text())
    assert metrics["accuracy"]["source"] > 0.8
    assert metrics["accuracy"]["reengineered"] > 0.8
    assert metrics["retention"] == metrics["kept"] / metrics["weights"] < 0.8
    # 40 positives and as many negatives, a fifth of them held out; 20 and 20 test images
    assert metrics["images"] == {"train": 64, "holdout": 16, "test": 40}
    assert metrics["classes"] == ["red", "rest"]


def test_the_history_leads_to_the_selected_epoch(red):
    metrics, history = json.loads((red / "metrics.json").read_text()), pd.read_csv(red / "history.csv")
    assert len(history) == metrics["epochs"] == 24
    row = history.iloc[metrics["selected_epoch"] - 1]
    assert row["selected"] == 1 and history["selected"].iloc[metrics["selected_epoch"] :].sum() == 0
    assert row["retention"] == pytest.approx(metrics["retention"], abs=1e-15)
    assert row["accuracy"] == metrics["holdout_accuracy"]["reengineered"]


def test_the_loaded_model_is_plain_and_as_accurate_as_said(red, dataset_folder):
    model, metrics = seam.load(red, architecture=ARCHITECTURE), json.loads((red / "metrics.json").read_text())
    assert not model.training and model.classes == ["red", "rest"]
    assert not any(p.requires_grad for p in model.parameters())
    masked = maskable(model.source)
    assert sum(int((p != 0).sum()) for p in masked.values()) <= metrics["kept"]
    # By hand: the balanced test images are drawn again with the seed that the workflow derives.
    from seam.data.problems import binary_problem
    from seam.seeds import derive_seed

    dataset = open_dataset(dataset_folder)
    test = binary_problem(dataset, "red", derive_seed(0, "problem", "colours", "binary", "red")).test
    images = torch.from_numpy(np.array(dataset.test.images[test.indices])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in model.normalization)
    with torch.no_grad():
        accuracy = evaluation.accuracy(model((images - mean) / std), torch.from_numpy(test.labels))
    assert accuracy == metrics["accuracy"]["reengineered"]


def test_masks_take_one_bit_per_weight(red):
    metrics, tensors = json.loads((red / "metrics.json").read_text()), load_file(red / "masks.safetensors")
    masks = {name: tensor for name, tensor in tensors.items() if name.startswith("mask/")}
    assert sum(tensor.numel() for tensor in masks.values()) <= metrics["weights"] / 8 + len(masks)


def test_the_same_seed_gives_the_same_files_and_another_does_not(red, results, dataset_folder):
    for name, seed, same in (("again", 0, True), ("other", 1, False)):
        folder = results / "direct" / "small" / "binary" / name
        run(folder, results / "models" / "small", dataset_folder, seed=seed)
        assert ((folder / "masks.safetensors").read_bytes() == (red / "masks.safetensors").read_bytes()) is same


def test_the_published_selection_uses_all_training_images(results, dataset_folder):
    folder = results / "direct" / "small" / "binary" / "published"
    metrics = run(folder, results / "models" / "small", dataset_folder, selection="test", epochs=3)
    assert metrics["images"] == {"train": 80, "holdout": 0, "test": 40}
    history = pd.read_csv(folder / "history.csv")
    assert history["accuracy"][metrics["selected_epoch"] - 1] == metrics["accuracy"]["reengineered"]


def test_a_group_is_judged_against_both_baselines(results, dataset_folder):
    folder, members = results / "direct" / "small" / "multiclass" / "warm", ("yellow", "red")
    metrics = run(folder, results / "models" / "small", dataset_folder, "multiclass", "warm", members)
    accuracy = metrics["accuracy"]
    assert accuracy["source_restricted"] >= accuracy["source"]
    assert metrics["classes"] == ["yellow", "red"] and metrics["images"]["test"] == 40
    # Both, by hand.
    source, dataset = open_source(results / "models" / "small", architecture=ARCHITECTURE), open_dataset(dataset_folder)
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in source.normalization)
    right = {"source": 0, "source_restricted": 0}
    members = [dataset.classes.index(name) for name in members]
    for image, label in zip(dataset.test.images, dataset.test.labels, strict=True):
        if label in members:
            with torch.no_grad():
                logits = source.module(((torch.tensor(image).permute(2, 0, 1) / 255 - mean) / std)[None])[0]
            right["source"] += int(logits.argmax() == label)
            right["source_restricted"] += int(members[int(logits[members].argmax())] == label)
    assert {name: count / 40 for name, count in right.items()} == {name: accuracy[name] for name in right}


def test_a_folder_that_moved_can_be_loaded_with_its_source(red, results, tmp_path):
    shutil.copytree(red, tmp_path / "red")
    with pytest.raises(UserError, match="missing"):
        seam.load(tmp_path / "red")
    moved, original = (
        seam.load(tmp_path / "red", source=results / "models" / "small", architecture=ARCHITECTURE),
        seam.load(red, architecture=ARCHITECTURE),
    )
    assert all(
        torch.equal(a, b) for a, b in zip(moved.state_dict().values(), original.state_dict().values(), strict=True)
    )


def test_a_folder_without_a_reengineered_model_is_one_sentence(red, results, tmp_path):
    with pytest.raises(UserError, match="is a file: give the folder"):
        seam.load(red / "masks.safetensors")
    with pytest.raises(UserError, match="open it by seam.models.weights.open_source"):
        seam.load(results / "models" / "small")
    (tmp_path / "student.safetensors").touch()
    with pytest.raises(UserError, match="open it by seam.load_student"):
        seam.load(tmp_path)


def test_a_damaged_file_is_one_sentence(red, results, tmp_path):
    shutil.copytree(red, tmp_path / "red")
    path = tmp_path / "red" / "masks.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="masks.safetensors is not a whole safetensors file"):
        seam.load(tmp_path / "red", source=results / "models" / "small", architecture=ARCHITECTURE)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, about: about.update(source_sha256=None),
        lambda tensors, about: about.update(source_sha256=""),
        lambda tensors, about: about.pop("source_sha256"),
        lambda tensors, about: about.update(source=7),
        lambda tensors, about: about.update(source="a\0b"),
        lambda tensors, about: about.update(classes=None),
        lambda tensors, about: about.update(classes=["a"]),
        lambda tensors, about: about.pop("unmasked"),
        lambda tensors, about: about.update(unmasked=[["0.weight"]]),
        lambda tensors, about: tensors.pop("mask/0.weight"),
        lambda tensors, about: tensors.pop("head/weight"),
        lambda tensors, about: tensors.update({"mask/0.weight": tensors["mask/0.weight"].float()}),
        lambda tensors, about: tensors.update({"mask/0.weight": tensors["mask/0.weight"][:-1]}),
        lambda tensors, about: tensors.update({"mask/more": tensors["mask/0.weight"]}),
        lambda tensors, about: tensors.update({"head/weight": tensors["head/weight"] * float("nan")}),
        lambda tensors, about: tensors.update({"more": tensors["mask/0.weight"]}),
    ],
)
def test_malformed_masks_are_one_sentence(red, results, tmp_path, change):
    """Also if their sender has computed the digest again."""
    tensors, about = load_tensors(red / "masks.safetensors")
    arguments = {"source": results / "models" / "small", "architecture": ARCHITECTURE}
    save_tensors(tmp_path / "masks.safetensors", tensors, about)
    seam.load(tmp_path, **arguments)
    change(tensors, about)
    save_tensors(tmp_path / "masks.safetensors", tensors, about)
    with pytest.raises(UserError, match="masks.safetensors"):
        seam.load(tmp_path, **(arguments if about.get("source") not in (7, "a\0b") else {}))


def test_a_file_of_an_architecture_must_be_passed(red):
    with pytest.raises(UserError, match=r'pass architecture="path/to/small.py:build"'):
        seam.load(red)


def test_a_result_has_the_biases_that_a_budget_search_trains(results, dataset_folder):
    def search(name, **budget):
        folder = results / "direct" / "small" / "binary" / name
        shares = {"weights": 0.5, "epochs": 8, "batch_size": 16, "lr_bias": 0.05} | budget
        metrics = run(folder, results / "models" / "small", dataset_folder, schedule="budget", budget=shares, epochs=8)
        return folder, metrics

    folder, metrics = search("trained")
    assert metrics["settings"]["budget"]["lr_bias"] == 0.05
    tensors, metadata = load_tensors(folder / "masks.safetensors")
    shifts = {name: value for name, value in tensors.items() if name.startswith("shift/")}
    assert shifts and any(value.any() for value in shifts.values())
    network = seam.load(folder, architecture=ARCHITECTURE).source
    source = open_source(results / "models" / "small", architecture=ARCHITECTURE).module
    layers, sources = dict(network.named_modules()), dict(source.named_modules())
    for name, shift in shifts.items():
        layer, before = (places[name.removeprefix("shift/")] for places in (layers, sources))
        kept = layer.bias != 0  # a removed bias has no shift
        torch.testing.assert_close(layer.bias[kept], (before.bias + shift)[kept])

    save_tensors(folder / "masks.safetensors", {**tensors, "shift/nowhere": torch.zeros(3)}, metadata)
    with pytest.raises(UserError, match="a shift of nowhere"):
        seam.load(folder, architecture=ARCHITECTURE)

    plain, _ = search("plain", lr_bias=0.0)
    assert not any(name.startswith("shift/") for name in load_tensors(plain / "masks.safetensors")[0])

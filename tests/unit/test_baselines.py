import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from colours import ARCHITECTURE, binary_searches

import seam
from seam import evaluation
from seam.errors import UserError
from seam.files import load_tensors, read_json, save_tensors
from seam.masks.bits import unpack_bits
from seam.models.surgery import copy_state
from seam.models.weights import open_source
from seam.reuse import baselines
from seam.reuse.baselines import Baseline, apply_bits, head_rate, train_baseline
from seam.reuse.direct import reengineer
from seam.reuse.quick_baselines import quick_baseline
from seam.reuse.recovered_baselines import recover_baseline
from seam.reuse.recovery import recover
from seam.settings import SearchSettings, search_settings
from seam.training.run import TrainingRun

SETTINGS = {
    **{"epochs": 8, "batch_size": 16, "lr_mask": 0.3, "lr_head": 0.05, "alpha": 2.0},
    "accuracy_worth": 0.5,
    "few_images": 0,
}
TRAINING = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005, "label_smoothing": 0.0}
MASKED = ["head", "magnitude", "random-overall", "activation", "snip", "snip-overall"]


@pytest.fixture(scope="module")
def search(tmp_path_factory, model_folder, dataset_folder):
    """The arguments of a search that is done."""
    root = tmp_path_factory.mktemp("baselines")
    arguments = binary_searches(root, ["red"], model_folder, dataset_folder, SETTINGS)["red"] | {"device": "cpu"}
    reengineer(**arguments)
    return arguments


def run(search, baseline, **others):
    training = TRAINING if baseline == "scratch" else None
    folder = others.pop("folder", f"{search['folder']}/baselines/{baseline}")
    return train_baseline(
        baseline, search["folder"], training, **{**search, "folder": folder, "checkpoint": f"{folder}/c.pt", **others}
    )


def kept(folder, source):
    tensors, _ = load_tensors(folder / "masks.safetensors")
    packed = {key.removeprefix("mask/"): value for key, value in tensors.items() if key.startswith("mask/")}
    return {name: int(bit.sum()) for name, bit in unpack_bits(packed, source).items()}


@pytest.mark.parametrize("baseline", MASKED)
def test_a_baseline_keeps_as_many_weights_and_trains_as_long_as_the_search(search, baseline, tmp_path):
    metrics, found = run(search, baseline), Path(search["folder"])
    searched = read_json(found / "metrics.json")
    folder = found / "baselines" / baseline
    history = pd.read_csv(folder / "history.csv")
    assert metrics == read_json(folder / "metrics.json")
    assert len(history) == metrics["epochs"] == searched["epochs"]
    assert history["accuracy"].max() == metrics["holdout_accuracy"]["baseline"]
    assert history["accuracy"].argmax() == metrics["selected_epoch"] - 1
    assert metrics["accuracy"]["source"] == searched["accuracy"]["source"]
    assert metrics["right"] == round(metrics["accuracy"]["baseline"] * metrics["images"]["test"])
    source = open_source(search["model_folder"], architecture=ARCHITECTURE).module
    counts, own = kept(found, source), kept(folder, source)
    assert sum(counts.values()) == searched["kept"] < searched["weights"]
    if baseline == "head":
        assert metrics["retention"] == 1
    else:
        assert metrics["kept"] == searched["kept"]
        assert (own == counts) is not baseline.endswith("overall")
    model = seam.load(folder, source=search["model_folder"], architecture=ARCHITECTURE)
    assert model.classes == ["red", "rest"]
    if baseline == "head":
        state = source.state_dict()
        assert all(torch.equal(state[name], value) for name, value in model.source.state_dict().items())


def test_training_from_nothing_keeps_the_positions_of_the_search_and_none_of_its_values(search, monkeypatch):
    trained = []
    save = Baseline.save

    def note(self, bits, model, *rest, **more):
        trained.append((bits, model))
        return save(self, bits, model, *rest, **more)

    monkeypatch.setattr(Baseline, "save", note)
    metrics = run(search, "scratch")
    searched = read_json(Path(search["folder"]) / "metrics.json")
    assert (metrics["kept"], metrics["epochs"]) == (searched["kept"], searched["epochs"])
    assert metrics["settings"]["training"]["epochs"] == searched["epochs"]
    ((bits, model),) = trained
    weights, source = dict(model.source.named_parameters()), open_source(search["model_folder"], None, ARCHITECTURE)
    values = dict(source.module.named_parameters())
    for name, bit in bits.items():
        assert not weights[name][~bit].any()
        assert weights[name][bit].all() and not (weights[name][bit] == values[name][bit]).any()


def test_the_same_seed_gives_the_same_masks_and_another_does_not(search, tmp_path):
    first = run(search, "random", folder=str(tmp_path / "a"))
    again = run(search, "random", folder=str(tmp_path / "b"))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    files = [(tmp_path / name / "masks.safetensors") for name in "ab"]
    assert load_tensors(files[0])[0].keys() and all(
        torch.equal(one, two)
        for one, two in zip(load_tensors(files[0])[0].values(), load_tensors(files[1])[0].values(), strict=True)
    )


def test_a_checkpoint_depends_on_the_number_of_kept_weights_alone(search, tmp_path):
    """Other masks of the same retention change nothing, except for `scratch`; another retention does, but not for the
    head.
    """
    arguments = {**search, "folder": str(tmp_path), "checkpoint": str(tmp_path / "c.pt")}
    tensors, about = load_tensors(f"{search['folder']}/masks.safetensors")
    name = next(key for key in tensors if key.startswith("mask/") and len(tensors[key]) > 8)
    (tmp_path / "metrics.json").write_text((Path(search["folder"]) / "metrics.json").read_text())

    def provenance(baseline, masks, training=None):
        save_tensors(tmp_path / "masks.safetensors", masks, about)
        return Baseline(baseline, tmp_path, training=training, **arguments).provenance

    moved = {**tensors, name: tensors[name].flip(0)}
    emptied = {**tensors, name: torch.zeros_like(tensors[name])}
    assert provenance("snip", moved) == provenance("snip", tensors) != provenance("snip", emptied)
    assert provenance("head", emptied) == provenance("head", tensors)
    scratch = provenance("scratch", tensors, TRAINING)
    assert scratch == provenance("scratch", tensors, dict(TRAINING)) != provenance("scratch", moved, TRAINING)
    assert scratch != provenance("scratch", tensors, TRAINING | {"lr": 0.01})


def test_baselines_of_a_search_that_takes_its_last_epoch_take_theirs(tmp_path, model_folder, dataset_folder):
    settings = SETTINGS | {"selection": "last", "epochs": 4}
    root = tmp_path / "results"
    arguments = binary_searches(root, ["red"], model_folder, dataset_folder, settings)["red"] | {"device": "cpu"}
    assert reengineer(**arguments)["selected_epoch"] == 4
    for baseline in ("head", "scratch"):
        assert run(arguments, baseline)["selected_epoch"] == 4
        history = pd.read_csv(f"{arguments['folder']}/baselines/{baseline}/history.csv")
        assert history["selected"].tolist() == [0, 0, 0, 1]
    for name, folder in (("models/small", model_folder), ("datasets/colours", dataset_folder)):
        shutil.copytree(folder, root / name)
    assert quick_baseline("head", arguments["folder"], architecture=ARCHITECTURE)["selected_epoch"] == 4
    for name in ("scratch", "biases", "magnitude-recovered", "wanda"):
        with pytest.raises(UserError, match=f"^{name} cannot be estimated from features: choose among head, magnitude"):
            quick_baseline(name, arguments["folder"], architecture=ARCHITECTURE)


def test_a_head_below_a_budget_is_not_trained_at_the_rate_of_changing_masks():
    assert head_rate(SearchSettings(lr_head=0.02)) == 0.02
    budget = search_settings({"budget": {"weights": 0.1}})
    assert head_rate(SearchSettings(**budget)) == 0.1 > budget["lr_head"]


@pytest.fixture(scope="module")
def budget_search(tmp_path_factory, model_folder, dataset_folder):
    """The arguments of a search with a budget that trains biases and is done."""
    root = tmp_path_factory.mktemp("budget")
    settings = search_settings({"budget": {"weights": 0.5, "epochs": 6, "batch_size": 16, "lr_bias": 0.05}})
    arguments = binary_searches(root, ["red"], model_folder, dataset_folder, settings)["red"] | {"device": "cpu"}
    reengineer(**arguments)
    return arguments


@pytest.mark.parametrize("baseline", ["magnitude", "biases", "head"])
def test_biases_are_trained_as_the_search_trains_them(budget_search, baseline, tmp_path):
    metrics = run(budget_search, baseline, folder=str(tmp_path / baseline))
    tensors, _ = load_tensors(tmp_path / baseline / "masks.safetensors")
    shifts = {name: value for name, value in tensors.items() if name.startswith("shift/")}
    assert bool(shifts) is (baseline != "head") and all(value.any() for value in shifts.values())
    assert metrics["retention"] == pytest.approx(0.5 if baseline == "magnitude" else 1, rel=0.05)
    # The stored model is the one of the selected epoch: its held-out accuracy is that of the history.
    model = seam.load(tmp_path / baseline, source=budget_search["model_folder"], architecture=ARCHITECTURE)
    each = Baseline(
        baseline, budget_search["folder"], **budget_search | {"folder": str(tmp_path / "again")}
    ).reengineering
    found = evaluation.accuracy(*evaluation.predict(model, each.selection))
    assert found == metrics["holdout_accuracy"]["baseline"]


def test_biases_are_trained_also_if_the_search_leaves_them_as_they_are(budget_search, tmp_path):
    for name in ("biases", "magnitude"):
        made = Baseline(name, budget_search["folder"], **budget_search | {"folder": str(tmp_path)})
        settings = made.reengineering.settings
        made.reengineering.settings = replace(settings, budget={**settings.budget, "lr_bias": 0.0})
        assert (made.bias_rate(10) > 0) == (name == "biases")


@pytest.mark.parametrize("head", ["source", "random"])
def test_gradients_of_snip_are_those_of_a_head_that_begins_like_the_search_with_few_images(
    search, tmp_path, monkeypatch, head
):
    made = Baseline("snip", search["folder"], **search | {"folder": str(tmp_path)})
    each = made.reengineering
    each.settings = replace(each.settings, initial_head=head)
    first, make, begun = copy_state(each.model.get_submodule("head")), baselines.train_head, []

    def noted(model, *arguments):
        begun.append(copy_state(model.get_submodule("head")))
        return make(model, *arguments)

    monkeypatch.setattr(baselines, "train_head", noted)
    made.masks()
    assert all(torch.equal(begun[0][name], value) for name, value in first.items()) == (head == "source")


def test_a_baseline_with_biases_continues_where_it_was_stopped(budget_search, tmp_path, monkeypatch):
    whole = run(budget_search, "magnitude", folder=str(tmp_path / "whole"))
    epochs, end = [], TrainingRun.end_epoch

    def stop(self, *arguments):
        end(self, *arguments)
        epochs.append(self.epoch)
        if len(epochs) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "end_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(budget_search, "magnitude", folder=str(tmp_path / "part"))
    monkeypatch.setattr(TrainingRun, "end_epoch", end)
    again = run(budget_search, "magnitude", folder=str(tmp_path / "part"))
    assert again["accuracy"] == whole["accuracy"]
    files = [load_tensors(tmp_path / name / "masks.safetensors")[0] for name in ("whole", "part")]
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


RECOVERY = {"epochs": 2, "batch_size": 16, "lr": 0.002, "lr_head": 0.01}


def recover_arguments(search, folder, masks_folder):
    names = ("model", "dataset", "problem", "target", "members", "seed", "model_folder", "dataset_folder", "device")
    return {
        **{name: search[name] for name in (*names, "architecture")},
        **{"folder": folder, "masks_folder": masks_folder, "checkpoint": Path(folder) / "c.pt"},
        **{"settings": RECOVERY},
    }


@pytest.mark.parametrize("plain", ["head", "magnitude", "biases"])
def test_a_recovered_baseline_gets_what_the_recovery_of_the_search_gives(search, tmp_path, plain):
    before = run(search, plain, folder=str(tmp_path / plain))
    folder, name = tmp_path / f"{plain}-recovered", f"{plain}-recovered"
    metrics = recover_baseline(name, **recover_arguments(search, folder, tmp_path / plain))
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.csv", "masks.safetensors", "metrics.json", "recovered.safetensors",
    ]  # fmt: skip
    assert metrics == read_json(folder / "metrics.json")
    assert metrics.keys() == before.keys() and metrics["baseline"] == name
    for key in ("retention", "kept", "weights", "classes", "images"):
        assert metrics[key] == before[key], key
    assert metrics["settings"]["selection"] == before["settings"]["selection"]
    assert metrics["settings"]["recovery"]["epochs"] == 2 == metrics["epochs"] == metrics["selected_epoch"]
    assert metrics["accuracy"]["before_recovery"] == before["accuracy"]["baseline"]
    assert metrics["holdout_accuracy"]["source"] == before["holdout_accuracy"]["source"]
    assert metrics["right"] == round(metrics["accuracy"]["baseline"] * metrics["images"]["test"])
    history = pd.read_csv(folder / "history.csv")
    assert len(history) == 2 and history["accuracy"].iloc[-1] == metrics["holdout_accuracy"]["baseline"]
    # The folder opens as the trained model: removed weights are zero, the others have moved.
    model = seam.load(folder, source=search["model_folder"], architecture=ARCHITECTURE)
    plain_model = seam.load(tmp_path / plain, source=search["model_folder"], architecture=ARCHITECTURE)
    assert model.recovered and not plain_model.recovered
    tensors, _ = load_tensors(folder / "masks.safetensors")
    packed = {key.removeprefix("mask/"): value for key, value in tensors.items() if key.startswith("mask/")}
    bits = unpack_bits(packed, open_source(search["model_folder"], architecture=ARCHITECTURE).module)
    weights, old = (dict(each.source.named_parameters()) for each in (model, plain_model))
    assert all(not weights[key][~bit].any() for key, bit in bits.items())
    assert sum(not torch.equal(weights[key], old[key]) for key in bits) > len(bits) / 2
    each = Baseline(plain, search["folder"], **search | {"folder": str(tmp_path / "again")}).reengineering
    assert evaluation.accuracy(*evaluation.predict(model, each.test)) == metrics["accuracy"]["baseline"]


def test_a_recovery_that_fails_names_its_baseline(search, tmp_path):
    run(search, "magnitude", folder=str(tmp_path / "magnitude"))
    arguments = recover_arguments(search, tmp_path / "own", tmp_path / "magnitude")
    (tmp_path / "magnitude/masks.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="Baseline magnitude-recovered: .*magnitude/masks.safetensors"):
        recover_baseline("magnitude-recovered", **arguments)
    assert not (tmp_path / "own/metrics.json").exists()


def test_a_recovered_baseline_may_give_one_answer_and_the_recovery_of_the_search_may_not(search, tmp_path, monkeypatch):
    """Random masks often end so: that is a result of the baseline. As the product of the search it is a failure."""

    def train(network, *arguments):
        for parameter in network.head.parameters():
            parameter.data.zero_()
        return [{"epoch": 1, "cross_entropy": 0.7, "train_accuracy": 0.5, "accuracy": 0.5, "seconds": 1.0}]

    monkeypatch.setattr("seam.reuse.recovery.train", train)
    monkeypatch.setattr("seam.evaluation.FEWEST_OTHERS", 1)
    before = run(search, "random", folder=str(tmp_path / "random"))
    metrics = recover_baseline("random-recovered", **recover_arguments(search, tmp_path / "own", tmp_path / "random"))
    assert metrics["accuracy"]["baseline"] == 0.5 and metrics["right"] * 2 == before["images"]["test"]
    with pytest.raises(UserError, match="after its recovery, says .* for each of the .* test images"):
        recover(**recover_arguments(search, tmp_path / "search", search["folder"]))


def test_with_the_masks_of_the_search_a_recovered_baseline_is_the_recovered_search(search, tmp_path):
    """Nothing but what precedes the recovery differs: the same model gives the same weights."""
    run(search, "magnitude", folder=str(tmp_path / "plain"))
    shutil.copy(Path(search["folder"]) / "masks.safetensors", tmp_path / "plain")
    recover_baseline("magnitude-recovered", **recover_arguments(search, tmp_path / "own", tmp_path / "plain"))
    recover(**recover_arguments(search, tmp_path / "search", search["folder"]))
    own, other = (load_tensors(tmp_path / name / "recovered.safetensors")[0] for name in ("own", "search"))
    assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def test_masks_of_another_source_model_are_one_sentence(search, tmp_path):
    tensors, about = load_tensors(f"{search['folder']}/masks.safetensors")
    save_tensors(tmp_path / "masks.safetensors", tensors, {**about, "source_sha256": "0" * 64})
    with pytest.raises(UserError, match="searched for another source model: run the workflow again"):
        Baseline("head", tmp_path, **{**search, "checkpoint": str(tmp_path / "c.pt")})


def test_bits_are_applied_to_a_network_whose_batch_norm_is_folded():
    from seam.masks.bits import bake
    from seam.masks.layers import maskable
    from seam.models.cifar import resnet20
    from seam.models.folding import fold

    torch.manual_seed(0)
    plain, folded = resnet20(4).eval(), resnet20(4).eval()
    folded.load_state_dict(plain.state_dict())
    fold(folded)
    bits = {name: torch.rand(p.shape) < 0.6 for name, p in maskable(plain).items()}
    apply_bits(folded, bits)
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(bake(plain, bits)(images), folded(images), atol=1e-5)


def test_a_quick_baseline_is_close_to_the_workflows_and_writes_nothing(search, tmp_path, monkeypatch):
    results = tmp_path / "results"
    for name, folder in (("models/small", search["model_folder"]), ("datasets/colours", search["dataset_folder"])):
        shutil.copytree(folder, results / name)
    folder = results / "direct/small/binary/red"
    shutil.copytree(search["folder"], folder, ignore=shutil.ignore_patterns("baselines"))
    before = sorted(folder.rglob("*"))
    found = {name: quick_baseline(name, folder, architecture=ARCHITECTURE) for name in ("head", "magnitude")}
    assert sorted(folder.rglob("*")) == before
    for name, row in found.items():
        whole = run(search, name, folder=str(tmp_path / name))
        assert row["retention"] == whole["retention"]
        assert abs(row["accuracy"] - whole["accuracy"]["baseline"]) < 0.15
    assert found["head"]["search"] == read_json(folder / "metrics.json")["accuracy"]["reengineered"]
    monkeypatch.chdir(folder.parent)
    assert quick_baseline("head", "red", architecture=ARCHITECTURE) == found["head"]

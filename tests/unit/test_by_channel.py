"""The search of channels, the result in its folder, and its recovery."""

import json
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from colours import ARCHITECTURE
from test_search import batches
from torch import nn

import seam
from seam import evaluation
from seam.cost.export import export
from seam.cost.macs import count_macs
from seam.data.problems import binary_problem
from seam.data.storage import open_dataset
from seam.errors import UserError
from seam.files import load_tensors, save_tensors
from seam.masks.channel_costs import keep_best, macs_cost, weights_cost
from seam.masks.channels import find_groups
from seam.masks.shrink import shrink
from seam.models.surgery import with_head
from seam.models.uses import count_uses
from seam.models.weights import open_source
from seam.reuse.direct import reengineer
from seam.reuse.load import load_reengineered
from seam.reuse.recovery import TrainingImages, recover, train
from seam.search.by_channel import Ramp, search_channels
from seam.settings import RecoverySettings, SearchSettings, search_settings
from seam.training.checkpoint import Checkpoint
from seam.training.distillation import Teacher
from seam.training.run import TrainingRun


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, 5),
    )  # fmt: skip


def run(checkpoint=None, layer_costs=None, **settings):
    model = with_head(network(), 5, 2)
    groups = find_groups(model.source, torch.zeros(1, 3, 8, 8))
    channels = {"multiple": 4, **settings.pop("channels", {})}
    given = {"budget": {"macs": 0.3, "epochs": 8}, "granularity": "channel", "channels": channels}
    chosen = SearchSettings(**search_settings(given | settings))
    torch.manual_seed(1)
    result = search_channels(
        model, groups, batches(), batches(48, seed=1), 0.9, chosen, checkpoint, layer_costs=layer_costs
    )
    return model, groups, result


def test_the_search_meets_its_budget_with_widths_that_are_multiples():
    _, groups, result = run()
    selected = result.history[result.selected_epoch - 1]
    assert result.budget["met"] and selected["cost"] <= 0.3 and selected["accuracy"] >= 0.9
    assert all(int(bits.sum()) % 4 == 0 and bits.any() for bits in result.bits.values())
    before, after = network().eval(), network().eval()
    after.load_state_dict(result.weights)
    shrink(after, groups, groups.joined(result.bits))
    counts = [count_macs(module, (3, 8, 8))["dense"] for module in (before, after)]
    dense = [count["convolution"] + count["linear"] for count in counts]
    assert dense[1] / dense[0] == pytest.approx(selected["cost"])
    sizes = [sum(p.numel() for n, p in m.named_parameters() if n[0] in "038") for m in (before, after)]
    assert sizes[1] / sizes[0] == pytest.approx(selected["retention"])


def test_channels_leave_along_the_ramp_and_do_not_return():
    _, _, result = run()
    costs = [row["cost"] for row in result.history]
    assert costs[0] == 1 and costs == sorted(costs, reverse=True) and costs[-1] <= 0.3
    assert [row["phase"] for row in result.history] == ["head"] + ["masks"] * 7
    ramp = Ramp(0.25, 1000)
    assert [ramp.share(step) for step in (1, 50, 520, 1000)] == [1, 1, 0.25, 0.25]
    assert ramp.is_due(520) and not ramp.is_due(521) and not ramp.is_due(50)


@pytest.mark.parametrize("budget", [{"weights": 0.4}, {"macs": 40000.0}])
def test_budgets_in_other_units_are_met(budget):
    _, _, result = run(budget={**budget, "epochs": 6})
    row, budget = result.history[result.selected_epoch - 1], result.budget
    assert row["cost"] <= budget["limit"] < 1 and budget["met"]
    if budget["name"].startswith("weights"):
        assert row["cost"] == pytest.approx(row["retention"])


def test_frozen_weights_stay_as_they_are():
    model, _, result = run(channels={"train_weights": False})
    before, after = network().state_dict(), model.source.state_dict()
    assert result.weights is None and result.budget["met"]
    assert all(torch.equal(after[name], value) for name, value in before.items() if "running" in name)
    for name, value in before.items():
        assert torch.equal(after[name][after[name] != 0], value[after[name] != 0]), name


def test_a_search_that_is_stopped_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    _, _, whole = run()
    checkpoint = Checkpoint(tmp_path / "state.pt", {}, __file__)
    from seam.search import channel_training

    step, count = channel_training.ChannelTraining.step, []

    def stopping(self, images, labels):
        count.append(1)
        if len(count) == 20:
            raise KeyboardInterrupt
        return step(self, images, labels)

    monkeypatch.setattr(channel_training.ChannelTraining, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint)
    monkeypatch.undo()
    _, _, resumed = run(checkpoint)
    assert all(torch.equal(resumed.bits[name], bits) for name, bits in whole.bits.items())
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


def test_a_budget_that_widths_cannot_meet_is_one_sentence():
    with pytest.raises(
        UserError, match="budget of 2 % of the MACs cannot be met with widths .* multiples of 4.*lower channels"
    ):
        run(budget={"macs": 0.02})


def test_what_is_worth_most_stays_within_the_budget():
    module = network()
    groups = find_groups(module, torch.zeros(1, 3, 8, 8))
    worth = torch.rand(groups.count, generator=torch.Generator().manual_seed(0))
    for multiple in (1, 4, 8):
        for most in (0.9, 0.5, 0.25):
            cost = weights_cost(module, groups)
            kept = keep_best(worth, groups, cost.share, most, cost.widths(multiple))
            assert cost.share(kept) <= most
            for bits, values in zip(groups.split(kept).values(), groups.split(worth).values(), strict=True):
                assert int(bits.sum()) % multiple == 0
                assert values[bits].min() > values[~bits].max() if not bits.all() else True


def test_prices_are_what_the_removal_of_a_channel_saves():
    module = network()
    groups = find_groups(module, torch.zeros(1, 3, 8, 8))
    cost = macs_cost(module, groups, count_uses(module, torch.zeros(1, 3, 8, 8)))
    kept = torch.ones(groups.count, dtype=torch.bool)
    for unit in (0, 20):
        less = kept.clone()
        less[unit] = False
        assert cost.prices(kept)[unit].item() == pytest.approx(cost.share(kept) - cost.share(less), rel=1e-5)


# Results in folders.

NAMES = {"model": "small", "dataset": "colours", "problem": "binary", "target": "red", "members": ["red"], "seed": 0}
RECOVERY = {"epochs": 3, "batch_size": 16}


def reengineered(folder, results, dataset_folder, **settings):
    settings = search_settings({"batch_size": 16} | settings)
    reengineer(
        folder=folder, model_folder=results / "models/small", dataset_folder=dataset_folder, settings=settings,
        device="cpu", checkpoint=folder / "checkpoint.pt", architecture=ARCHITECTURE, **NAMES,
    )  # fmt: skip
    return folder


def recovered(folder, results, dataset_folder, **settings):
    return recover(
        folder=folder, masks_folder=folder, model_folder=results / "models/small", dataset_folder=dataset_folder,
        settings=RECOVERY | settings, device="cpu", checkpoint=folder / "recovery.pt",
        architecture=ARCHITECTURE, **NAMES,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory, model_folder):
    root = tmp_path_factory.mktemp("results")
    shutil.copytree(model_folder, root / "models" / "small")
    return root


@pytest.fixture(scope="module")
def red(results, dataset_folder):
    return reengineered(
        results / "direct/small/binary/red", results, dataset_folder, granularity="channel",
        budget={"macs": 0.6, "epochs": 30}, channels={"multiple": 2, "lr": 0.01},
    )  # fmt: skip


@pytest.fixture(scope="module")
def recovered_red(red, results, dataset_folder):
    folder = results / "direct/small/binary/recovered"
    shutil.copytree(red, folder)
    recovered(folder, results, dataset_folder, fresh_negatives=True)
    return folder


def load(folder, **options):
    return load_reengineered(folder, architecture=ARCHITECTURE, **options)


def accuracy(model, dataset_folder, results):
    data, source = open_dataset(dataset_folder), open_source(results / "models/small", architecture=ARCHITECTURE)
    from seam.data.batches import batches as batches_of
    from seam.seeds import derive_seed

    test = binary_problem(data, "red", derive_seed(0, "problem", "colours", "binary", "red"), 0.2).test
    images = batches_of(data.test, test.indices, test.labels, 16, normalization=source.normalization)
    return evaluation.accuracy(*evaluation.predict(model, images))


def test_the_result_is_a_smaller_plain_model(red, results, dataset_folder, tmp_path):
    metrics, model = json.loads((red / "metrics.json").read_text()), load(red)
    source = open_source(results / "models/small", architecture=ARCHITECTURE).module
    numbers = [
        sum(p.numel() for n, p in m.named_parameters() if n.split(".")[0] in "038") for m in (source, model.source)
    ]
    assert numbers == [metrics["weights"], metrics["kept"]] and metrics["retention"] < 0.9
    assert metrics["settings"]["granularity"] == "channel" and metrics["budget"]["met"]
    assert accuracy(model, dataset_folder, results) == metrics["accuracy"]["reengineered"] > 0.8
    assert not any((p == 0).all() for p in model.parameters() if p.dim() > 1)
    sizes = []
    for name, module in (("source", source), ("small", model)):
        export(module, tmp_path / f"{name}.onnx", (3, 16, 16))
        sizes.append((tmp_path / f"{name}.onnx").stat().st_size)
    assert sizes[1] < sizes[0]


def test_what_is_delivered_is_what_was_measured(recovered_red, results, dataset_folder, tmp_path):
    """A recovery that is no longer wanted leaves its files behind, and model.onnx is then made without it."""
    from seam.delivery.package import write_package
    from seam.report.measured import read_metrics

    folder = tmp_path / "result"
    shutil.copytree(recovered_red, folder)
    source = {"source_folder": results / "models/small", "architecture": ARCHITECTURE}
    recovery = json.loads((folder / "recovery.json").read_text())["accuracy"]
    for name, wanted in (("with", None), ("without", False)):
        model = load(folder, source=source["source_folder"], recovered=wanted)
        export(model, folder / "model.onnx", (3, 16, 16))
        card = write_package(folder, dataset_folder, tmp_path / name, **source)
        stored = load_tensors(tmp_path / name / "model.safetensors")[0]
        assert all(torch.equal(stored[key], value) for key, value in model.state_dict().items())
        assert card["accuracy"]["reengineered"] == recovery["after" if wanted is None else "before"]
        assert (card["recovery"] is None) == (wanted is False)
    with torch.no_grad():
        model.head.bias.add_(1)
    export(model, folder / "model.onnx", (3, 16, 16))
    with pytest.raises(UserError, match="model.onnx is not the model of the masks beside it"):
        write_package(folder, dataset_folder, tmp_path / "other", **source)
    assert "recovery" in read_metrics(folder) and "recovery" not in read_metrics(folder, recovered=False)
    tensors, metadata = load_tensors(folder / "masks.safetensors")  # of another search
    save_tensors(folder / "masks.safetensors", {**tensors, "head/bias": tensors["head/bias"] + 1}, metadata)
    assert "recovery" not in read_metrics(folder) and not load(folder, source=source["source_folder"]).recovered


def test_malformed_channel_masks_are_one_sentence(red, results, tmp_path):
    def drop(tensors, metadata):
        del tensors[next(name for name in tensors if name.startswith("channels/"))]

    def stranger(tensors, metadata):
        tensors["channels/other"] = torch.zeros(1, dtype=torch.uint8)

    def empty(tensors, metadata):
        name = next(name for name in tensors if name.startswith("channels/"))
        tensors[name] = torch.zeros_like(tensors[name])

    def shift(tensors, metadata):
        tensors["shift/0"] = torch.zeros(8)

    def no_size(tensors, metadata):
        del metadata["size"]

    def large(tensors, metadata):
        metadata["size"] = [10**9, 10**9]

    def larger(tensors, metadata):
        metadata["size"] = [1025, 512]

    def fewer_weights(tensors, metadata):
        name = next(name for name in tensors if name.startswith("weight/"))
        tensors[name] = tensors[name][:1]

    tensors, metadata = load_tensors(red / "masks.safetensors")
    for change in (drop, stranger, empty, shift, no_size, large, larger, fewer_weights):
        changed = dict(tensors), dict(metadata)
        change(*changed)
        save_tensors(tmp_path / "masks.safetensors", *changed)
        with pytest.raises(UserError, match="masks.safetensors"):
            load(tmp_path, source=results / "models/small")


def test_a_size_that_the_model_is_not_made_for_is_a_sentence(red, results, tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("Given groups=1")

    monkeypatch.setattr("seam.reuse.load.find_groups", refuse)
    shutil.copy(red / "masks.safetensors", tmp_path)
    with pytest.raises(UserError, match="masks.safetensors .*the model does not run on images of 16 x 16 px"):
        load(tmp_path, source=results / "models/small")


def same_state(before, after):
    """The names of the parameters and buffers that two models share."""
    states = before.state_dict(), after.state_dict()
    return {name for name, value in states[0].items() if torch.equal(value, states[1][name])}


def statistics_of(model):
    """The names of the buffers of batch norm."""
    return {name for name in model.state_dict() if "running_" in name or "num_batches" in name}


def test_recovery_can_keep_the_statistics_of_batch_norm(red, results, dataset_folder):
    folder = results / "direct/small/binary/kept"
    shutil.copytree(red, folder)
    recovered(folder, results, dataset_folder, train_batch_norm=False)
    before, after = load(red), load(folder)
    assert same_state(before, after) == statistics_of(before)


def test_recovery_trains_all_that_is_left(red, recovered_red, results, dataset_folder):
    before, after = load(red), load(recovered_red)
    assert [p.shape for p in before.parameters()] == [p.shape for p in after.parameters()]
    assert same_state(before, after) == set()
    metrics, history = (
        json.loads((recovered_red / "recovery.json").read_text()),
        pd.read_csv(recovered_red / "recovery.csv"),
    )
    assert metrics["accuracy"]["before"] == accuracy(before, dataset_folder, results)
    assert metrics["accuracy"]["after"] == accuracy(after, dataset_folder, results) > 0.8
    assert len(history) == metrics["epochs"] == 3
    assert torch.equal(load(recovered_red, recovered=False).head.weight, before.head.weight)


def test_recovery_is_repeatable_and_depends_on_its_settings(recovered_red, red, results, dataset_folder, tmp_path):
    others = {"fixed": {}, "alone": {"distillation": 0.0}, "mixed": {"fresh_negatives": True, "cutmix": 1.0}}
    for name, settings in {"again": {"fresh_negatives": True}, **others}.items():
        shutil.copytree(red, results / name)
        recovered(results / name, results, dataset_folder, **settings)
        same = (results / name / "recovered.safetensors").read_bytes() == (
            recovered_red / "recovered.safetensors"
        ).read_bytes()
        assert same == (name == "again")


@pytest.mark.parametrize("weights", [None, [0.4, 1.6]])
def test_network_and_teacher_see_the_mixed_images_and_the_loss_their_targets(monkeypatch, weights):
    """With every image replaced by one of the other class and the targets by its label, what is learned turns round."""

    def swap(images, targets, generator):
        return images.flip(0), targets.flip(0)

    seen = []
    teacher = Teacher(network(), 1.0, 2.0)
    monkeypatch.setattr(teacher, "loss", lambda features, images: seen.append(images) or features.sum() * 0)
    images, labels = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    settings = RecoverySettings(epochs=2, lr=0.01, lr_head=0.05)
    states = []
    for chosen, batch in (
        (settings, (images.flip(0), labels.flip(0))),
        (replace(settings, cutmix=1.0), (images, labels)),
    ):
        monkeypatch.setattr("seam.training.mixing.cut_and_paste", swap)
        model = with_head(network(), 5, 2)
        train(model, [batch] * 3, chosen, teacher, SimpleNamespace(labels=()), {}, None, weights)
        states.append(model.state_dict())
        assert all(torch.equal(each, images.flip(0)) for each in seen) and len(seen) == 6
        seen.clear()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_stopped_recovery_resumes_with_the_same_mixed_images(red, results, dataset_folder, monkeypatch, stop):
    folders, seen = [results / f"{name}-{stop}" for name in ("whole", "part")], []
    for folder in folders:
        shutil.copytree(red, folder)
    settings = {"fresh_negatives": True, "cutmix": 0.5}
    recovered(folders[0], results, dataset_folder, **settings)

    def stop_there(self):
        seen.append(self.batch)
        if len(seen) == stop:
            self.signal = signal.SIGTERM

    check = TrainingRun.exit_if_signalled
    monkeypatch.setattr(TrainingRun, "exit_if_signalled", lambda self: (stop_there(self), check(self)))
    with pytest.raises(SystemExit):
        recovered(folders[1], results, dataset_folder, **settings)
    monkeypatch.setattr(TrainingRun, "exit_if_signalled", check)
    recovered(folders[1], results, dataset_folder, **settings)
    states = [load(folder, source=results / "models/small").state_dict() for folder in folders]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_zeros_stay_zero_in_the_recovery_of_single_weights(results, dataset_folder):
    folder = results / "weights"
    reengineered(folder, results, dataset_folder, epochs=8, lr_mask=0.1, lr_head=0.05)
    before = {name: value == 0 for name, value in load(folder).state_dict().items()}
    recovered(folder, results, dataset_folder)
    after = load(folder)
    removed = [name for name, zero in before.items() if zero.any() and "weight" in name]
    assert removed and all((after.state_dict()[name][before[name]] == 0).all() for name in removed)
    assert not torch.equal(after.source[1].weight, load(folder, recovered=False).source[1].weight)


def test_weights_of_another_recovery_are_not_loaded(recovered_red, red, results, tmp_path, caplog):
    for name in ("masks.safetensors", "recovered.safetensors"):
        shutil.copy(recovered_red / name, tmp_path)
    tensors, metadata = load_tensors(tmp_path / "masks.safetensors")
    save_tensors(tmp_path / "masks.safetensors", {**tensors, "head/bias": tensors["head/bias"] + 1}, metadata)
    model = load(tmp_path, source=results / "models/small")
    assert "belongs to other masks" in caplog.text and torch.equal(model.head.weight, load(red).head.weight)
    with pytest.raises(UserError, match="does not belong to the masks beside it"):
        load(tmp_path, source=results / "models/small", recovered=True)
    with pytest.raises(UserError, match="recovered.safetensors"):
        load(red, recovered=True)


def test_fresh_negatives_are_drawn_anew_from_the_rest_and_never_from_held_out_images(results, dataset_folder):
    data, source = open_dataset(dataset_folder), open_source(results / "models/small", architecture=ARCHITECTURE)
    problem = binary_problem(data, "red", 0, 0.2)
    seen = []

    class Recorded(TrainingImages):
        def _batches(self, indices, labels):
            seen.append((np.asarray(indices), np.asarray(labels)))
            return super()._batches(indices, labels)

    images = Recorded(
        data, problem, source, RecoverySettings(batch_size=16, fresh_negatives=True), 0, torch.device("cpu")
    )
    first = [len(labels) for _, labels in images]
    assert len(first) == len(images) and sum(first) == len(problem.train)
    list(images)
    (_, (one, labels), (other, _)) = seen
    assert not np.array_equal(one, other) and np.array_equal(one[labels == 0], other[labels == 0])
    assert not np.intersect1d(np.concatenate([one, other]), problem.holdout.indices).size
    assert (data.train.labels[one[labels == 1]] != data.classes.index("red")).all()


def test_the_loaded_model_is_that_after_recovery(recovered_red, monkeypatch):
    model = seam.load(recovered_red, architecture=ARCHITECTURE)
    assert torch.equal(model.head.weight, load(recovered_red, recovered=True).head.weight)

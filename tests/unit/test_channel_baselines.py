"""Baselines of searches of channels: equal widths, equal MACs, equal training time; their rows and their figure."""

import shutil

import pandas as pd
import pytest
import torch
from colours import ARCHITECTURE
from test_by_channel import NAMES, RECOVERY, network, reengineered

import seam
from seam.errors import UserError
from seam.files import load_tensors, read_json, save_tensors, write_json
from seam.masks.channel_costs import macs_cost
from seam.masks.channel_scores import magnitude_scores
from seam.masks.channels import find_groups
from seam.models.uses import count_uses
from seam.models.weights import open_source
from seam.report.baselines import baselines, comparison, render
from seam.report.latency_figures import baselines_latency, pareto_front, points
from seam.report.small_models import small_models
from seam.reuse import channel_baselines
from seam.reuse.channel_baselines import equal_epochs, train_channel_baseline, uniform_widths
from seam.settings import CHANNEL_BASELINES, SearchSettings, search_settings

SEARCH = {
    "granularity": "channel", "budget": {"macs": 0.6, "epochs": 30}, "channels": {"multiple": 2, "lr": 0.01},
    "batch_size": 16,
}  # fmt: skip
TRAINING = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005, "label_smoothing": 0.0}


@pytest.fixture(scope="module")
def searched(tmp_path_factory, model_folder, dataset_folder):
    root = tmp_path_factory.mktemp("results")
    shutil.copytree(model_folder, root / "models" / "small")
    settings = {name: value for name, value in SEARCH.items() if name != "batch_size"}
    return reengineered(root / "direct/small/binary/red", root, dataset_folder, **settings)


def train(searched, dataset_folder, name, epochs=None, **changes):
    folder = changes.pop("folder", searched / "baselines" / name)
    return train_channel_baseline(
        name, searched, folder / "c.pt", changes.pop("recovery", RECOVERY), TRAINING, folder=folder, device="cpu",
        model_folder=searched.parents[3] / "models/small", dataset_folder=dataset_folder,
        settings=search_settings(SEARCH), architecture=ARCHITECTURE, **NAMES,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(searched, dataset_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel_baselines, "equal_epochs", lambda *arguments: 2)
        return {name: train(searched, dataset_folder, name) for name in CHANNEL_BASELINES}


def widths(module):
    return [layer.out_channels for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)]


def test_every_baseline_is_a_plain_model_with_its_widths(searched, trained):
    whole = open_source(searched.parents[3] / "models/small", architecture=ARCHITECTURE).module
    found = widths(seam.load(searched, architecture=ARCHITECTURE).source)
    assert found != widths(whole)
    for name, metrics in trained.items():
        folder = searched / "baselines" / name
        model = seam.load(folder, architecture=ARCHITECTURE)
        expected = widths(whole) if name.startswith("finetuned") else found
        if name.startswith("uniform"):
            assert metrics["macs"]["baseline"] <= metrics["macs"]["search"] + 1e-9
        else:
            assert widths(model.source) == expected, name
        assert metrics == read_json(folder / "metrics.json")
        assert len(pd.read_csv(folder / "history.csv")) == metrics["epochs"] == metrics["selected_epoch"] == 2
        assert metrics["retention"] == 1 if name.startswith("finetuned") else metrics["retention"] < 1


def test_baselines_differ_in_where_they_begin_and_what_teaches_them(searched, trained):
    states = {
        name: seam.load(searched / "baselines" / name, architecture=ARCHITECTURE).head.weight.flatten().tolist()
        for name in trained
    }
    values = list(map(tuple, states.values()))
    assert len(set(values)) == len(values)


def test_a_baseline_is_repeatable(searched, trained, dataset_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(channel_baselines, "equal_epochs", lambda *arguments: 2)
    for name in ("widths-taylor-distilled", "widths-scratch"):
        train(searched, dataset_folder, name, folder=tmp_path / "small/binary/x" / name)
        again = tmp_path / "small/binary/x" / name / "masks.safetensors"
        first = searched / "baselines" / name / "masks.safetensors"
        one, two = load_tensors(first)[0], load_tensors(again)[0]
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_epochs_cost_what_search_and_recovery_do():
    settings = SearchSettings(**search_settings({"granularity": "channel", "budget": {"macs": 0.5, "epochs": 13}}))
    recovery = {"epochs": 12, "distillation": 1.0}
    total = 1 / 3 + 12 * 4 / 3 + 12 * (0.5 + 1 / 3)
    assert equal_epochs(settings, recovery, 0.5, 0.5, True) == round(total / (0.5 + 1 / 3))
    assert equal_epochs(settings, recovery, 0.5, 0.5, False) == round(total / 0.5)
    assert equal_epochs(settings, recovery, 0.5, 1.0, False) == round(total)
    assert equal_epochs(settings, {}, 0.5, 1.0, False) == round(1 / 3 + 16)


def test_the_largest_channels_are_those_with_the_largest_weights():
    module = network()
    groups = find_groups(module, torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        module[0].weight[3] *= 10
        module[8].weight[:, 5] *= 10  # what reads a channel counts, too
    first, second = groups.split(magnitude_scores(module, groups)).values()
    assert (int(first.argmax()), int(second.argmax())) == (3, 5)


def test_uniform_widths_come_close_to_the_macs():
    module = network()
    groups = find_groups(module, torch.zeros(1, 3, 8, 8))
    cost = macs_cost(module, groups, count_uses(module, torch.zeros(1, 3, 8, 8)))
    found = uniform_widths(groups, cost.share, 0.5, 8)
    assert all(width % 4 == 0 for width in found.values())
    kept = torch.cat([torch.arange(size) < found[name] for name, size in groups.sizes.items()])
    assert 0.3 < cost.share(kept) <= 0.5
    assert uniform_widths(groups, cost.share, 1.0, 8) == groups.sizes


def test_a_search_of_another_model_is_refused(searched, dataset_folder, tmp_path):
    tensors, metadata = load_tensors(searched / "masks.safetensors")
    save_tensors(tmp_path / "masks.safetensors", tensors, {**metadata, "source_sha256": "0" * 64})
    with pytest.raises(UserError, match="was searched for another source model"):
        train_channel_baseline(
            "finetuned", tmp_path, tmp_path / "c.pt", {}, {}, folder=tmp_path, device="cpu",
            model_folder=searched.parents[3] / "models/small", dataset_folder=dataset_folder,
            settings=search_settings(SEARCH), architecture=ARCHITECTURE, **NAMES,
        )  # fmt: skip


def written(root, target, after, others):
    """Write the files of a problem with baselines of channels; return (searches, recoveries, latencies, baselines)."""
    folder, images = root / f"net/binary/{target}", 100
    common = {
        **{"model": "net", "dataset": "pets", "problem": "binary", "target": target, "seed": 0, "weights": 1000},
        **{"settings": {"selection": "holdout"}, "images": {"test": images}, "epochs": 3, "decided_by": "accuracy"},
    }
    accuracy = {"source": 0.8}
    write_json(
        folder / "metrics.json",
        {**common, "accuracy": {**accuracy, "reengineered": 0.5}, "retention": 0.4, "holdout_accuracy": None},
    )
    write_json(
        folder / "recovery.json", {"accuracy": {"before": 0.5, "after": after}, "holdout_accuracy": {"after": 0.9}}
    )
    times = {"source": 4.0, "search": 2.0, "finetuned": 4.0, "widths-scratch": 2.0, "uniform-magnitude": 2.5}
    measured = {"batch_size": 16, **{name: {"median_ms": time} for name, time in times.items()}}
    write_json(folder / "baselines_latency.json", {"statistic": "median", "measurements": [measured]})
    paths = []
    for name, reached in others.items():
        own = {"baseline": name, "right": int(100 * reached), "retention": 0.4, "selected_epoch": 3, "seconds": 1.0}
        own |= {"accuracy": {**accuracy, "baseline": reached}, "macs": {"search": 0.5, "baseline": 0.45}}
        paths.append(folder / "baselines" / name / "metrics.json")
        write_json(paths[-1], {**common, **own, "holdout_accuracy": None})
    return folder / "metrics.json", folder / "recovery.json", folder / "baselines_latency.json", paths


def test_rows_compare_the_recovered_model_and_say_who_wins(tmp_path):
    searches, recoveries, latencies, paths = [], [], [], []
    for number, target in enumerate(["cat", "dog", "cow"]):
        others = {"widths-scratch": 0.8, "uniform-magnitude": 0.9, "finetuned": 0.95 + number / 100}
        search, recovery, latency, own = written(tmp_path, target, 0.9, others)
        searches.append(search), recoveries.append(recovery), latencies.append(latency)
        paths += own
    table = baselines(paths, searches, recoveries, latencies)
    row = table.iloc[0]
    assert (row["accuracy_search"], row["holdout_accuracy_search"]) == (0.9, 0.9)
    assert (row["macs_search"], row["macs_baseline"]) == (0.5, 0.45)
    assert (row["latency_source_ms"], row["latency_search_ms"], row["latency_baseline_ms"]) == (4, 2, 2)
    means = comparison(table).set_index("baseline")
    assert means.loc["widths-scratch", "verdict"] == "search wins"
    assert means.loc["uniform-magnitude", "verdict"] == "equal"
    assert means.loc["finetuned", "verdict"] == "baseline wins"
    assert means.loc["finetuned", "latency_baseline_ms"] == 4
    text = render(comparison(table))
    assert "Ahead of the search: fine-tuned whole by 6.00 points" in text
    assert len(baselines_latency(table).axes) == 1
    assert set(points(table)) == {"source", "search", "widths-scratch", "uniform-magnitude", "finetuned"}
    assert "latency_baseline_ms" not in baselines([], searches)


def test_the_pareto_front_has_no_point_that_another_beats():
    means = {"a": (1.0, 70.0), "b": (2.0, 90.0), "c": (2.0, 85.0), "d": (3.0, 90.0), "e": (4.0, 95.0)}
    assert pareto_front(means) == ["a", "b", "e"]


def test_the_terminal_says_how_small_fast_and_right_models_without_channels_are():
    common = {"model": "net", "problem": "binary", "decided_by": "accuracy", "timing_batch_size": 16}
    times = {"latency_source_ms_onnxruntime": 10.0, "latency_reengineered_ms_onnxruntime": 4.0}
    times |= {"bytes_source_onnxruntime": 1_200_000, "bytes_reengineered_onnxruntime": 300_000}
    accuracies = {
        "accuracy_source": 0.95,
        "accuracy_reengineered": 0.94,
        "speedup_onnxruntime": 2.5,
        "speedup_seam": 2.5,
    }
    rows = [
        {**common, **times, **accuracies, "target": name, "search_granularity": granularity}
        for name, granularity in (("cat", "channel"), ("dog", None))
    ]
    table = pd.DataFrame(rows)
    assert list(small_models(table)) == [
        "Channels removed: models that are smaller and faster in every engine",
        "  net, binary: cat: file 1,200 -> 300 kB (4.0 x smaller); 16 images in ONNX Runtime 10.00 -> 4.00 ms "
        "(2.5 x as fast); accuracy 95.0 -> 94.0 %",
    ]
    assert not list(small_models(table[1:])) and not list(small_models(table.drop(columns="search_granularity")))
    without_engines = table.drop(columns=[name for name in table if name.startswith(("speedup", "latency", "bytes"))])
    assert list(small_models(without_engines))[1] == "  net, binary: cat: accuracy 95.0 -> 94.0 %"

"""Several searches in one pass find what each finds alone. Run on the CPU here; it is meant for GPUs."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import binary_searches, trained_model
from torch import nn
from torch.nn.functional import cross_entropy

from seam import device, reengineer, vectorised
from seam import search as search_module
from seam.checkpoint import STOPPED, Run, counted
from seam.reengineer import Reengineering, reengineer_all
from seam.search import search
from seam.together import Targets
from seam.vectorised import Vectorised, losses, repeated, search_all, together

NAMES = ("red", "green", "blue")
SETTINGS = {"epochs": 8, "batch_size": 24, "lr_mask": 0.1, "lr_head": 0.05, "patience": 100}
PLAIN = """
from torch import nn

def build(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, classes),
    )
"""


@pytest.fixture(scope="module")
def plain_folder(dataset_folder, tmp_path_factory):
    """A source model without dropout."""
    folder = tmp_path_factory.mktemp("models") / "plain"
    folder.mkdir()
    (folder / "plain.py").write_text(PLAIN)
    return trained_model(folder, f"{folder}/plain.py:build", dataset_folder)


@pytest.fixture
def arguments(tmp_path, plain_folder, dataset_folder):
    """{target: arguments of `reengineer`} of some settings."""

    def make(**settings):
        return binary_searches(tmp_path, NAMES, plain_folder, dataset_folder, SETTINGS | settings)

    return make


def ready(arguments):
    return [Reengineering(**one, device="cpu") for one in arguments.values()]


def found_in_one_pass(problems):
    return {problem.target: result for problem, result in search_all(problems, problems[0].settings)}


def alone(one):
    return search(one.model, one.train, one.selection, one.source_accuracy, one.settings)


def assert_alike(result, other):
    """Equal but for rounding: no mask on another side of 0, losses to six digits."""
    assert result.selected_epoch == other.selected_epoch
    for name, bits in other.bits.items():
        assert torch.equal(result.bits[name], bits), name
    for name, value in other.head.items():
        torch.testing.assert_close(result.head[name], value, rtol=1e-4, atol=1e-5)
    rows, others = (pd.DataFrame(each.history).drop(columns="seconds") for each in (result, other))
    pd.testing.assert_frame_equal(rows, others, rtol=1e-5)


def assert_each_alike(given, found):
    for one in ready({name: given[name] for name in found}):
        assert one.checkpoint.path.exists()  # each has its own
        assert_alike(found[one.target], alone(one))


@pytest.mark.parametrize("settings", [{}, {"schedule": "fast"}, {"evaluate_every": 3}])
def test_each_search_finds_what_it_finds_alone(arguments, settings):
    given = arguments(alpha=2.0, **settings)
    problems = ready(given)
    found = found_in_one_pass(problems)
    assert list(found) == list(NAMES)
    assert_each_alike(given, found)
    for result in found.values():
        assert min(row["retention"] for row in result.history) < 0.9
    bits = [torch.cat([bit.flatten() for bit in result.bits.values()]) for result in found.values()]
    assert not torch.equal(bits[0], bits[1]) and not torch.equal(bits[1], bits[2])


def test_in_bfloat16_it_is_nearly_what_each_finds_alone(arguments, monkeypatch):
    given = arguments(epochs=3)
    problems = ready(given)
    monkeypatch.setattr(device, "_precision", "bfloat16")  # as on a GPU
    found = found_in_one_pass(problems)
    for one in ready(given):
        monkeypatch.setattr(device, "_precision", "bfloat16")
        assert one.checkpoint.path.exists()  # each has its own
        for row, other in zip(found[one.target].history, alone(one).history, strict=True):
            assert row["cross_entropy"] == pytest.approx(other["cross_entropy"], rel=0.02)
            assert row["retention"] == pytest.approx(other["retention"], abs=0.02)


def test_searches_that_end_early_leave_the_others_alone(arguments, monkeypatch):
    given, runs = arguments(patience=2, epochs=30), []
    monkeypatch.setattr(vectorised, "Run", lambda *about: runs.append(Run(*about)) or runs[-1])
    problems = ready(given)
    found = found_in_one_pass(problems)
    epochs = {name: len(result.history) for name, result in found.items()}
    # They do not hold the tensors of all any longer.
    assert [not run.parts for run in runs] == [epochs[name] < max(epochs.values()) for name in NAMES]
    assert len(set(epochs.values())) > 1, epochs  # else this test shows nothing
    assert list(found) == sorted(epochs, key=epochs.get)
    assert_each_alike(given, found)


def test_a_search_that_fails_leaves_the_others_alone(arguments, caplog):
    given = arguments()
    problems = ready(given)
    problems[1].train.shift = problems[1].train.shift * float("nan")
    found = found_in_one_pass(problems)
    assert list(found) == ["red", "blue"]
    assert "green is left to its own job: The loss became nan in epoch 1: lower lr_mask" in caplog.text
    assert_each_alike(given, found)


@pytest.mark.parametrize("together_again", [True, False])
def test_searches_that_are_stopped_go_on_in_one_pass_or_alone(arguments, together_again, monkeypatch):
    given, steps = arguments(), []
    make = search_module.mask_step

    def stopping(*arguments):
        step = make(*arguments)

        def counted(*batch):
            steps.append(1)
            if len(steps) == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*batch)

        return counted

    monkeypatch.setattr(search_module, "mask_step", stopping)
    problems = ready(given)
    with pytest.raises(SystemExit) as end:
        list(search_all(problems, problems[0].settings))
    assert end.value.code == STOPPED and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    again = ready(given)
    if together_again:
        found = found_in_one_pass(again)
    else:
        found = {
            one.target: search(one.model, one.train, one.selection, one.source_accuracy, one.settings, one.checkpoint)
            for one in again
        }
    assert len(steps) < 9 + 8 * 3 or not together_again  # it did not begin anew
    assert_each_alike(given, found)


@pytest.mark.parametrize("number", [3, 4, 5])
def test_a_signal_at_an_epochs_end_stops_all_at_the_same_epoch(arguments, monkeypatch, number):
    """Also while the searches' results of the epoch are judged one after the other."""
    calls, judged = [], vectorised.judged

    def stopping(*about):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return judged(*about)

    monkeypatch.setattr(vectorised, "judged", stopping)
    problems = ready(arguments())
    with pytest.raises(SystemExit) as end:
        list(search_all(problems, problems[0].settings))
    assert end.value.code == STOPPED
    states = [one.checkpoint.read() for one in ready(arguments())]
    assert {state["place"]["epoch"] for state in states} == {(number - 1) // 3 + 2}


def test_checkpoints_that_stand_elsewhere_are_left_for_later(arguments, caplog):
    caplog.set_level("INFO")
    given = arguments()
    longer = ready(given)[2]
    with pytest.raises(KeyboardInterrupt):
        interrupted_search(longer, epochs=2)
    problems = ready(given)
    assert [problem.target for problem, _ in search_all(problems, problems[0].settings)] == ["red", "green"]
    assert "left for later, as their checkpoints stand elsewhere: blue" in caplog.text


def interrupted_search(one, epochs):
    def selection():
        for _ in range(epochs):
            yield list(one.selection)

    passes = selection()

    class Interrupted:
        def __iter__(self):
            batches = next(passes, None)
            if batches is None:
                raise KeyboardInterrupt
            return iter(batches)

    search(one.model, one.train, Interrupted(), one.source_accuracy, one.settings, one.checkpoint)


def test_what_cannot_be_vectorised_says_so_and_is_left(arguments, model_folder, caplog):
    caplog.set_level("INFO")
    given = [one | {"model_folder": str(model_folder)} for one in arguments().values()]  # it has dropout
    assert list(reengineer_all(given, "cpu")) == []
    assert "one after the other, as one pass cannot be: vmap: called random operation" in caplog.text


def test_a_problem_of_another_size_is_left(arguments, monkeypatch):
    given = arguments()
    given["green"]["settings"] = SETTINGS | {"holdout": 0.4}
    assert list(reengineer_all(given.values(), "cpu")) == ["red", "blue"]


def test_jobs_take_what_one_pass_has_found(arguments, tmp_path, monkeypatch):
    given = arguments()
    (tmp_path / "planned.json").write_text(json.dumps(list(given.values())))
    monkeypatch.setattr(Targets, "_vectorises", lambda self: True)
    searched = []
    monkeypatch.setattr(reengineer, "reengineer", lambda **arguments: searched.append(arguments["target"]))
    targets = Targets(tmp_path / "planned.json", "cpu", [vectorised.__file__])
    targets.search(given["red"], most=2)  # red, and the last one
    assert Path(given["red"]["folder"], "metrics.json").exists()
    targets.search(given["blue"], most=2)
    assert not searched and Path(given["blue"]["folder"], "metrics.json").exists()
    assert not Path(given["green"]["folder"]).exists()
    for name in ("red", "blue"):
        kept = json.loads(Path(given[name]["folder"], "metrics.json").read_text())
        other = Path(given[name]["folder"]).with_name(f"{name}-alone")
        (tmp_path / f"checkpoints/{name}.pt").unlink(missing_ok=True)
        single = Reengineering(**given[name] | {"folder": str(other)}, device="cpu")
        expected = single.keep(alone(single))
        assert {**kept, "seconds": 0} == {**expected, "seconds": 0}


# ---------------------------------------------------------------------- the parts


def test_a_vectorised_module_is_each_module_on_its_own_inputs():
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)) for _ in range(3)]
    names = [name for name, _ in modules[0].named_parameters()]
    stacked = {name: torch.stack([m.get_parameter(name).detach() for m in modules]) for name in names}
    inputs = torch.randn(5, 3, 3, 6, 6)
    outputs = Vectorised(modules[0], stacked)(inputs)
    assert outputs.shape == (5, 3, 2)
    for number, module in enumerate(modules):
        torch.testing.assert_close(outputs[:, number], module(inputs[:, number]))


def test_the_losses_are_each_searchs_own():
    logits, labels = torch.randn(7, 3, 4), torch.randint(4, (7, 3))
    expected = [cross_entropy(logits[:, number], labels[:, number]) for number in range(3)]
    torch.testing.assert_close(losses(logits, labels), torch.stack(expected))


def test_what_is_counted_of_a_batch_is_each_searchs_own():
    logits, labels, loss = torch.randn(7, 3, 4), torch.randint(4, (7, 3)), torch.rand(3)
    found = counted(logits, loss, labels)
    for number in range(3):
        right = sum(int(logits[i, number].argmax()) == int(labels[i, number]) for i in range(7))
        torch.testing.assert_close(found[number], torch.tensor([7.0, right, 7 * loss[number]]))
        assert torch.equal(counted(logits[:, number], loss[number], labels[:, number]), found[number])


def test_batches_of_all_searches_are_one_with_channels_last():
    batches = [(torch.randn(5, 3, 4, 4), torch.randint(2, (5,))) for _ in range(2)]
    images, labels = together(batches)
    for number, (image, label) in enumerate(batches):
        assert torch.equal(images[:, number], image) and torch.equal(labels[:, number], label)
    assert images.flatten(1, 2).is_contiguous(memory_format=torch.channels_last)


def test_a_parameter_is_repeated_with_its_channels_last():
    weight = nn.Conv2d(3, 8, 3).weight
    many = repeated(weight, 4)
    assert many.shape == (4, 8, 3, 3, 3) and all(torch.equal(one, weight) for one in many)
    assert many.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(repeated(torch.arange(3.0), 2), [[0, 1, 2], [0, 1, 2]])

"""A stack of searches gives what each search gives alone. The stack is for GPUs; the tests run it on the CPU."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from colours import binary_searches
from torch import nn
from torch.nn.functional import cross_entropy

from seam import precision
from seam.errors import UserError
from seam.reuse import direct
from seam.reuse.direct import Reengineering
from seam.search import stacked
from seam.search import training as search_training
from seam.search.mask_search import MaskSearch
from seam.search.plain import search
from seam.search.stack import StackedModule, losses, repeat, stack_batches
from seam.search.stacked import search_stack
from seam.search.training import mask_step
from seam.training.checkpoint import Checkpoint
from seam.training.run import EXIT_STOPPED, TrainingRun, batch_sums

NAMES = ("red", "green", "blue")
SETTINGS = {"epochs": 8, "batch_size": 24, "lr_mask": 0.1, "lr_head": 0.05, "patience": 100, "few_images": 0}


@pytest.fixture
def arguments(tmp_path, plain_model_folder, dataset_folder):
    """{target: arguments of `reengineer`} of some settings."""

    def make(**settings):
        return binary_searches(tmp_path, NAMES, plain_model_folder, dataset_folder, SETTINGS | settings)

    return make


def ready(arguments):
    return [Reengineering(**one, device="cpu") for one in arguments.values()]


def search_in_one_pass(problems):
    return {problem.target: result for problem, result in search_stack(problems, problems[0].settings)}


def alone(one):
    return search(one.model, one.train, one.selection, one.source_accuracy, one.settings)


def assert_alike(result, other):
    """Assert that two results are equal except for rounding: the same bits, losses to five digits."""
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
def test_each_search_of_a_stack_gives_what_it_gives_alone(arguments, settings):
    given = arguments(alpha=2.0, **settings)
    problems = ready(given)
    found = search_in_one_pass(problems)
    assert list(found) == list(NAMES)
    assert_each_alike(given, found)
    for result in found.values():
        assert min(row["retention"] for row in result.history) < 0.9
    bits = [torch.cat([bit.flatten() for bit in result.bits.values()]) for result in found.values()]
    assert not torch.equal(bits[0], bits[1]) and not torch.equal(bits[1], bits[2])


def test_in_bfloat16_the_results_are_nearly_those_alone(arguments, monkeypatch):
    given = arguments(epochs=3)
    problems = ready(given)
    monkeypatch.setattr(precision, "_precision", "bfloat16")  # as on a GPU
    found = search_in_one_pass(problems)
    for one in ready(given):
        monkeypatch.setattr(precision, "_precision", "bfloat16")
        assert one.checkpoint.path.exists()  # each has its own
        for row, other in zip(found[one.target].history, alone(one).history, strict=True):
            assert row["cross_entropy"] == pytest.approx(other["cross_entropy"], rel=0.02)
            assert row["retention"] == pytest.approx(other["retention"], abs=0.02)


def test_searches_that_end_early_leave_the_others_alone(arguments, monkeypatch):
    given, runs = arguments(patience=2, epochs=30), []
    monkeypatch.setattr(stacked, "TrainingRun", lambda *given: runs.append(TrainingRun(*given)) or runs[-1])
    problems = ready(given)
    found = search_in_one_pass(problems)
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
    found = search_in_one_pass(problems)
    assert list(found) == ["red", "blue"]
    assert "green leaves the stack, to be searched alone: The loss became nan in epoch 1: lower lr_mask" in caplog.text
    assert_each_alike(given, found)


@pytest.mark.parametrize("stacked_again", [True, False])
def test_stopped_searches_resume_in_a_stack_or_alone(arguments, stacked_again, monkeypatch):
    given, steps = arguments(), []
    make = mask_step

    def stopping(*arguments):
        step = make(*arguments)

        def stopped_at_ninth(*batch):
            steps.append(1)
            if len(steps) == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*batch)

        return stopped_at_ninth

    monkeypatch.setattr(search_training, "mask_step", stopping)
    problems = ready(given)
    with pytest.raises(SystemExit) as end:
        list(search_stack(problems, problems[0].settings))
    assert end.value.code == EXIT_STOPPED and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    again = ready(given)
    if stacked_again:
        found = search_in_one_pass(again)
    else:
        found = {
            one.target: search(one.model, one.train, one.selection, one.source_accuracy, one.settings, one.checkpoint)
            for one in again
        }
    assert len(steps) < 9 + 8 * 3 or not stacked_again  # it did not begin anew
    assert_each_alike(given, found)


@pytest.mark.parametrize("number", [3, 4, 5])
def test_a_signal_at_the_end_of_an_epoch_stops_all_searches_at_the_same_epoch(arguments, monkeypatch, number):
    """The signal may come while the searches of the stack select their epochs one after the other."""
    calls, end_epoch = [], MaskSearch.end_epoch

    def stopping(*positional, **named):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return end_epoch(*positional, **named)

    monkeypatch.setattr(MaskSearch, "end_epoch", stopping)
    problems = ready(arguments())
    with pytest.raises(SystemExit) as end:
        list(search_stack(problems, problems[0].settings))
    assert end.value.code == EXIT_STOPPED
    states = [one.checkpoint.read() for one in ready(arguments())]
    assert {state["run"]["epoch"] for state in states} == {(number - 1) // 3 + 2}


@pytest.mark.parametrize("number", [0, 2])
def test_searches_whose_checkpoints_stand_elsewhere_are_searched_later(arguments, caplog, number):
    caplog.set_level("INFO")
    given = arguments(schedule="fast")  # the rates depend on the number of steps
    longer = ready(given)[number]
    with pytest.raises(KeyboardInterrupt):
        interrupted_search(longer, epochs=2)
    found = search_in_one_pass(ready(given))
    assert list(found) == [name for name in NAMES if name != longer.target]
    assert f"searched later, as their checkpoints stand elsewhere: {longer.target}" in caplog.text
    assert_each_alike(given, found)


def test_a_signal_stops_a_stack_also_on_a_full_disk(arguments, monkeypatch, caplog):
    def write(self, state):
        raise UserError("Cannot write it (No space left on device)")

    monkeypatch.setattr(Checkpoint, "write", write)
    save = stacked._save_or_exit

    def signalled(member_runs, runs):
        runs[0].signal = signal.SIGTERM
        save(member_runs, runs)

    monkeypatch.setattr(stacked, "_save_or_exit", signalled)
    problems = ready(arguments())
    with pytest.raises(SystemExit) as end:
        list(search_stack(problems, problems[0].settings))
    assert end.value.code == EXIT_STOPPED and caplog.text.count("a checkpoint is missing: Cannot write it") == 3


def test_a_signal_stops_the_job_also_while_the_last_result_is_stored(arguments):
    problems, stored = ready(arguments()), []
    with pytest.raises(SystemExit) as end:
        for problem, _ in search_stack(problems, problems[0].settings):
            stored.append(problem.target)
            if len(stored) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == EXIT_STOPPED and len(stored) == 3


def test_the_largest_group_of_like_searches_is_stacked(monkeypatch):
    def made(target, sizes, **_):
        return SimpleNamespace(target=target, sizes=sizes, settings="same", save=lambda result: None)

    monkeypatch.setattr(direct, "Reengineering", made)
    monkeypatch.setattr(stacked, "search_stack", lambda alike, settings: [(each, None) for each in alike])
    searches = [
        {"target": name, "sizes": size, "settings": {}} for name, size in zip("abcd", (1, 2, 2, 3), strict=True)
    ]
    assert list(direct._search_in_one_pass(searches, "cpu")) == ["b", "c"]


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


# ---------------------------------------------------------------------- the parts


def test_a_stacked_module_is_each_module_on_its_own_inputs():
    torch.manual_seed(0)
    modules = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)) for _ in range(3)]
    names = [name for name, _ in modules[0].named_parameters()]
    parameters = {name: torch.stack([m.get_parameter(name).detach() for m in modules]) for name in names}
    inputs = torch.randn(5, 3, 3, 6, 6)
    outputs = StackedModule(modules[0], parameters)(inputs)
    assert outputs.shape == (5, 3, 2)
    for number, module in enumerate(modules):
        torch.testing.assert_close(outputs[:, number], module(inputs[:, number]))


def test_the_losses_are_each_searchs_own():
    logits, labels = torch.randn(7, 3, 4), torch.randint(4, (7, 3))
    expected = [cross_entropy(logits[:, number], labels[:, number]) for number in range(3)]
    torch.testing.assert_close(losses(logits, labels), torch.stack(expected))


def test_the_sums_of_a_batch_are_each_searchs_own():
    logits, labels, loss = torch.randn(7, 3, 4), torch.randint(4, (7, 3)), torch.rand(3)
    found = batch_sums(logits, loss, labels)
    for number in range(3):
        right = sum(int(logits[i, number].argmax()) == int(labels[i, number]) for i in range(7))
        torch.testing.assert_close(found[number], torch.tensor([7.0, right, 7 * loss[number]]))
        assert torch.equal(batch_sums(logits[:, number], loss[number], labels[:, number]), found[number])


def test_batches_of_all_searches_are_one_with_channels_last():
    batches = [(torch.randn(5, 3, 4, 4), torch.randint(2, (5,))) for _ in range(2)]
    images, labels = stack_batches(batches)
    for number, (image, label) in enumerate(batches):
        assert torch.equal(images[:, number], image) and torch.equal(labels[:, number], label)
    assert images.flatten(1, 2).is_contiguous(memory_format=torch.channels_last)


def test_a_parameter_is_repeated_with_its_channels_last():
    weight = nn.Conv2d(3, 8, 3).weight
    many = repeat(weight, 4)
    assert many.shape == (4, 8, 3, 3, 3) and all(torch.equal(one, weight) for one in many)
    assert many.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(repeat(torch.arange(3.0), 2), [[0, 1, 2], [0, 1, 2]])

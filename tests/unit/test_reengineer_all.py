"""Several target problems in one job."""

import json
from pathlib import Path

import pytest
from colours import ARCHITECTURE, binary_searches
from contents import content

from seam.errors import UserError
from seam.reuse import direct
from seam.reuse.direct import reengineer, reengineer_all
from seam.search import stacked
from seam.search.plain import search

SETTINGS = {
    "epochs": 5,
    "batch_size": 24,
    "lr_mask": 0.1,
    "lr_head": 0.05,
    "patience": 100,
    "alpha": 2.0,
    "few_images": 0,
}
TARGETS = ("red", "green", "blue")


@pytest.fixture
def searches(tmp_path, plain_model_folder, dataset_folder):
    """The arguments of `reengineer_all` for three targets."""
    return list(binary_searches(tmp_path / "all", TARGETS, plain_model_folder, dataset_folder, SETTINGS).values())


@pytest.fixture(scope="module")
def alone(tmp_path_factory, plain_model_folder, dataset_folder):
    """{target: content of its folder} of searches in jobs of their own."""
    root = tmp_path_factory.mktemp("results") / "alone"
    searches = binary_searches(root, TARGETS, plain_model_folder, dataset_folder, SETTINGS)
    for arguments in searches.values():
        reengineer(**arguments, device="cpu")
    return {target: content(arguments["folder"]) for target, arguments in searches.items()}


def assert_same_results(arguments, alone):
    """Assert that a folder holds what the search alone gives; the path in the masks' header differs."""
    results, expected = content(arguments["folder"]), alone[arguments["target"]]
    assert results.keys() == expected.keys()
    assert results["metrics.json"] == expected["metrics.json"] and results["history.csv"] == expected["history.csv"]


def has_checkpoint(arguments):
    return Path(arguments["checkpoint"]).exists()


def spoil(arguments):
    """Let a search fail as one of a user would: its source model is not there."""
    arguments["model_folder"] = str(Path(arguments["model_folder"]).with_name("absent"))


def test_results_are_those_of_jobs_of_their_own(searches, alone):
    reengineer_all(searches, "cpu")
    for arguments in searches:
        assert_same_results(arguments, alone)
        assert not has_checkpoint(arguments)


def test_a_target_that_fails_does_not_lose_the_others(searches, alone, caplog):
    spoil(searches[0])
    with pytest.raises(UserError, match=r"^red: .*absent"):
        reengineer_all(searches, "cpu")
    assert "red: " in caplog.text and not Path(searches[0]["folder"]).exists()
    for arguments in searches[1:]:
        assert_same_results(arguments, alone)
        assert has_checkpoint(arguments)  # a rerun of the job begins at its end


def test_the_error_counts_all_targets_that_failed(searches):
    for arguments in searches[:2]:
        spoil(arguments)
    with pytest.raises(UserError, match=r"^red: .*\(1 more targets failed, see the log\)$"):
        reengineer_all(searches, "cpu")


def test_the_error_of_a_single_target_is_its_own(searches):
    spoil(searches[0])
    with pytest.raises(UserError, match=r"^(?!red).*absent"):
        reengineer_all(searches[:1], "cpu")


def test_an_interrupted_job_resumes_with_the_same_results(searches, alone, monkeypatch):
    calls = []

    def interrupted(model, train, selection, *others, **options):
        calls.append(model)
        if len(calls) == 2:  # in the third epoch of the second target
            selection = Interrupted(selection, passes=3)
        return search(model, train, selection, *others, **options)

    monkeypatch.setattr(direct, "search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reengineer_all(searches, "cpu")
    assert [has_checkpoint(arguments) for arguments in searches] == [True, True, False]
    monkeypatch.setattr(direct, "search", search)
    reengineer_all(searches, "cpu")
    for arguments in searches:
        assert_same_results(arguments, alone)
        assert not has_checkpoint(arguments)


class Interrupted:
    """Batches that are interrupted after some passes."""

    def __init__(self, batches, passes):
        self.batches, self.passes = batches, passes

    def __iter__(self):
        self.passes -= 1
        if self.passes < 0:
            raise KeyboardInterrupt
        return iter(self.batches)


# ---------------------------------------------------------------------- on a CUDA GPU, for which the CPU stands in


@pytest.fixture
def passes(monkeypatch):
    """Let the CPU count as a CUDA GPU; the targets of each pass."""
    monkeypatch.setattr(direct, "is_cuda", lambda device: True)
    targets = []
    original = stacked.search_stack

    def recorded(problems, settings):
        targets.append([problem.target for problem in problems])
        return original(problems, settings)

    monkeypatch.setattr(stacked, "search_stack", recorded)
    return targets


def test_searches_that_are_alike_are_stacked(searches, alone, passes):
    reengineer_all(searches, "cpu")
    assert passes == [list(TARGETS)]
    for arguments in searches:
        metrics = json.loads(Path(arguments["folder"], "metrics.json").read_text())
        expected = alone[arguments["target"]]["metrics.json"]
        assert metrics["retention"] == pytest.approx(expected["retention"], abs=1e-3)
        assert metrics["selected_epoch"] == expected["selected_epoch"]
        assert not has_checkpoint(arguments)


def test_a_search_of_another_size_is_searched_alone(searches, alone, passes):
    searches[1]["settings"] = SETTINGS | {"holdout": 0.4}
    reengineer_all(searches, "cpu")
    assert passes == [["red", "blue"]]
    assert all(Path(arguments["folder"], "metrics.json").exists() for arguments in searches)


def test_a_stack_does_without_a_search_that_cannot_begin(searches, passes, caplog):
    spoil(searches[2])
    with pytest.raises(UserError, match="^blue: "):
        reengineer_all(searches, "cpu")
    assert passes == [["red", "green"]] and "blue is not part of the pass" in caplog.text
    assert all(Path(arguments["folder"], "metrics.json").exists() for arguments in searches[:2])


def test_a_model_that_cannot_be_vectorised_is_searched_one_by_one(searches, passes, model_folder, caplog):
    caplog.set_level("INFO")
    for arguments in searches:
        arguments |= {"model_folder": str(model_folder), "architecture": ARCHITECTURE}  # it has dropout
    reengineer_all(searches, "cpu")
    assert "searched one by one, not in one pass: vmap: called random operation" in caplog.text
    assert all(Path(arguments["folder"], "metrics.json").exists() for arguments in searches)

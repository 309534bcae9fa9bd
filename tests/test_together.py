"""Several searches in one process: the same results, each in the hands of its own job."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import binary_searches
from filelock import FileLock
from test_checkpoint import content

from seam import together
from seam.errors import UserError
from seam.reuse.direct import reengineer
from seam.together import Targets

SETTINGS = {"epochs": 8, "batch_size": 16, "lr_mask": 0.1, "lr_head": 0.05, "patience": 100}
NAMES = ("red", "green", "blue")
CODE = [together.__file__]


@pytest.fixture
def searches(tmp_path, model_folder, dataset_folder):
    """{target: arguments} of three planned searches, in folders as the workflow has them."""
    models = Path(shutil.copytree(model_folder, tmp_path / "models/small"))
    found = binary_searches(tmp_path, NAMES, models, dataset_folder, SETTINGS)
    (tmp_path / "planned.json").write_text(json.dumps(list(found.values())))
    return found


@pytest.fixture
def targets(tmp_path):
    return Targets(tmp_path / "planned.json", "cpu", CODE)


@pytest.fixture
def searched(monkeypatch):
    """The targets that are searched, in order."""
    found, search = [], reengineer
    monkeypatch.setattr(
        reengineer, "reengineer", lambda **arguments: found.append(arguments["target"]) or search(**arguments)
    )
    return found


def ahead(one):
    return Path(one["folder"]).with_name(f".{one['target']}.ahead")


def test_each_target_ends_with_the_files_that_it_has_alone(searches, targets, searched, tmp_path):
    targets.search(searches["red"], most=3)
    assert searched == ["red", "blue", "green"]
    assert not Path(searches["green"]["folder"]).exists()  # until its own job comes
    for name in NAMES[1:]:
        targets.search(searches[name], most=3)
        assert not ahead(searches[name]).exists()
    assert len(searched) == 3
    for name in NAMES:
        alone = tmp_path / "alone/small/binary" / name
        reengineer(**searches[name] | {"folder": alone}, device="cpu")
        assert content(searches[name]["folder"]) == content(alone)


def test_a_job_searches_no_more_than_it_may(searches, targets, searched, monkeypatch):
    targets.search(searches["red"], most=2)
    assert searched == ["red", "blue"]
    monkeypatch.setattr(together, "ENOUGH", 0)
    targets.search(searches["green"], most=2)
    assert searched == ["red", "blue", "green"]


def test_a_result_is_taken_without_torch(searches, targets, tmp_path):
    targets.search(searches["red"], most=2)
    command = (
        "import json, sys; from seam.together import Targets; planned, code, own = sys.argv[1:];"
        " Targets(planned, 'cpu', [code]).search(json.loads(own), 3); assert 'torch' not in sys.modules"
    )
    arguments = [tmp_path / "planned.json", *CODE, json.dumps(searches["blue"])]
    environment = os.environ | {"PYTHONPATH": str(Path(together.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", command, *arguments], check=True, env=environment)
    assert Path(searches["blue"]["folder"], "metrics.json").exists()


@pytest.mark.parametrize("other", [{"seed": 1}, {"settings": SETTINGS | {"alpha": 2.0}}, {"members": ["green"]}])
def test_a_result_of_other_settings_is_not_taken(searches, targets, searched, other):
    targets.search(searches["red"], most=2)
    targets.search(searches["blue"] | other, most=1)
    assert searched == ["red", "blue", "blue"]


def test_a_result_of_other_code_or_a_damaged_one_is_not_taken(searches, targets, searched, tmp_path):
    targets.search(searches["red"], most=3)
    (ahead(searches["green"]) / "about.json").write_text("{")
    targets.search(searches["green"], most=1)
    Targets(tmp_path / "planned.json", "cpu", [__file__]).search(searches["blue"], most=1)
    assert searched == ["red", "blue", "green", "green", "blue"]


def test_what_is_done_already_is_not_searched_again(searches, targets, searched):
    targets.search(searches["blue"], most=1)
    targets.search(searches["red"], most=3)
    assert searched == ["blue", "red", "green"]


def test_of_results_from_before_the_run_nothing_is_kept(searches, targets, searched, tmp_path):
    targets.search(searches["blue"], most=1)
    os.utime(tmp_path / "planned.json")  # another run begins, which plans it again
    os.utime(Path(searches["blue"]["folder"], "metrics.json"), (0, 0))
    targets.search(searches["red"], most=2)
    assert searched == ["blue", "red", "blue"]


def test_another_jobs_target_is_left_to_it_and_waited_for(searches, targets, searched, monkeypatch):
    lock = FileLock(f"{searches['red']['checkpoint']}.lock")
    Path(lock.lock_file).parent.mkdir(parents=True)
    lock.acquire()
    monkeypatch.setattr(together.time, "sleep", lambda _: lock.release())  # the other job was killed meanwhile
    targets.search(searches["red"], most=2)
    assert searched == ["blue", "red"]  # while it waited, it searched another one's
    assert Path(searches["red"]["folder"], "metrics.json").exists()


def test_a_search_that_fails_is_left_to_its_own_job(searches, targets, caplog, tmp_path):
    searches["blue"]["settings"] = SETTINGS | {"alpha": 1e6, "lr_mask": 10.0}
    (tmp_path / "planned.json").write_text(json.dumps(list(searches.values())))
    targets.search(searches["red"], most=2)
    assert Path(searches["red"]["folder"], "metrics.json").exists()
    assert "blue is left to its own job: No weight was left in epoch 2" in caplog.text
    with pytest.raises(UserError, match="No weight was left in epoch 2"):
        targets.search(searches["blue"], most=2)


def test_a_job_that_is_killed_has_lost_no_search_that_was_through(searches, targets, searched, monkeypatch):
    search = reengineer

    def killed(**arguments):
        if arguments["target"] == "blue":
            raise KeyboardInterrupt
        return search(**arguments)

    monkeypatch.setattr(reengineer, "reengineer", killed)
    with pytest.raises(KeyboardInterrupt):
        targets.search(searches["red"], most=3)
    targets.search(searches["red"], most=3)
    assert searched == ["red"] and Path(searches["red"]["folder"], "metrics.json").exists()


def test_where_files_cannot_be_locked_a_sentence_says_what_to_do(searches, targets, monkeypatch):
    def refuse(*_, **__):
        raise OSError("No locks available")

    monkeypatch.setattr(together.FileLock, "acquire", refuse)
    with pytest.raises(UserError, match=r"red.pt.lock \(No locks available\): set together: 1"):
        targets.search(searches["red"], most=2)


def test_without_a_plan_a_job_searches_its_own_target(searches, targets, searched, tmp_path):
    (tmp_path / "planned.json").unlink()
    targets.search(searches["red"], most=3)
    assert searched == ["red"]

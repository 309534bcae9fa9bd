"""A job that is stopped and started again, many times, ends with the same bytes, clock times aside."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from colours import ARCHITECTURE
from contents import content

from seam.reuse.students import train_head
from seam.reuse.threshold_search import search_masks
from seam.training.run import EXIT_STOPPED

TESTS = Path(__file__).parents[1]
SCRIPTS = TESTS.parent / "workflow" / "scripts"


def interrupted(tmp_path, function, arguments, number, seconds=0.1):
    """Run a job whose process gets the signal at random moments until the job ends; return all exit statuses."""
    work = {"signal": number, "seconds": seconds, "seed": 0, "module": MODULES[function], "function": function}
    path = tmp_path / f"work{number}.json"
    path.write_text(json.dumps(work | {"arguments": arguments}))
    paths = os.pathsep.join([str(SCRIPTS), str(TESTS / "helpers")])
    command = [sys.executable, TESTS / "helpers/interrupted.py", path]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def work(tmp_path_factory, model_folder, dataset_folder):
    """The arguments of each procedure, without folder and checkpoint, and a head and masks to begin with."""
    root = tmp_path_factory.mktemp("search")
    shared = {
        "model_folder": str(model_folder),
        "dataset_folder": str(dataset_folder),
        "model": "small",
        "dataset": "colours",
        "seed": 0,
        "device": "cpu",
    }
    common = {"batch_size": 16, "selection": "holdout", "holdout": 0.2, "last_layer": None}
    sgd = {"epochs": 8, "patience": 8, "lr": 0.05, "weight_decay": 1e-4, "momentum": 0.5}
    last = {"lr_last": 0.1}
    search = {"epochs": 80, "lr_mask": 0.02, "lr_last": 0.01, "alpha": 0.03}
    origin = {"architecture": "small", "weights_origin": "train"}
    train_head(root, **shared, common=common, head=sgd, checkpoint=root / "x.pt")
    masks = {"common": common, "search": search, "thresholds": [0.3, 0.5]}
    search_masks(root, **shared, **masks, checkpoint=root / "x.pt")
    student = {"common": common, "settings": sgd | last, "origin": origin}
    seam = {"student": "seam", "threshold": 0.5, "masks": str(root / "masks.safetensors")}
    training = {"epochs": 8, "batch_size": 16, "lr": 0.05}
    source = {"architecture": ARCHITECTURE, "normalization": None, "seed": 0, "training": training}
    settings = {"epochs": 12, "batch_size": 16, "lr_mask": 0.1, "lr_head": 0.05, "patience": 100}
    return {
        "train_head": shared | {"common": common, "head": sgd},
        "search_masks": shared | masks,
        "train_student": shared | student | seam,
        "reengineer": shared | {"problem": "binary", "target": "red", "members": ["red"], "settings": settings},
        "train_source": {"model": "small", "dataset": str(dataset_folder), "settings": source, "device": "cpu"},
        "head": (root / "head.safetensors").read_bytes(),
    }


MODULES = {
    "train_source": "seam.reuse.source_training",
    "reengineer": "seam.reuse.direct",
    "train_head": "seam.reuse.students",
    "search_masks": "seam.reuse.threshold_search",
    "train_student": "seam.reuse.students",
}


def prepared(name, work, folder):
    """Return the arguments of a procedure that works in `folder`."""
    folder.mkdir()
    arguments = work[name] | {"checkpoint": str(folder.parent / f"{folder.name}.pt")}
    if name == "search_masks":
        (folder / "head.safetensors").write_bytes(work["head"])
    if name == "train_source":
        return arguments | {"weights": str(folder / "source.safetensors"), "history": str(folder / "training.csv")}
    return arguments | {"folder": str(folder)}


@pytest.mark.parametrize("name", MODULES)
def test_a_job_that_is_killed_again_and_again_ends_as_if_it_had_not_been(name, work, tmp_path):
    uninterrupted = prepared(name, work, tmp_path / "uninterrupted")
    assert interrupted(tmp_path, name, uninterrupted, 0) == [0]
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, EXIT_STOPPED)):
        arguments = prepared(name, work, tmp_path / f"killed{number}")
        statuses = interrupted(tmp_path, name, arguments, int(number))
        assert len(statuses) > 2 and status in statuses, statuses
        assert content(arguments.get("folder", tmp_path / f"killed{number}")) == content(tmp_path / "uninterrupted")
        assert not Path(arguments["checkpoint"]).exists()  # a job that is done removes it
        assert not list(tmp_path.glob(".*.part"))

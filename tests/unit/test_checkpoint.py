"""A job that is killed and started again ends with the same bytes, clock times aside."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import ARCHITECTURE
from contents import content

from seam.data.batches import batches
from seam.data.storage import Split
from seam.errors import UserError
from seam.reuse.students import train_head
from seam.reuse.threshold_search import search_masks
from seam.training import checkpoint as checkpoints
from seam.training import run as training_run
from seam.training.checkpoint import Checkpoint
from seam.training.run import EXIT_STOPPED, TrainingRun

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


# ---------------------------------------------------------------------- the parts


def images(augmentation=("crop", "flip")):
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 2, 40), (8, 8), random.integers(0, 256, (40, 8, 8, 3), np.uint8))
    generator = torch.Generator().manual_seed(0)
    options = {"normalization": ((0.5,) * 3, (0.25,) * 3), "augmentation": augmentation}
    return batches(split, np.arange(40), split.labels, 8, generator=generator, shuffle=True, **options)


def trained(path, stop_at=None, scale=1.0, provenance=None):
    """Return (weights, history, steps) of a small model after three epochs; it "dies" at the step `stop_at`."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(192, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    steps = []

    def step(inputs, labels):
        if len(steps) == stop_at:
            raise InterruptedError
        steps.append(1)
        logits = model(inputs * scale)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return logits, loss

    checkpoint = path and Checkpoint(path, provenance or {"lr": 0.01}, __file__)
    with TrainingRun(images(), {"model": model, "optimizer": optimizer}, checkpoint) as run:
        while run.epoch <= 3:
            _, right, loss = run.train_epoch(step)
            run.end_epoch({"right": right, "loss": loss})
    return model[2].weight, run.history, len(steps)


@pytest.mark.parametrize("stop_at", [1, 5, 7, 10, 14])
def test_a_run_resumes_in_the_middle_of_an_epoch(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(training_run, "SAVE_SECONDS", -1)
    expected, history, _ = trained(None)
    with pytest.raises(InterruptedError):
        trained(tmp_path / "run.pt", stop_at)
    weight, again, steps = trained(tmp_path / "run.pt")
    assert torch.equal(weight, expected) and again == history
    assert steps == 15 - stop_at  # nothing is done twice


def test_checkpoints_of_short_epochs_take_a_hundredth_of_the_time(tmp_path, monkeypatch):
    written, now = [], [0.0]
    monkeypatch.setattr(training_run.time, "perf_counter", lambda: now[0])

    def write(*_):
        written.append(now[0])
        now[0] += 0.02  # seconds

    monkeypatch.setattr(Checkpoint, "write", write)
    with TrainingRun([], {}, Checkpoint(tmp_path / "run.pt", {}, __file__)) as run:
        for _ in range(100):
            now[0] += 0.1
            run.end_epoch({})
    between = np.diff(written)
    assert len(written) > 2 and between.min() >= 2 and between.max() < 2.3  # seconds: the first, then each 100 x 0.02 s
    now[0] = written[-1] + 2.5
    assert run.is_save_worthwhile() and not run.is_save_worthwhile(runs=10)  # ten take ten times as long


def test_without_its_random_state_a_run_would_end_otherwise(tmp_path, monkeypatch):
    """The test above would notice: dropout and the order of the images matter."""
    expected, _, _ = trained(None)
    with pytest.raises(InterruptedError):
        trained(tmp_path / "run.pt", 7)
    monkeypatch.setattr(torch, "set_rng_state", lambda _: None)
    assert not torch.equal(trained(tmp_path / "run.pt")[0], expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lr": 0.02}, "other lr"),
        ({"lr": 0.01, "data": "x"}, "other data"),
        (None, "other code"),
    ],
)
def test_a_checkpoint_of_another_job_is_set_aside_with_a_sentence(tmp_path, caplog, monkeypatch, change, reason):
    path = tmp_path / "run.pt"
    with pytest.raises(InterruptedError):
        trained(path, 7)
    before = path.read_bytes()
    if change is None:
        monkeypatch.setattr(checkpoints, "code_digest", lambda module: "another version")
    assert trained(path, provenance=change)[2] == 15  # from the beginning
    assert "is not continued" in caplog.text and reason in caplog.text
    assert (tmp_path / "run.pt.aside").read_bytes() == before


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"nonsense"])
def test_a_damaged_checkpoint_is_set_aside(tmp_path, caplog, damage):
    path = tmp_path / "run.pt"
    with pytest.raises(InterruptedError):
        trained(path, 7)
    path.write_bytes(damage(path.read_bytes()))
    assert trained(path)[2] == 15
    assert "it cannot be read" in caplog.text


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb",)


def test_no_code_in_a_checkpoint_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"provenance": {}, "state": Bomb()}, "run.pt")
    assert Checkpoint("run.pt", {}, __file__).read() is None
    assert not Path("bomb").exists()


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    monkeypatch.setattr(training_run, "SAVE_SECONDS", -1)
    with pytest.raises(InterruptedError):
        trained(path, 7)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"loss became (nan|inf) in epoch 2: lower .* last good state is in .*run.pt"):
        trained(path, scale=float("inf"))
    assert path.read_bytes() == before


def test_a_full_disk_ends_the_job_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    with pytest.raises(InterruptedError):
        trained(path, 7)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        trained(path)
    assert path.read_bytes() == before

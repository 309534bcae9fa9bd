"""Checkpoints and the training loop: what is written when, and which state a run resumes from."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from seam.data.batches import batches
from seam.data.storage import Split
from seam.errors import UserError
from seam.files import sealed_write
from seam.training import checkpoint as checkpoints
from seam.training import run as training_run
from seam.training.checkpoint import Checkpoint
from seam.training.run import TrainingRun


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


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b"",
        lambda b: b"nonsense",
        lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :],
    ],
)
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


def sealed(path, write):
    with sealed_write(path) as temporary:
        write(temporary)


def nested_key(path):
    """A checkpoint with a key whose hash takes years: 60 tuples, each of which holds the one before twice."""
    tuples = b"".join(b"h%ch%c\x86q%c" % (number, number, number + 1) for number in range(60))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02)q\x00" + tuples + b"}h\x3cK\x01s.")


def compressed(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"provenance": {}, "state": {}}, 2))


def code(path):
    torch.save({"provenance": Checkpoint(path, {}, __file__).provenance, "state": Bomb()}, path)


def other_types(path):
    torch.save({"provenance": ["a"], "state": 3}, path)


@pytest.mark.parametrize("write", [nested_key, compressed, code, other_types])
def test_a_hostile_checkpoint_is_set_aside_although_its_digest_is_right(tmp_path, monkeypatch, caplog, write):
    """It is read as weights of strangers are (tests/unit/test_unpickling.py has more)."""
    monkeypatch.chdir(tmp_path)
    sealed("run.pt", write)
    assert Checkpoint("run.pt", {}, __file__).read() is None
    assert Path("run.pt.aside").exists() and not Path("bomb").exists() and "is not continued" in caplog.text


def test_a_checkpoint_whose_state_is_another_is_a_sentence(tmp_path):
    path = tmp_path / "run.pt"
    Checkpoint(path, {"lr": 0.01}, __file__).write({"parts": {}})
    with pytest.raises(UserError, match=r"run.pt does not fit this job .*: delete it, and the job starts anew"):
        trained(path)


def test_a_pipe_in_the_place_of_a_checkpoint_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.pt")
    assert Checkpoint(tmp_path / "run.pt", {}, __file__).read() is None


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

"""Devices: which one a job gets, that it has it alone, and what is computed in which precision there.

What needs no GPU runs with pretended ones; the rest on the CPU in bfloat16 and, where there is one, on a GPU.
"""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from seam.device import TAKEN, _lock, _products, describe_device, exact, forward, gpus, select_device
from seam.errors import UserError
from seam.evaluation import predict
from seam.models.surgery import with_head
from seam.reuse.direct import reengineer
from seam.reuse.indirect import TransferTask
from seam.robustness.attack import judge, perturbations
from seam.search.search import search
from seam.settings import AttackSettings, FinetuningSettings, SearchSettings
from seam.settings import TrainingSettings as Training
from seam.training.checkpoint import Checkpoint
from seam.training.run import Run
from seam.training.supervised import finetune
from seam.training.supervised import train as train_source

ROOT = Path(__file__).parents[2]
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
PLACES = ["cpu", pytest.param("cuda", marks=GPU)]


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """What `select` sets for the whole process is as it was, after each test."""
    monkeypatch.setattr(device, "_precision", "float32")
    before = _products("ieee")
    yield
    _products(*before)
    if _lock is not None:  # another process of the tests waits for the GPU
        _lock.release()
        _lock = None
        os.environ.pop(TAKEN, None)


# ---------------------------------------------------------------------- which device


def test_the_cpu_computes_in_float32_whatever_the_precision():
    for wanted in ("cpu", "cpu/bfloat16", "cpu/tf32"):
        where = select_device(wanted)
        assert where == torch.device("cpu")
        assert describe_device(where) == {"device": "cpu", "precision": "float32"}


@pytest.mark.parametrize(
    ("there", "expected"), [([], "cpu"), (["mps"], "mps"), (["cuda"], "cuda"), (["cuda", "mps"], "cuda")]
)
def test_auto_takes_a_gpu_where_there_is_one(pretended, monkeypatch, there, expected):
    pretended("one")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    assert select_device("auto/bfloat16").type == expected


def test_a_gpu_without_bfloat16_computes_in_float32_and_says_so(pretended, caplog):
    pretended("old")
    assert describe_device(select_device("cuda/bfloat16")) == {"device": "cuda", "precision": "float32"}
    assert "this GPU does not compute in bfloat16" in caplog.text


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"device: {name} is asked for .* torch finds none here: choose auto or cpu"):
        select_device(f"{name}/bfloat16")


# ---------------------------------------------------------------------- a GPU for each job


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """A function that lets torch find GPUs of these names."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(device, "_lock", None)
    monkeypatch.setattr(device, "POLL", 0.02)
    monkeypatch.setenv(TAKEN, "none of these")

    def make(*names):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=names[index]))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a pretended GPU")
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: "old" not in names)

    return make


@contextlib.contextmanager
def job(wanted="cuda"):
    """A process that selects its device and then waits; gives it, and the connection that the device comes by."""

    def run(here):
        here.send(str(select_device(wanted)))
        here.recv()

    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    process = fork.Process(target=run, args=(there,), daemon=True)
    process.start()
    try:
        yield process, here
    finally:
        process.kill()
        process.join()


def test_each_job_has_a_gpu_of_its_own_until_it_ends(pretended):
    pretended("a", "b")
    with job() as (one, first):
        assert first.poll(20) and first.recv() == "cuda:0"
        with job() as (_, second):
            assert second.poll(20) and second.recv() == "cuda:1"
            with job() as (_, third):
                assert not third.poll(0.3)  # it waits
                one.kill()  # no chance to give anything back
                assert third.poll(20) and third.recv() == "cuda:0"


def test_a_gpu_is_known_by_its_own_number_not_its_place(pretended):
    pretended("a", "b")
    with job() as (first, found):
        assert found.poll(20) and found.recv() == "cuda:0"
        pretended("b", "a")  # as another CUDA_VISIBLE_DEVICES would have it
        with job() as (_, other):
            assert other.poll(20) and other.recv() == "cuda:0"
        pretended("a")
        with job() as (_, other):
            assert not other.poll(0.3)
            first.kill()
            assert other.poll(20) and other.recv() == "cuda:0"


def test_a_process_keeps_its_gpu_and_shares_it_with_what_it_starts(pretended):
    pretended("a", "b")
    with job() as (_, found):
        assert found.poll(20) and found.recv() == "cuda:0"
        assert [select_device("cuda"), select_device("auto/tf32")] == [torch.device("cuda:1")] * 2
        with job() as (_, child):
            assert child.poll(20) and child.recv() == "cuda:1"


def test_a_folder_that_cannot_hold_locks_is_said(pretended, tmp_path, monkeypatch):
    pretended("a")
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"Cannot lock a GPU with .*file/seam-.*-gpu-a.lock \(.+\): mend"):
        select_device("cuda")


@pytest.mark.parametrize(
    ("visible", "count"),
    [("0", 1), ("2,3", 2), ("GPU-1a, GPU-2b", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("MIG-1/2/3", 1)],
)
def test_visible_gpus_are_counted(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == count


def test_gpus_are_counted_without_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device, "NVIDIA", tmp_path / "gpus")
    assert gpus() == 0
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\n[ $1 = -L ] && echo 'GPU 0: one (UUID: GPU-1)' && echo 'GPU 1: two (UUID: GPU-2)'")
    command.chmod(0o755)
    assert gpus() == 2
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert gpus() == 3
    code = "import sys; from seam import device; device.gpus(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "workflow/scripts").returncode == 0


LIMIT = """
import json, os, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, Quietness, ResourceSettings

limits = []
for visible, settings in json.loads(sys.argv[2]):
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(ResourceSettings(**settings), snakefile=Path(sys.argv[1]))._workflow
        limits.append(workflow.global_resources["gpu"].value if "gpu" in workflow.global_resources else None)
print(json.dumps(limits))
"""


def test_locally_there_are_as_many_gpu_jobs_as_gpus(tmp_path):
    limits = [
        (("0,1", {"cores": 4}), 2),
        (("0,1", {"cores": 4, "resources": {"gpu": 3}}), 3),
        (("0,1", {"nodes": 10}), None),  # --jobs of a cluster
        (("", {"cores": 4}), None),
    ]
    command = [sys.executable, "-c", LIMIT, ROOT / "Snakefile", json.dumps([run for run, _ in limits])]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == [limit for _, limit in limits]


# ---------------------------------------------------------------------- what is computed how


@pytest.fixture
def bfloat16(monkeypatch):
    """A function that selects a device whose steps are in bfloat16, also the CPU."""

    def make(name):
        place = select_device(f"{name}/bfloat16")
        monkeypatch.setattr(device, "_precision", "bfloat16")
        return place

    return make


def network(place, seed=0):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    return nn.Sequential(*layers).to(place, memory_format=torch.channels_last)


def batches(place, count=96, size=16, seed=0):
    """Images of two kinds, told apart by their mean."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.randn(count, 3, 8, 8, generator=generator) + (2.0 * labels[:, None, None, None] - 1)
    images = images.to(place, memory_format=torch.channels_last)
    return list(zip(images.split(size), labels.to(place).split(size), strict=True))


def watched(layer):
    """A set of what is found at each pass of the layer: whether it is in training, its output's type, and how float32
    products are computed."""
    seen = set()
    products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    layer.register_forward_hook(
        lambda module, _, out: seen.add((module.training, out.dtype, *(kind.fp32_precision for kind in products)))
    )
    return seen


STEP, MEASURED = (True, torch.bfloat16, "ieee", "ieee"), (False, torch.float32, "ieee", "ieee")
EXACT_STEP, TF32_STEP = ((True, torch.float32, kind, kind) for kind in ("ieee", "tf32"))


@pytest.mark.parametrize("place", PLACES)
def test_a_step_is_in_bfloat16_and_its_results_in_float32(bfloat16, place):
    place = bfloat16(place)
    model, (images, _) = network(place), batches(place)[0]
    seen = watched(model[0])
    found = forward(model, images)
    assert seen == {STEP}
    assert found.dtype == torch.float32
    expected = model(images)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    found.sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def searched(place, kept=None, **settings):
    model = with_head(network(place), 5, 2).to(place)
    torch.manual_seed(1)
    seen = watched(model.source[0])
    options = SearchSettings(**{"epochs": 15, "batch_size": 16, "lr_mask": 0.1, "patience": 100} | settings)
    return search(model, batches(place), batches(place, 48, seed=1), 0.9, options, kept), seen


@pytest.mark.parametrize("place", PLACES)
def test_a_search_in_bfloat16_finds_what_one_in_float32_does(bfloat16, monkeypatch, place):
    kept, masks = [], Run.__init__
    monkeypatch.setattr(Run, "__init__", lambda self, *a: kept.append(a[1]["masks"]) or masks(self, *a))
    expected, seen = searched("cpu")
    assert seen == {EXACT_STEP, MEASURED}
    found, seen = searched(bfloat16(place))
    assert seen == {STEP, MEASURED}  # steps, and the accuracy after each epoch
    assert all(value.dtype == torch.float32 for value in kept[1].values.values())
    for name, bound in (("retention", 0.05), ("accuracy", 0.1), ("cross_entropy", 0.05)):
        values = [[row[name] for row in result.history] for result in (expected, found)]
        np.testing.assert_allclose(*values, atol=bound)
    assert not torch.equal(*(result.head["weight"] for result in (expected, found)))


@pytest.mark.parametrize("place", PLACES)
def test_training_and_fine_tuning_are_in_bfloat16_and_learn(bfloat16, place):
    place = bfloat16(place)
    model = network(place)
    seen = watched(model[0])
    history = train_source(model, batches(place), Training(epochs=5, lr=0.5), batches(place, 48, seed=1))
    assert seen == {STEP, MEASURED} and history[-1]["test_accuracy"] > 0.9
    seen.clear()
    options = FinetuningSettings(epochs=3, patience=3, lr=0.01, weight_decay=0.0, lr_last=0.1)
    history, _ = finetune(model, "5", batches(place), batches(place, 48, seed=1), options)
    assert seen == {STEP, MEASURED} and history[-1]["accuracy"] > 0.9
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("place", PLACES)
def test_a_search_goes_on_from_its_checkpoint(bfloat16, monkeypatch, tmp_path, place):
    place = bfloat16(place)
    whole, _ = searched(place)
    monkeypatch.setattr(checkpoint, "EVERY", -1)
    steps, step = [], torch.nn.functional.cross_entropy

    def fails(logits, labels):
        steps.append(1)
        if len(steps) == 40:
            raise InterruptedError
        return step(logits, labels)

    monkeypatch.setattr("seam.search.cross_entropy", fails)
    about = describe_device(place)
    with pytest.raises(InterruptedError):
        searched(place, Checkpoint(tmp_path / "x.pt", about))
    again, _ = searched(place, Checkpoint(tmp_path / "x.pt", about))
    assert len(steps) == 40 + 15 * 6 - 39  # nothing is done twice
    same = [torch.equal(whole.bits[name], again.bits[name]) for name in whole.bits]
    if place.type == "cpu":
        assert all(same)
    share = torch.cat([(whole.bits[name] == again.bits[name]).flatten() for name in whole.bits]).float().mean()
    assert share > 0.95  # sums on a GPU come in no fixed order


def test_tf32_is_for_steps_alone(pretended):
    pretended("a")
    assert describe_device(select_device("cuda/tf32")) == {"device": "cuda", "precision": "tf32"}
    model, (images, labels) = network("cpu"), batches("cpu")[0]
    seen = watched(model[0])
    forward(model, images)
    assert seen == {TF32_STEP}
    options, levels = AttackSettings(steps=2), np.zeros((16, 8, 8, 3), np.int8)
    measure = {
        "accuracy": lambda: predict(model, [(images, labels)]),
        "attack": lambda: perturbations(model, [(images, labels)], options, levels),
        "defects": lambda: judge(model, [(images, labels)], levels, options),
    }
    for name, run in measure.items():
        seen.clear()
        run()
        assert seen == {MEASURED}, name
    with pytest.raises(KeyError), exact():
        raise KeyError
    seen.clear()
    forward(model.train(), images)
    assert seen == {TF32_STEP}  # as before


def test_float32_is_neither(pretended):
    pretended("a")
    select_device("cuda/tf32")
    select_device("cuda/float32")
    model = network("cpu")
    seen = watched(model[0])
    forward(model, batches("cpu")[0][0])
    assert seen == {EXACT_STEP}


# ---------------------------------------------------------------------- whole jobs


def reengineered(folder, model_folder, dataset_folder, where):
    settings = {"epochs": 24, "batch_size": 16, "lr_mask": 0.1, "lr_head": 0.05, "patience": 100}
    return reengineer(
        folder, model_folder, dataset_folder, "small", "colours", "binary", "red", ["red"], settings, 0, where,
        folder / "checkpoint.pt",
    )  # fmt: skip


def test_a_job_says_where_and_how_it_was_computed(tmp_path, model_folder, dataset_folder):
    metrics = reengineered(tmp_path, model_folder, dataset_folder, "cpu/bfloat16")
    assert (metrics["device"], metrics["precision"]) == ("cpu", "float32")
    common = {"batch_size": 16, "selection": "holdout", "holdout": 0.2, "last_layer": None}
    job = TransferTask(model_folder, dataset_folder, ("small", "colours", "head"), common, 0, "cpu")
    assert job.about.items() >= {"device": "cpu", "precision": "float32"}.items() <= job.facts().items()


def test_a_checkpoint_of_another_precision_is_not_continued(tmp_path, monkeypatch, model_folder, dataset_folder):
    kept = []
    monkeypatch.setattr("seam.reengineer.Checkpoint", lambda path, about: kept.append(about) or Checkpoint(path, about))
    for precision in ("float32", "bfloat16"):
        monkeypatch.setattr("seam.reengineer.describe", lambda _, now=precision: {"device": "cuda", "precision": now})
        reengineered(tmp_path / precision, model_folder, dataset_folder, "cpu")
    one, other = kept
    assert {name for name in one if one[name] != other[name]} == {"precision"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["bfloat16", "tf32", "float32"])
def test_a_job_on_a_gpu_finds_what_one_on_the_cpu_does(tmp_path, model_folder, dataset_folder, precision):
    expected = reengineered(tmp_path / "cpu", model_folder, dataset_folder, "cpu")
    found = reengineered(tmp_path / "gpu", model_folder, dataset_folder, f"cuda/{precision}")
    assert (found["device"], found["precision"]) == ("cuda", precision)
    assert found["accuracy"]["source"] == pytest.approx(expected["accuracy"]["source"], abs=0.03)
    assert found["accuracy"]["reengineered"] == pytest.approx(expected["accuracy"]["reengineered"], abs=0.1)
    assert found["retention"] == pytest.approx(expected["retention"], abs=0.1)  # dropout draws other numbers


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs here")
def test_two_jobs_have_two_gpus(tmp_path):
    code = "from seam import device; print(device.select('cuda').index, flush=True); input()"
    environment = {name: value for name, value in os.environ.items() if name != TAKEN}
    environment["TMPDIR"] = str(tmp_path)  # where the locks are: other processes of the tests may hold a GPU
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    jobs = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "workflow/scripts", **options) for _ in range(2)]
    found = {job.stdout.readline().strip() for job in jobs}
    for job in jobs:
        job.communicate("\n")
    assert len(found) == 2

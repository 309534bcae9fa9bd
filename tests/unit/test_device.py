"""Devices: which one a job gets, and that it has a GPU to itself. Most tests pretend that there are GPUs."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from seam import gpus
from seam.device import describe_device, select_device
from seam.errors import UserError
from seam.gpus import LOCKED_GPU, count_gpus

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"

pytestmark = pytest.mark.usefixtures("restored_device")


# ---------------------------------------------------------------------- which device


def test_the_cpu_computes_in_float32_whatever_the_precision_on_a_gpu():
    for wanted in ("cpu", "cpu/bfloat16", "cpu/tf32", "cpu/bfloat16/float32"):
        where = select_device(wanted)
        assert where == torch.device("cpu")
        assert describe_device(where) == {"device": "cpu", "precision": "float32"}


def test_a_device_that_is_not_known_is_an_error():
    with pytest.raises(UserError, match="The device gpu is not known: choose auto, cuda, mps, cpu"):
        select_device("gpu")


@pytest.mark.parametrize("has_instructions", [True, False])
def test_the_cpu_computes_in_bfloat16_if_asked_and_able_to(monkeypatch, caplog, has_instructions):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    place = select_device("cpu//bfloat16")
    expected = "bfloat16" if has_instructions else "float32"
    assert describe_device(place) == {"device": "cpu", "precision": expected}
    assert ("no instructions for bfloat16" in caplog.text) is not has_instructions


def test_auto_passes_the_precision_of_the_device_that_it_finds(pretend_gpus, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert describe_device(select_device("auto/tf32/bfloat16"))["precision"] == "bfloat16"
    pretend_gpus("one")
    assert describe_device(select_device("auto/tf32/bfloat16"))["precision"] == "tf32"


@pytest.mark.parametrize(
    ("there", "expected"), [([], "cpu"), (["mps"], "mps"), (["cuda"], "cuda"), (["cuda", "mps"], "cuda")]
)
def test_auto_takes_a_gpu_where_there_is_one(pretend_gpus, monkeypatch, there, expected):
    pretend_gpus("one")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    assert select_device("auto/bfloat16").type == expected


def test_a_gpu_without_bfloat16_computes_in_float32_and_logs_it(pretend_gpus, caplog):
    pretend_gpus("old")
    assert describe_device(select_device("cuda/bfloat16")) == {"device": "cuda", "precision": "float32"}
    assert "this GPU does not compute in bfloat16" in caplog.text


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_an_error(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"device {name} is asked for, but torch finds none here: choose auto or cpu"):
        select_device(f"{name}/bfloat16")


# ---------------------------------------------------------------------- a GPU for each job


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


def test_each_job_has_a_gpu_of_its_own_until_it_ends(pretend_gpus):
    pretend_gpus("a", "b")
    with job() as (one, first):
        assert first.poll(20) and first.recv() == "cuda:0"
        with job() as (_, second):
            assert second.poll(20) and second.recv() == "cuda:1"
            with job() as (_, third):
                assert not third.poll(0.3)  # it waits
                one.kill()  # no chance to give anything back
                assert third.poll(20) and third.recv() == "cuda:0"


def test_a_gpu_is_known_by_its_own_number_not_its_place(pretend_gpus):
    pretend_gpus("a", "b")
    with job() as (first, found):
        assert found.poll(20) and found.recv() == "cuda:0"
        pretend_gpus("b", "a")  # as another CUDA_VISIBLE_DEVICES would have it
        with job() as (_, other):
            assert other.poll(20) and other.recv() == "cuda:0"
        pretend_gpus("a")
        with job() as (_, other):
            assert not other.poll(0.3)
            first.kill()
            assert other.poll(20) and other.recv() == "cuda:0"


def test_a_process_keeps_its_gpu_and_shares_it_with_what_it_starts(pretend_gpus):
    pretend_gpus("a", "b")
    with job() as (_, found):
        assert found.poll(20) and found.recv() == "cuda:0"
        assert [select_device("cuda"), select_device("auto/tf32")] == [torch.device("cuda:1")] * 2
        with job() as (_, child):
            assert child.poll(20) and child.recv() == "cuda:1"


def test_a_folder_that_cannot_hold_locks_is_said(pretend_gpus, tmp_path, monkeypatch):
    pretend_gpus("a")
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"Cannot lock a GPU with .*file/seam-.*-gpu-a.lock \(.+\): fix"):
        select_device("cuda")


@pytest.mark.parametrize(
    ("visible", "count"),
    [("0", 1), ("2,3", 2), ("GPU-1a, GPU-2b", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("MIG-1/2/3", 1)],
)
def test_visible_gpus_are_counted(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == count


def test_gpus_are_counted_without_torch(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "NVIDIA", tmp_path / "gpus")
    assert count_gpus() == 0
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\n[ $1 = -L ] && echo 'GPU 0: one (UUID: GPU-1)' && echo 'GPU 1: two (UUID: GPU-2)'")
    command.chmod(0o755)
    assert count_gpus() == 2
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert count_gpus() == 3
    code = "import sys; from seam.gpus import count_gpus; count_gpus(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs here")
def test_two_jobs_have_two_gpus(tmp_path):
    code = "from seam.device import select_device; print(select_device('cuda').index, flush=True); input()"
    environment = {name: value for name, value in os.environ.items() if name != LOCKED_GPU}
    environment["TMPDIR"] = str(tmp_path)  # where the locks are: other processes of the tests may hold a GPU
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    jobs = [subprocess.Popen([sys.executable, "-c", code], cwd=SCRIPTS, **options) for _ in range(2)]
    found = {job.stdout.readline().strip() for job in jobs}
    for job in jobs:
        job.communicate("\n")
    assert len(found) == 2

"""Fixtures for tests of devices: GPUs that do not exist, and a process whose device is as before after each test."""

import os
import tempfile
from types import SimpleNamespace

import pytest
import torch

from seam import gpus
from seam.precision import set_precision, set_products


@pytest.fixture
def restored_device():
    """Restore what `select_device` sets for the whole process, and release its GPU."""
    set_precision("float32")
    before = set_products("ieee")
    yield
    set_precision("float32")
    set_products(*before)
    if gpus._lock is not None:  # another process of the tests waits for the GPU
        gpus._lock.release()
        gpus._lock = None
        os.environ.pop(gpus.LOCKED_GPU, None)


@pytest.fixture
def pretend_gpus(restored_device, monkeypatch, tmp_path):
    """A function that lets torch find GPUs of these names."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(gpus, "_lock", None)
    monkeypatch.setattr(gpus, "POLL", 0.02)
    monkeypatch.setenv(gpus.LOCKED_GPU, "none of these")

    def make(*names):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=names[index]))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a pretended GPU")
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: "old" not in names)

    return make

"""Threads: a job has its own number of them, unless it is bound to fewer processors."""

import os

import pytest
import torch

from seam import memory
from seam.memory import use_threads


@pytest.mark.parametrize(("processors", "expected"), [({0}, 1), ({0, 1}, 2), ({0, 1, 2, 3}, 2)])
def test_a_process_has_no_more_threads_than_processors_that_it_may_use(monkeypatch, caplog, processors, expected):
    monkeypatch.setattr(memory, "_keeps_memory", False)
    monkeypatch.setattr(memory, "_mallopt", lambda *_: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: processors, raising=False)
    caplog.set_level("INFO")
    before = torch.get_num_threads()
    try:
        use_threads(2)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
    assert ("1 of 2 threads" in caplog.text) == (expected == 1)

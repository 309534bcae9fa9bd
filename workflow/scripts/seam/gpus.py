"""The NVIDIA GPUs of this machine: how many there are, and a lock that gives each job a GPU of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from seam.errors import UserError
from seam.log import log

NVIDIA = Path("/proc/driver/nvidia/gpus")  # the driver has a folder here for each GPU
LOCKED_GPU = "SEAM_GPU"  # environment variable: the GPU that this process, or the one that started it, has locked
POLL = 2  # seconds between two looks for a free GPU
_lock: Any = None  # the lock on this process's GPU, held until the process ends


def count_gpus() -> int:
    """Return how many NVIDIA GPUs the jobs on this machine may use. Does not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # CUDA ignores everything after an empty or a negative entry
        names = (name.strip() for name in visible.split(","))
        return len(list(itertools.takewhile(lambda name: name and not name.startswith("-"), names)))
    with contextlib.suppress(OSError):
        return len(list(NVIDIA.iterdir()))
    if shutil.which("nvidia-smi"):  # the Windows Subsystem for Linux has no such folder
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
            return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return 0


def lock_gpu() -> int:
    """Return the index of a visible GPU that no other job uses, locked until this process ends.

    Waits while other jobs have all GPUs. A process that a job starts shares the job's GPU. Raises UserError if the
    lock file cannot be written.
    """
    global _lock
    import torch
    from filelock import FileLock, Timeout

    # By UUID, because the index depends on which GPUs a process sees.
    uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
    if os.environ.get(LOCKED_GPU) in uuids:
        return uuids.index(os.environ[LOCKED_GPU])
    waiting = False
    while True:
        for index, uuid in enumerate(uuids):
            path = Path(tempfile.gettempdir(), f"seam-{os.getuid()}-gpu-{uuid}.lock")
            try:
                lock = FileLock(path)
                lock.acquire(timeout=0)
            except Timeout:
                continue
            except OSError as error:
                raise UserError(f"Cannot lock a GPU with {path} ({error.strerror}): fix its permissions.") from error
            _lock, os.environ[LOCKED_GPU] = lock, uuid
            return index
        if not waiting:
            log.info("waits: other jobs have all %d GPUs", len(uuids))
            waiting = True
        time.sleep(POLL)

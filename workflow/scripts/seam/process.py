"""The process of a job: how it ends with the run that started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

SHELLS = ("bash", "sh", "dash", "zsh", "time")  # between Snakemake and the script that it runs
PR_SET_PDEATHSIG = 1  # of Linux's prctl
GRACE_SECONDS = 120  # for a job to write its checkpoint


def start_job() -> None:
    """Make this process a job: Ctrl-C ends it at once and silently, and it does not outlive its Snakemake.

    To be called before the imports that take time. A training or search that Ctrl-C or the end of Snakemake stops
    writes a checkpoint first.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = _starter()
    if parent is not None:
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(parent)
            threading.Thread(target=_end_with, args=(pidfd,), daemon=True, name="parent").start()


def _starter() -> int | None:
    """Return the process that started this job: the nearest ancestor that is no shell; None where that is not known.

    On a cluster it is the Snakemake that runs on the node, not the one that has queued the job.
    """
    if not hasattr(os, "pidfd_open"):  # only Linux has it
        return None
    pid = os.getppid()
    with contextlib.suppress(OSError, ValueError, IndexError):
        while pid > 1:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            if name not in SHELLS:
                return pid
            pid = int(rest.split()[1])
    return None


def _end_with(pidfd: int) -> None:
    """Wait until the process of a file descriptor has ended; then end this one."""
    select.select([pidfd], [], [])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def die_with_parent(*_: object) -> None:
    """Let the system kill this process when the process that forked it ends, where the system can (Linux).

    For worker processes. The arguments are those that pools and loaders give, and are not used.
    """
    if sys.platform == "linux":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

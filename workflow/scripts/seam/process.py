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
from collections.abc import Iterator
from pathlib import Path

SHELLS = ("bash", "sh", "dash", "zsh", "time")  # between Snakemake and the script that it runs
RUN = "SEAM_RUN"  # the variable that names the Snakemake which runs the jobs: its process, and where that number holds
NAMESPACE = "/proc/self/ns/pid"
PR_SET_PDEATHSIG = 1  # of Linux's prctl
GRACE_SECONDS = 120  # for a job to write its checkpoint


def start_job() -> None:
    """Make this process a job: Ctrl-C ends it at once and silently, and it does not outlive its Snakemake.

    Its Snakemake is the process that has called `name_run`; on a cluster, the one that runs on the node. To be called
    before the imports that take time. A training or search that Ctrl-C or the end of Snakemake stops
    writes a checkpoint first.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not hasattr(os, "pidfd_open"):  # only Linux has it
        return
    run = _named_run()
    parent = _starter() if run is None else run
    if parent is not None:
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(parent)
            threading.Thread(target=_end_with, args=(pidfd,), daemon=True, name="parent").start()
    if run is not None and run not in [pid for pid, _ in _ancestors()]:  # it ended before this job was so far
        sys.exit("The Snakemake that started this job has ended, and so does the job: run it again.")


def name_run() -> None:
    """Let the jobs that this process starts know that it runs them, so that they can tell when it has ended."""
    with contextlib.suppress(OSError):
        os.environ[RUN] = f"{os.getpid()} {os.readlink(NAMESPACE)}"


def _named_run() -> int | None:
    """Return the process that `name_run` has named, None if none has or its number means nothing here."""
    with contextlib.suppress(OSError, ValueError):
        pid, _, namespace = os.environ.get(RUN, "").partition(" ")
        if namespace == os.readlink(NAMESPACE):
            return int(pid)
    return None


def _starter() -> int | None:
    """Return the process that started this job: the nearest ancestor that is no shell; None where that is not known."""
    return next((pid for pid, name in _ancestors() if pid > 1 and name not in SHELLS), None)


def _ancestors() -> Iterator[tuple[int, str]]:
    """Yield (number, name) of this process's ancestors, the parent first."""
    pid = os.getppid()
    with contextlib.suppress(OSError, ValueError, IndexError):
        while pid > 0:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            yield pid, name
            pid = int(rest.split()[1])


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

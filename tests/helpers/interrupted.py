"""Run a job in a process of its own that is killed again and again until it ends: what test_checkpoint.py compares.

python interrupted.py ARGUMENTS.json: {"signal": 9 or 15, "module", "function", "arguments": {...}}; prints the exit
statuses of all attempts as JSON. A signal of 0 lets the first attempt end.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pandas  # noqa: F401 (here, and not in each attempt)
import safetensors.torch  # noqa: F401
import torch
import torch._dynamo  # an optimizer's first step asks for it

from seam.training.run import EVERY, RARELY, STOPPED

EVERY = 0.01  # seconds: after every few steps
RARELY = 0  # and after every epoch


def attempt(work, run, most):
    """Start `run` in a child and, with a signal to send, stop it within `most` seconds of its first
    checkpoint; its exit status."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        try:
            run()
            os._exit(0)
        except SystemExit as end:
            os._exit(end.code)
    if work["signal"]:
        kept = Path(work["arguments"]["checkpoint"])
        before = stamp(kept)
        while stamp(kept) == before:  # it comes at least one step further
            time.sleep(0.005)
            if os.waitpid(child, os.WNOHANG)[0]:
                return 0
        time.sleep(random.uniform(0, most))
        os.kill(child, work["signal"])
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def stamp(path):
    return path.stat().st_mtime_ns if path.exists() else None


if __name__ == "__main__":
    work = json.loads(Path(sys.argv[1]).read_text())
    function = getattr(importlib.import_module(work["module"]), work["function"])
    random.seed(work["seed"])
    statuses = []
    while not statuses or statuses[-1] in (-signal.SIGKILL, -signal.SIGTERM, STOPPED):
        most = 0.01 if len(statuses) < 4 else work["seconds"]  # however fast the machine is, some come too early
        statuses.append(attempt(work, lambda: function(**work["arguments"]), most))
    print(json.dumps(statuses))

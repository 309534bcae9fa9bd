"""Run a job in a process of its own that is stopped again and again until the job ends.

`python interrupted.py ARGUMENTS.json`, where the file holds {"signal", "seed", "seconds", "module", "function",
"arguments"}: the signal that stops the job (9 or 15; 0 lets the first attempt end), the seed of the moments, the most
seconds between a checkpoint and the signal, and the call. Prints the exit statuses of all attempts as JSON.
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

from seam.training import run as training_run

SHORTEST = 0.01  # seconds before the signal in the first attempts, so that some come early on any machine


def attempt(work, function, seconds):
    """Run the job in a child process; return its exit status, which is negative if a signal ended it.

    If there is a signal to send, it comes within `seconds` of the child's first checkpoint.
    """
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        try:
            function(**work["arguments"])
            os._exit(0)
        except SystemExit as end:
            os._exit(end.code)
    if work["signal"]:
        checkpoint = Path(work["arguments"]["checkpoint"])
        before = modified(checkpoint)
        while modified(checkpoint) == before:  # each attempt gets at least one step further
            time.sleep(0.005)
            if os.waitpid(child, os.WNOHANG)[0]:
                return 0
        time.sleep(random.uniform(0, seconds))
        os.kill(child, work["signal"])
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def modified(path):
    """Return when the file was written, None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # also if the job, which is about to end, removes it now
        return None


if __name__ == "__main__":
    training_run.SAVE_SECONDS = 0.01  # a checkpoint after every few steps
    training_run.SAVE_RATIO = 0  # and after every epoch
    work = json.loads(Path(sys.argv[1]).read_text())
    function = getattr(importlib.import_module(work["module"]), work["function"])
    random.seed(work["seed"])
    statuses = []
    while not statuses or statuses[-1] in (-signal.SIGKILL, -signal.SIGTERM, training_run.EXIT_STOPPED):
        statuses.append(attempt(work, function, SHORTEST if len(statuses) < 4 else work["seconds"]))
    print(json.dumps(statuses))

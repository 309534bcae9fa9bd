"""The process of a job ends with the process that started it."""

import os
import select
import signal
import subprocess
import sys

import pytest

from seam.imports import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells when another process ends")
STARTER = """
import subprocess, sys, time
subprocess.Popen(["bash", "-c", sys.argv[1] + "; true"])
time.sleep(100)
"""
JOB = "from seam.process import start_job; start_job(); print('begun', flush=True); import time; time.sleep(100)"
WORKER = (
    "import os, time; from seam.process import die_with_parent\n"
    "if not os.fork(): die_with_parent(); print(os.getpid(), flush=True); time.sleep(100)\n"
    "time.sleep(100)"
)


def started(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)


def ends(pipe):
    """Return whether all processes that hold a pipe end within seconds."""
    ready, _, _ = select.select([pipe], [], [], 10)
    return bool(ready) and os.read(pipe.fileno(), 1) == b""


def test_a_job_ends_with_the_process_that_started_its_shell():
    starter = started(sys.executable, "-c", STARTER, f'{sys.executable} -c "{JOB}"')
    assert starter.stdout.readline() == "begun\n"
    starter.kill()
    starter.wait()
    assert ends(starter.stdout)


def test_a_job_whose_snakemake_ended_before_it_began_does_not_begin():
    """It would end later than the jobs of a newer run, and put its results over theirs."""
    begin = "import os, seam.process; seam.process.name_run()\n"
    starter = started(sys.executable, "-c", begin + STARTER, f'echo here; sleep 0.5; {sys.executable} -c "{JOB}"')
    assert starter.stdout.readline() == "here\n"
    starter.kill()
    starter.wait()
    assert ends(starter.stdout)
    living = started(sys.executable, "-c", begin + STARTER, f'{sys.executable} -c "{JOB}"')
    assert living.stdout.readline() == "begun\n"
    living.kill()
    living.wait()
    assert ends(living.stdout)


def test_a_worker_ends_with_its_parent():
    parent = started(sys.executable, "-c", WORKER)
    assert int(parent.stdout.readline()) != parent.pid
    parent.kill()
    parent.wait()
    assert ends(parent.stdout)


def test_ctrl_c_during_the_imports_says_nothing():
    job = subprocess.Popen(
        [sys.executable, "-c", JOB],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert job.stdout.readline() == "begun\n"
    job.send_signal(signal.SIGINT)
    assert job.communicate(timeout=10) == ("", "") and job.returncode == -signal.SIGINT

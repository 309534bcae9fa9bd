"""A Slurm of one node for the tests: started in a folder of its own, without systemd, stopped with nothing left behind.

python tests/helpers/slurm.py COMMAND ...: run a command beside it, e.g. snakemake --workflow-profile profiles/slurm.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")  # in this order; stopped in the other
# What the node is said to have (memory in MB): Slurm schedules as if it had.
CPUS, MEMORY, GPUS = 8, 64_000, 2


CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=task=1
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """The programs that a Slurm needs and this machine lacks."""
    return [name for name in (*DAEMONS, "sbatch", "srun", "squeue") if not program(name)]


def program(name):
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextlib.contextmanager
def running(cpus=CPUS):
    """Start it, give the environment in which its commands work, stop it with the jobs that it still has."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # not under a long path, which no socket can have
    folder.chmod(0o755)  # munged wants that
    try:
        environment = _configure(folder, cpus)
        try:
            for name in DAEMONS:
                _start(name, folder, environment)
            _until_idle(folder, environment)
            yield environment
        finally:
            _cancel(environment)
            for name in reversed(DAEMONS):
                _stop(folder / f"{name}.pid")
            for process in left(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def left(folder):
    """Processes of its jobs. Without cgroups Slurm loses sight of one whose parent it has ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = path.read_bytes().split(b"\0")
            if f"SLURM_CONF={folder}/slurm.conf".encode() in variables and any(
                variable.startswith(b"SLURM_JOB_ID=") for variable in variables
            ):
                found.append(int(path.parent.name))
    return found


def _configure(folder, cpus):
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    about = {"folder": folder, "user": getpass.getuser(), "host": host, "cpus": cpus, "memory": MEMORY, "gpus": GPUS}
    with socket.socket() as one, socket.socket() as other:
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
        ports = {"controller": one.getsockname()[1], "node": other.getsockname()[1]}
    (folder / "slurm.conf").write_text(CONF.format(**about, **ports))
    with (folder / "gres.conf").open("w") as gres:
        for number in range(GPUS):
            device = folder / f"gpu{number}"
            device.symlink_to("/dev/null")
            print(f"NodeName={host} Name=gpu File={device}", file=gres)
    # The plugin takes SLURM_CONF from the environment of the srun within a job; a site has its file in /etc/slurm.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {program("srun")} "$@"\n')
    srun.chmod(0o755)
    # No plugin's variables of a Slurm that this runs in.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    return clean | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin:{os.environ['PATH']}"}


def _start(name, folder, environment):
    command = [program(name)]
    if name == "munged":
        for option in ("key-file=munge.key", "socket=munge.socket", "pid-file=munged.pid", "log-file=munged.log"):
            option, _, file = option.partition("=")
            command.append(f"--{option}={folder / file}")
        command += [f"--seed-file={folder / 'munge.seed'}"]
    else:
        command += ["-f", folder / "slurm.conf"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{name} does not start: {result.stderr.strip()}")


def _until_idle(folder, environment, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        said = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False)
        if said.stdout.strip() == "idle":
            return
        time.sleep(0.1)
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
    raise RuntimeError(f"The node did not become idle in {seconds} s:\n{said.stdout}{said.stderr}\n{logs}")


def _cancel(environment, seconds=20):
    """End the jobs that it still has."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        queued = subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True, check=False)
        if not queued.stdout.strip():
            return
        subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, capture_output=True, check=False)
        time.sleep(0.5)


def _stop(pid_file, seconds=20):
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        number = int(pid_file.read_text())
        os.kill(number, signal.SIGTERM)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            os.kill(number, 0)
            time.sleep(0.05)
        os.kill(number, signal.SIGKILL)


if __name__ == "__main__":
    if missing():
        sys.exit(f"{', '.join(missing())} not found: on Debian, apt-get install slurm-wlm munge.")
    with running() as environment:
        sys.exit(subprocess.run(sys.argv[1:], env=environment, check=False).returncode)

"""Snakemake jobs on a Slurm, for the tests."""

import contextlib
import re
import subprocess
import sys
import time

from workflows import ROOT

LOCAL = {"all", "make_env", "collect_direct", "collect_indirect", "summarise", "plot_direct", "plot_indirect", "report"}


GPU = {
    "train_source", "evaluate_source", "reengineer", "attack_source", "finetune_standard", "retrain",
    "finetune_seam_head", "finetune_seam_masks", "finetune_seam", "evaluate_defects",
}  # fmt: skip


class Going:
    """Snakemake with the slurm profile, as a person calls it, running in `folder`; `log` is its output."""

    def __init__(self, folder, log, cluster, *arguments):
        self.folder, self.cluster, self.log = folder, cluster, log
        command = [sys.executable, "-m", "snakemake", "--workflow-profile", ROOT / "profiles/slurm"]
        command += ["--slurm-init-seconds-before-status-checks", "2"]  # 40 by default, friendly to a busy Slurm
        command += arguments
        with self.log.open("w") as said:
            self.process = subprocess.Popen(command, cwd=folder, env=cluster, stdout=said, stderr=subprocess.STDOUT)

    def entries(self):
        """{Slurm's number: what it is} of all queue entries so far."""
        said = self.log.read_text()
        return dict(re.findall(r"SLURM jobid (\d+) \(log: \S+/slurm_logs/(\S+?)/\d+\.log", said))

    def about(self, number):
        """What Slurm says of an entry."""
        command = ["scontrol", "show", "job", number]
        said = subprocess.run(command, env=self.cluster, capture_output=True, text=True, check=True).stdout
        return dict(re.findall(r"(\S+?)=(\S+)", said))

    def until(self, happened, seconds=240):
        end = time.monotonic() + seconds
        while not (found := happened()):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)
        return found

    def ends(self, seconds=400):
        """What it said; it must end well."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        said = self.log.read_text()
        assert self.process.poll() == 0, said
        return said

"""Print how long a run will take, stage by stage: how many jobs there are, how many are to be done, for how long."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def planned(command, variable):
    """The jobs of a run, as its dry run `command` writes them to the file that the environment `variable` names."""
    from seam.errors import UserError
    from seam.files import read_json

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        environment = {**os.environ, variable: str(path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
            raise UserError("What is to be done could not be planned, for the reason above: mend that first.")
        return read_json(path)


def estimate(jobs, models, datasets, limits, device, cores):
    """The estimate as text. limits: {resource: how much there is of it}."""
    from seam.planning.estimate import World, history, missing, notes, table, timed

    world = World(models, datasets)
    past = history(jobs, world)
    steps, seconds, start, where = missing(jobs, world, past), {}, 0.0, ""
    if any(job["todo"] for job in jobs):
        from seam.device import select_device
        from seam.planning import calibration
        from seam.planning.calibration import measure

        where = select_device(device)
        if steps:
            print(f"Measuring {len(steps)} kinds of steps, some seconds each ...", file=sys.stderr, flush=True)
        start, seconds = calibration.start(), measure(steps, device, cores)
    jobs = timed(jobs, world, past, seconds, start)
    return "\n".join([table(jobs), "", *notes(jobs, limits, where)])


if "snakemake" in globals():
    from seam.log import job_log, log

    with job_log(snakemake.log[0]):
        said = estimate(
            planned(snakemake.params.command, snakemake.params.plan),
            snakemake.params.models,
            snakemake.params.datasets,
            snakemake.params.limits,
            snakemake.params.device,
            snakemake.threads,
        )
        log.info("\n%s", said)
        print(f"\n{said}\n", flush=True)

"""Print how long a run will take, stage by stage: how many jobs there are, how many are to be done, for how long."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def planned(command, variable):
    """The jobs of a run, as its dry run `command` writes them to the file that the environment `variable` names."""
    from seam.files import UserError, read_json

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
    from seam import estimate as plan

    world = plan.World(models, datasets)
    past = plan.history(jobs, world)
    steps, seconds, start, where = plan.missing(jobs, world, past), {}, 0.0, ""
    if any(job["todo"] for job in jobs):
        from seam import calibration
        from seam.device import select

        where = select(device)
        if steps:
            print(f"Measuring {len(steps)} kinds of steps, some seconds each ...", file=sys.stderr, flush=True)
        start, seconds = calibration.start(), calibration.measure(steps, device, cores)
    jobs = plan.timed(jobs, world, past, seconds, start)
    return "\n".join([plan.table(jobs), "", *plan.notes(jobs, limits, where)])


if "snakemake" in globals():
    from seam.progress import job, log

    with job(snakemake.log[0]):
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

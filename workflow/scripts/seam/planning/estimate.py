"""How many hours a run takes: by the jobs that have run, and for all others by steps measured on this machine."""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from seam.device import select_device
from seam.errors import UserError
from seam.files import read_json
from seam.gpus import count_gpus
from seam.planning.work import Inventory, Job, Step, stage, work
from seam.progress import duration

OTHER = 3.0  # seconds of a job besides its steps: mostly the start of Python and of torch
History = dict[tuple, list[float]]


def read_plan(command: list[str], variable: str) -> list[Job]:
    """Return the jobs of a run, as its dry run `command` writes them to a file.

    variable: of the environment; it names that file. Raises UserError if the dry run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        environment = {**os.environ, variable: str(path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
            raise UserError("The run could not be planned, for the reason above: fix that first.")
        return read_json(path)


def estimate(jobs: list[Job], inventory: Inventory, device: str, cores: int) -> str:
    """Return the estimate as text: a table of the stages, and sentences below it."""
    if not any(job["todo"] for job in jobs):
        return f"{table(timed(jobs, inventory, {}, {}))}\n\nNothing is to be done."
    from seam.planning.calibration import measure

    where = select_device(device)
    past = history(jobs, inventory, where.type)
    steps = missing(jobs, inventory, past)
    if steps:
        print(f"Measuring {len(steps)} kinds of steps, some seconds each ...", file=sys.stderr, flush=True)
    jobs = timed(jobs, inventory, past, measure(steps, where))
    return "\n".join([table(jobs), "", *notes(jobs, where.type, cores)])


def group(job: Job, steps: dict[Step, float]) -> tuple:
    """Return what similar jobs have in common: their stage, and the model and data set if they have `steps`."""
    names = job["params"].get("searches", [job["wildcards"]])[0]
    return (stage(job), *(names.get(name) for name in ("model", "problem", "dataset") if steps))


def history(jobs: list[Job], inventory: Inventory, device: str = "cpu") -> History:
    """Return {group: seconds of each job that has run}; an image, for jobs that run a model.

    On a CPU these are the seconds of all its cores. A job that runs a model and is to run again does not count, since
    its settings were others.
    """
    past: History = {}
    for job in jobs:
        steps = work(job, inventory)
        seconds = _seconds_taken(job, trains=bool(steps))
        if seconds and not (job["todo"] and steps):
            cores = job["threads"] if device == "cpu" else 1
            past.setdefault(group(job, steps), []).append(cores * seconds / (sum(steps.values()) or 1))
    return past


def _seconds_taken(job: Job, trains: bool) -> float:
    """Return the seconds of a job from its benchmark, 0 if it has none.

    The benchmark of a job that was resumed counts from then on; its history has the seconds of all epochs. trains:
    whether its tables are such histories: those of a job that collects results have the seconds of other jobs.
    """
    seconds = _column(job["benchmark"], "s", "\t") if job["benchmark"] else []
    tables = [file for file in job["output"] if file.endswith(".csv")] if trains else []
    epochs = [second for file in tables for second in _column(file, "seconds", ",")]
    return max(seconds[-1], sum(epochs)) if seconds else 0.0


def _column(path: str, name: str, delimiter: str) -> list[float]:
    """Return the numbers of a table's column; none if there is no such table."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [float(row[name]) for row in csv.DictReader(file, delimiter=delimiter)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def missing(jobs: list[Job], inventory: Inventory, past: History) -> list[Step]:
    """Return the steps to measure, sorted: those of jobs to do of which no similar job has run."""
    todo = (work(job, inventory) for job in jobs if job["todo"] and group(job, work(job, inventory)) not in past)
    return sorted({step for steps in todo for step in steps})


def timed(jobs: list[Job], inventory: Inventory, past: History, measured: dict[Step, float]) -> list[Job]:
    """Return the jobs with "seconds", 0 if they are done, and "known": by what.

    past: from `history`; measured: {Step: seconds an image}.
    """
    result = []
    for job in jobs:
        steps = work(job, inventory) if job["todo"] else {}
        if not job["todo"]:
            seconds, known = 0.0, ""
        elif similar := past.get(group(job, steps)):
            seconds, known = statistics.median(similar) * (sum(steps.values()) or 1), "what has run"
        else:
            seconds = OTHER + sum(measured[step] * images for step, images in steps.items())
            known = "measured steps" if steps else "an assumption"
        result.append({**job, "seconds": seconds, "known": known})
    return result


def table(jobs: list[Job]) -> str:
    """Return a table of the jobs from `timed`: a line for each stage, and the sum."""
    stages: dict[str, list[Job]] = {}
    for job in jobs:
        stages.setdefault(stage(job), []).append(job)
    lines = [f"{'stage':20}  {'jobs':>6}  {'to do':>6}  {'hours':>10}  known by", "-" * 66]
    for name, members in [*stages.items(), ("all", jobs)]:
        todo = sum(job["todo"] for job in members)
        hours = sum(job["seconds"] for job in members) / 3600
        known = ", ".join(sorted({job["known"] for job in members} - {""})) if name != "all" else ""
        lines.append(f"{name:20}  {len(members):6}  {todo:6}  {hours:10.2f}  {known}".rstrip())
    return "\n".join(lines)


def notes(jobs: list[Job], device: str, cores: int) -> Iterator[str]:
    """Yield the sentences below the table: a lower bound of the time, and the assumptions behind it."""
    place, number = ("core", cores) if device == "cpu" else ("GPU", max(1, count_gpus()))
    places = f"{number} {place}{'s'[: number != 1]}"
    time = duration(sum(job["seconds"] for job in jobs) / number)
    yield f"At least {time} with {places} (hours / {place}s), as jobs also wait for each other and for downloads."
    if any(job["known"] == "measured steps" for job in jobs):
        yield "Epochs are counted in full: jobs that end early (patience, or a threshold reached) take less."
        yield f"Steps were measured on this machine ({device}): other machines take other times."

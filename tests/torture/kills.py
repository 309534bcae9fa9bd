"""Runs that are killed at random moments, and runs that fail over finished results."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from workflows import ROOT

from . import commands
from .outcomes import HELD, LOST, SILENT, UNCLEAR, Ending, generator
from .world import DATASET, DIRECT, DIRECT_FILES, MODEL, World, difference, digests, remove, snapshot

MODES = [
    "kill -9 of snakemake",
    "kill -9 of a job",
    "kill -9 of the process group",
    "SIGTERM to snakemake",
    "SIGINT to the process group",
    "SIGTERM to a job",
    "kill -9 at a checkpoint",
    "orphan under other settings",
    "failing rerun",
]
STARTS = {"a source model": (DIRECT,), "images": (DIRECT, MODEL), "nothing": (DIRECT, MODEL, DATASET)}
SEARCH = {"alpha": 4.0}  # the changed hyper-parameter
WHOLE = 0.3  # of the runs that are killed have a Python of their own; the others are forked, which takes less time
LAST_WAIT = 60  # seconds for orphans to end
Run = subprocess.Popen | commands.Forked


def attempt(world: World, number: int, seed: int, modes: list[str] | None = None) -> tuple[str, Ending]:
    """Kill a run in one of the modes, run again until it is done, and compare all results."""
    modes = modes or MODES
    chance, mode = generator(seed, "kills", number), modes[number % len(modes)]
    if mode == "failing rerun":
        return mode, _failing(world, chance)
    if mode == "orphan under other settings":
        return mode, _orphan(world, chance)
    begin = chance.choices(list(STARTS), (0.6, 0.2, 0.2))[0]
    return f"{mode}: from {begin}", _killed(world, mode, begin, chance)


def changed(config: dict, **search: object) -> dict:
    """Return a config whose search has other settings."""
    config = json.loads(json.dumps(config))
    config["search"] |= search
    return config


def _killed(world: World, mode: str, begin: str, chance: random.Random) -> Ending:
    world.direct  # noqa: B018 (makes the run)
    with world.clone() as folder:
        expected = {name: digest for name, digest in digests(folder).items() if "results/" + name in DIRECT_FILES}
        remove(folder, *STARTS[begin])
        jobs = {"a source model": 1, "images": 2, "nothing": 3}[begin]
        begin_run = commands.start if chance.random() < WHOLE else commands.fork
        process = begin_run(commands.command(folder, *DIRECT_FILES), folder / "said.txt")
        moment = _wait(folder, process, mode, chance, jobs)
        _send(folder, process, mode)
        said = commands.finish(process, folder / "said.txt")
        after = f"after {moment:.1f} s"
        if said.status is None:
            return Ending(UNCLEAR, f"{after}: it hung")
        last = commands.run_until_done(folder, *DIRECT_FILES)
        survivors = _let_end(folder)
        if last.status != 0:
            return Ending(UNCLEAR, f"{after}: it could not be run to its end: {last.sentence}")
        missing, other = difference(expected, digests(folder))
        if missing:
            return Ending(LOST, f"{after}: {missing[0]} is missing")
        if other:
            return Ending(SILENT, f"{after}: {other[0]} is another")
        if survivors:
            return Ending(UNCLEAR, f"{after}: {survivors} processes survive for {LAST_WAIT} s")
        if not (found := commands.TRACEBACK.search(said.text)):
            return Ending(HELD, f"{after}: equal")
        begun = any(f"{ROOT}/{name}" in said.text[found.start() :] for name in ("Snakefile", "workflow/"))
        where = "in the workflow" if begun else "before the workflow began"
        return Ending(UNCLEAR, f"{after}: {said.problem} {where}")


def _wait(folder: Path, process: Run, mode: str, chance: random.Random, jobs: int) -> float:
    """Wait for the random moment; return how long that was, in seconds."""
    began = time.monotonic()
    if mode == "kill -9 at a checkpoint":
        results = folder / "results"
        _until(process, lambda: list(results.glob("checkpoints/**/*.pt*")) or list(results.rglob(".*.part")))
        time.sleep(chance.uniform(0, 0.05))
    elif "a job" in mode:
        which = chance.randrange(jobs)
        seen: set[int] = set()
        _until(process, lambda: len(seen.update(commands.job_numbers(process)) or seen) > which)
        time.sleep(chance.uniform(0, 4))
    else:
        moment = chance.uniform(0.5, 3 + 6 * jobs)
        _until(process, lambda: time.monotonic() - began > moment)
    return time.monotonic() - began


def _until(process: Run, reached: Callable[[], object]) -> None:
    while process.poll() is None and not reached():
        time.sleep(0.02)


def _send(folder: Path, process: Run, mode: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        if mode == "kill -9 of snakemake":
            os.kill(process.pid, signal.SIGKILL)
        elif mode == "SIGTERM to snakemake":
            os.kill(process.pid, signal.SIGTERM)
        elif mode == "SIGINT to the process group":  # Ctrl-C in a terminal
            os.killpg(process.pid, signal.SIGINT)
        elif mode == "kill -9 of the process group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            number = signal.SIGTERM if mode.startswith("SIGTERM") else signal.SIGKILL
            for job in commands.jobs_of(folder):
                with contextlib.suppress(psutil.Error):
                    job.send_signal(number)


def _let_end(folder: Path) -> int:
    """Wait until no process works in `folder` any more, as an orphan may still write; return how many survive."""
    end = time.monotonic() + LAST_WAIT
    while survivors := len(list(commands.processes_of(folder))):
        if time.monotonic() > end:
            return survivors
        time.sleep(0.2)
    return 0


def _orphan(world: World, chance: random.Random) -> Ending:
    """Kill Snakemake, and let its job go on only when a run with another alpha is through."""
    world.direct  # noqa: B018 (makes the run)
    expected = _reference(world)
    with world.clone() as folder:
        remove(folder, DIRECT)
        process = commands.fork(commands.command(folder, *DIRECT_FILES), folder / "said.txt")
        _until(process, lambda: commands.job_numbers(process))
        time.sleep(chance.uniform(0, 1.5))
        orphans = commands.jobs_of(folder)
        for job in orphans:  # as on a machine that is busy with something else
            with contextlib.suppress(psutil.Error):
                job.suspend()
        process.kill()
        process.wait()
        commands.write_config(folder, changed(world.config, **SEARCH))
        commands.run(folder, "--unlock")
        first = commands.run(folder, *DIRECT_FILES, "--rerun-incomplete", deadline=180)
        for job in orphans:
            with contextlib.suppress(psutil.Error):
                job.resume()
        _let_end(folder)
        last = commands.run_until_done(folder, *DIRECT_FILES)
        if last.status != 0 or first.problem:
            return Ending(UNCLEAR, first.problem or last.sentence)
        missing, other = difference(expected, digests(folder))
    if missing:
        return Ending(LOST, f"{missing[0]} is missing")
    if other:
        return Ending(SILENT, f"{other[0]} is of the old alpha, and nothing is to be done")
    return Ending(HELD, "equal")


def _reference(world: World) -> dict[str, str]:
    """Return the digests of an uninterrupted run with the changed hyper-parameter."""
    known = world.__dict__.setdefault("_changed", {})
    if not known:
        with world.clone(changed(world.config, **SEARCH)) as folder:
            said = commands.run(folder, *DIRECT_FILES)
            assert said.status == 0, said.text
            known |= {name: digest for name, digest in digests(folder).items() if "results/" + name in DIRECT_FILES}
    return known


def _failing(world: World, chance: random.Random) -> Ending:
    """Run again with settings that fail; what was finished must be there byte for byte."""
    world.direct  # noqa: B018 (makes the run)
    settings = chance.choice([{"alpha": 1e6}, {"lr_mask": 1e30}, {"alpha": 1e6, "lr_mask": 10.0}])
    with world.clone(changed(world.config, **settings)) as folder:
        before = snapshot(folder)
        said = commands.run(folder, *DIRECT_FILES, "--rerun-incomplete")
        missing, other = difference(before, snapshot(folder))
    if said.status == 0:
        return Ending(HELD, f"{settings}: it did not fail")
    if missing or other:
        return Ending(LOST, f"{settings}: {', '.join(missing + other)}")
    return Ending(UNCLEAR, said.problem) if said.problem else Ending(HELD, f"{settings}: {said.sentence}")

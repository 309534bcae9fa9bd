"""Items `start` and `targets`: whole `reengineer` jobs, each a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seam.bench.network import SIZE
from seam.bench.timing import Options, Row, ratios, row
from seam.data.kinds.registry import prepare_dataset
from seam.data.storage import open_dataset
from seam.errors import UserError
from seam.models.architectures import build_model
from seam.models.weights import Source, save_source

ROOT = Path(__file__).parents[2]  # the folder that holds the package
# What the workflow's script of `reengineer` does, after Snakemake's part of it.
JOB = """
import json, sys
import snakemake.script
from seam.memory import use_threads
from seam.reuse.direct import reengineer_all
use_threads(1)
with open(sys.argv[1], encoding="utf-8") as file:
    reengineer_all(json.load(file), sys.argv[2])
"""


def start(options: Options) -> Iterator[Row]:
    """Measure the seconds from the start of a `reengineer` job's process to its first step."""
    architecture = options.architectures[0]
    with tempfile.TemporaryDirectory() as folder:
        (search,) = search_arguments(Path(folder), architecture, [3])
        arguments = Path(folder) / "arguments.json"
        arguments.write_text(json.dumps(search | {"device": options.requested_device}), encoding="utf-8")
        starts = [time_start(arguments) for _ in range(options.job_repeats + 1)][1:]
    parts = {name: statistics.median(spent[name] for spent in starts) for name in starts[0]}
    seconds = [sum(spent.values()) - spent["import torch"] - spent["first step"] for spent in starts]
    quantity = "seconds from the start of a job to its first step, less those of importing torch"
    yield row("start", quantity, f"{architecture}, digits", seconds, 1.0)
    table = [{"part": name, "s": value} for name, value in parts.items()]
    yield {"item": "start", "title": "Start of a job, its parts in order (medians)", "table": table}


def time_start(arguments: Path) -> dict[str, float]:
    """Return {part: seconds} of the start of one job with the arguments in this file."""
    return json.loads(run_python("-m", "seam.bench.job_start", repr(time.time()), arguments).splitlines()[-1])


def run_python(*arguments: Any) -> str:
    """Return what a new Python prints, with the package on its path. Raises UserError if it fails."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"The job that bench started fails ({done.stderr.strip().rpartition(chr(10))[2]}).")
    return done.stdout


def targets(options: Options, count: int = 10) -> Iterator[Row]:
    """Compare a job that searches a stack of target problems with a job for each of them, on a CUDA GPU."""
    if options.device.type != "cuda":
        print("  left out: only a CUDA GPU searches stacks", file=sys.stderr)
        return
    architecture = options.architectures[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        searches = search_arguments(folder, architecture, range(count), "noise")
        for search in searches:  # with fewer epochs the start of a job would be most of it
            search["settings"] = {"schedule": "fast", "epochs": 12, "lr_mask": 0.1, "alpha": 3.0}
            search["allow_one_answer"] = True  # noise has nothing to tell apart
        jobs = {"stack": [searches], "each": [[search] for search in searches]}
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(options.job_repeats):
            for name in jobs:
                begin = time.perf_counter()
                for job in jobs[name]:
                    run_job(job, folder, options.requested_device)
                times[name].append(time.perf_counter() - begin)
                shutil.rmtree(folder / "direct")
    quantity = f"seconds of a job that searches a stack of {count} problems, 12 epochs / of a job for each"
    hourly = {f"an hour, {name}": 3600 * count / statistics.median(values) for name, values in times.items()}
    yield row("targets", quantity, f"{architecture}, noise", ratios(times, "stack", "each"), 1.0, searches=hourly)


def run_job(searches: list[dict[str, Any]], folder: Path, device: str) -> None:
    """Run a `reengineer` job, as the workflow's script does; `folder` takes the file of its arguments."""
    arguments = folder / "searches.json"
    arguments.write_text(json.dumps(searches), encoding="utf-8")
    run_python("-c", JOB, arguments, device)


def search_arguments(
    folder: Path, architecture: str, targets: Iterable[int], kind: str = "digits"
) -> list[dict[str, Any]]:
    """Return the arguments of `seam.reuse.direct.reengineer`, without the device, for each binary problem.

    kind: "digits", or "noise", where all problems have the same number of images, as a stack needs it. The data set
    and a source model that is not trained are written into `folder`.
    """
    entry: dict[str, Any] = {"kind": "digits", "size": SIZE}
    if kind == "noise":
        entry = {"kind": "imagefolder", "size": SIZE, "root": str(write_noise(folder / "images"))}
    prepared = folder / "images-prepared"
    prepare_dataset(entry, prepared)
    images = open_dataset(prepared)
    torch.manual_seed(0)
    module = build_model(architecture, len(images.classes))
    source = Source(module, images.classes, (images.mean, images.std), architecture)
    save_source(folder / "source.safetensors", source)
    return [
        {
            "folder": str(folder / "direct" / str(target)), "model_folder": str(folder),
            "dataset_folder": str(prepared), "checkpoint": str(folder / f"{target}.pt"),
            "model": "bench", "dataset": kind, "problem": "binary", "target": str(target), "members": [str(target)],
            "settings": {}, "seed": 0, "architecture": architecture,
        }
        for target in targets
    ]  # fmt: skip


def write_noise(folder: Path, classes: int = 10, train: int = 500, test: int = 50) -> Path:
    """Write random images of classes 0, 1, ... and return the folder; a problem is as large as one of CIFAR-100."""
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in range(classes):
            (folder / split / str(name)).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / str(name) / f"{number}.png")
    return folder

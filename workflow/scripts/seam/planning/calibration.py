"""How long a step of each kind takes here: a few of them, by the library's own procedures, on random images."""

import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
import torch

from seam.data import batches
from seam.data.decoding import stored_size
from seam.data.storage import Split
from seam.device import select_device
from seam.errors import UserError, one_line
from seam.evaluation import predict
from seam.log import log
from seam.models.architectures import build_model
from seam.models.surgery import with_head
from seam.precision import exact
from seam.robustness.attack import perturb
from seam.search.search import search
from seam.settings import AttackSettings, SearchSettings, TrainingSettings
from seam.training.supervised import train

ENOUGH = 2.0  # seconds for which a step is repeated
LEAST = 3  # repeats, of which the first does not count
LONGEST = 4.0  # seconds that a step may take: one that would take more is measured with fewer images
MOST = 16  # processes that measure at once, whatever the machine has
RATE = 1e-9  # learning rates that leave a model as it is
PASSES = {"train": 3, "masks": 3, "head": 1, "outputs": 1, "attack": 3}  # roughly, for the choice of a batch size


def measure(steps, device, cores):
    """{step: seconds an image}, for each `estimate.Step`.

    On a CPU as many are measured at once as a run has jobs at once, since those slow each other down: `cores` divided
    by the threads of a step. On a GPU one after the other.
    """
    one, found = partial(seconds, device=device), {}
    together = select_device(device).type == "cpu" and sys.platform == "linux"  # elsewhere there is no fork to rely on
    for threads in sorted({step.threads for step in steps}):
        some = [step for step in steps if step.threads == threads]
        workers = max(1, min(MOST, min(cores, os.cpu_count() or 1) // threads))
        if together and workers > 1:
            some *= -(-workers // len(some))  # no processor is idle
            times = _parallel(one, some, workers)
        else:
            times = list(map(one, some))
        for step in some:
            same = [value for other, value in zip(some, times, strict=True) if other == step]
            found[step] = statistics.median(same)
            log.info("%s: %.3g s an image", step, found[step])
    return found


def _parallel(function, values, workers):
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            return list(pool.map(function, values))
    except BrokenProcessPool as error:
        raise UserError(
            "A process that measured steps was ended, most likely for want of memory: give fewer --cores."
        ) from error


def start():
    """Seconds until a new Python has loaded what a job that searches needs."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import seam.reengineer"], cwd=Path(__file__).parents[1], check=True)
    return time.perf_counter() - begin


def seconds(step, device):
    """Seconds an image of this step. Raises UserError where the model cannot be built or run."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        torch.set_num_threads(step.threads)
        device = select_device(device)
        torch.manual_seed(0)
        module = build_model(step.architecture, step.classes).to(device, memory_format=torch.channels_last)
        size = _batch_size(module, step, device)
        clock = Clock(_images(step, size, device), device)
        RUN[step.kind](module, clock, step)
        return statistics.median(clock.times[1:]) / size
    except UserError:
        raise
    except Exception as error:  # whatever a user's own architecture raises
        said = one_line(error)
        raise UserError(
            f"{step.architecture} does not run on {step.size} px images in batches of {step.batch_size} ({said}): "
            "correct it, its data set's size or the batch size."
        ) from error
    finally:
        log.setLevel(level)


class Clock:
    """Batches that go on until `ENOUGH`, and how long a step took with each of them: `times`, of the last pass."""

    generator = None

    def __init__(self, batches, device):
        self.batches, self.device, self.times = batches, device, []

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.times, begin = [], time.perf_counter()
        while len(self.times) < LEAST or sum(self.times) < ENOUGH:
            for batch in self.batches:
                yield batch
                _wait(self.device)
                begin, before = time.perf_counter(), begin
                self.times.append(begin - before)


def _wait(device):
    """Until a GPU has done what it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def _images(step, size, device):
    """Two batches of `size` random images, prepared as a job's."""
    side, random = stored_size(step.size), np.random.default_rng(0)
    pixels = random.integers(0, 256, (2 * size, side, side, 3), np.uint8)
    split = Split(np.zeros(2 * size, np.int64), (step.size, step.size), pixels)
    return batches.batches(
        split, np.arange(2 * size), split.labels, size, normalization=([0.5] * 3, [0.25] * 3), device=device,
        augmentation=step.augmentation, generator=torch.Generator().manual_seed(0), shuffle=True,
    )  # fmt: skip


def _batch_size(module, step, device):
    """The step's own, or less, so that it takes `LONGEST` at most by the time of a pass of four images."""
    four = torch.zeros(4, 3, step.size, step.size, device=device).to(memory_format=torch.channels_last)
    module.eval()
    with torch.inference_mode():
        for _ in range(2):
            begin = time.perf_counter()
            module(four)
            _wait(device)
            one = (time.perf_counter() - begin) / 4
    return max(2, min(step.batch_size, int(LONGEST / (PASSES[step.kind] * one))))


def _train(module, clock, step):
    train(module, clock, TrainingSettings(epochs=1, batch_size=step.batch_size, lr=RATE))


def _search(module, clock, step):
    """Its last epoch trains the head alone, or the masks, too."""
    epochs = 1 if step.kind == "head" else 2
    settings = SearchSettings(
        epochs=epochs, batch_size=step.batch_size, lr_mask=RATE, lr_head=RATE, alpha=1.0, head_every=epochs
    )
    model = with_head(module, step.classes, 2).to(clock.device)
    chosen = [(images[:2], labels[:2]) for images, labels in clock.batches][:1]
    search(model, clock, chosen, 0.0, settings)


def _outputs(module, clock, step):
    predict(module, clock)


@exact()
def _attack(module, clock, step):
    """A step of the attack for each batch."""
    module.eval().requires_grad_(False)
    for images, _ in clock:
        perturb(module, images, AttackSettings(steps=1))


RUN = {"train": _train, "masks": _search, "head": _search, "outputs": _outputs, "attack": _attack}

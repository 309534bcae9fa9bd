"""Items `input` and `epoch`: batches, evaluation and checkpoints beside the steps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from seam.bench.network import BATCH, Bench
from seam.bench.timing import Options, Row, in_turn, medians, ratios, row, subject_name, threads
from seam.evaluation import predict
from seam.masks.bits import pack_bits
from seam.models.surgery import copy_state
from seam.training.adam import Adam
from seam.training.checkpoint import Checkpoint
from seam.training.run import TrainingRun

TRAIN, HOLDOUT = 8000, 2000  # images of an epoch: a binary problem of CIFAR-10, a fifth of it held out


def inputs(options: Options) -> Iterator[Row]:
    """Compare the preparation of a batch with a step on it."""
    for architecture in options.architectures:
        with threads(1):
            bench = Bench(architecture, options.device)
            loader = bench.training_loader(16 * BATCH)

            def prepare_all(loader=loader):
                for _ in loader:
                    pass

            times = in_turn({"batches": prepare_all, "step": bench.step}, options.device, options.repeats)
        times["batches"] = [value / len(loader) for value in times["batches"]]
        subject, share = subject_name(architecture, 1, options.device), ratios(times, "batches", "step")
        yield row("input", "making a batch (crop, flip, normalise) / a step", subject, share, 0.03, **medians(times))


def epoch(options: Options) -> Iterator[Row]:
    """Measure the share of an epoch for evaluation and checkpoint; on a CPU extrapolated from two batches of each."""
    images = (2 * BATCH, 2 * BATCH) if options.device.type == "cpu" else (TRAIN, HOLDOUT)
    for architecture in options.architectures:
        with threads(1), tempfile.TemporaryDirectory() as folder:
            bench = Bench(architecture, options.device)
            train, select = bench.training_loader(images[0]), bench.loader(images[1])
            head_only = Adam([(bench.model.head.parameters(), 0.1)])
            parts = {"masks": bench.masks, "head": bench.model.head, "head_only": head_only, "both": bench.optimizer}
            with TrainingRun(train, parts, Checkpoint(Path(folder) / "checkpoint.pt", {}, __file__)) as run:

                def training(bench=bench, run=run):
                    run.batch = 0  # the warm-up calls it several times before an epoch's end
                    run.train_epoch(bench.step_on)

                def evaluation(bench=bench, run=run, select=select):
                    predict(bench.model, run.interruptible(select))

                def checkpoint(bench=bench, run=run):
                    bench.masks.retention(run.epoch)
                    best = {"bits": pack_bits(bench.masks.bits()), "head": copy_state(bench.model.head)}
                    run.history.clear()
                    run.end_epoch({}, best, save=True)  # as after an epoch of usual length

                functions = {"training": training, "evaluation": evaluation, "checkpoint": checkpoint}
                times = in_turn(functions, options.device, options.repeats)
        scale = {"training": TRAIN / images[0], "evaluation": HOLDOUT / images[1], "checkpoint": 1}
        times = {name: [scale[name] * value for value in values] for name, values in times.items()}
        for every, suffix in ((1, ""), (2, ", with evaluate_every: 2")):
            share = [
                (evaluated / every + saved) / (trained + evaluated / every + saved)
                for trained, evaluated, saved in zip(*times.values(), strict=True)
            ]
            quantity = f"evaluation and checkpoint / an epoch of {TRAIN} images and {HOLDOUT} held out{suffix}"
            yield row("epoch", quantity, subject_name(architecture, 1, options.device), share, 0.05, **medians(times))

"""A training loop that can be put down and taken up again, and ends as if it had never been interrupted."""

import hashlib
import itertools
import math
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from seam.files import UserError, whole
from seam.progress import log

EVERY = 300  # seconds between checkpoints within an epoch
RARELY = 100  # a checkpoint at an epoch's end is written if this times as long as it takes has gone by since the last
STOPPED = 75  # the exit status of a job that was told to stop and can go on: EX_TEMPFAIL of sysexits.h


class Checkpoint:
    """One file with the state of a job, and what the state belongs to.

    path: the file; about: {name: value} of all that the job depends on, as JSON could hold it. A file of another
    job, of other code or another torch is never continued but set aside.
    """

    def __init__(self, path, about):
        self.path, self.about = Path(path), {**about, "code": code(), "torch": str(torch.__version__)}

    def read(self):
        """The state that was written last, None if there is none for this job."""
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            about, state = content["about"], content["state"]
        except FileNotFoundError:
            return None
        except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError):
            return self._set_aside("it cannot be read")
        other = sorted(name for name in about.keys() | self.about if about.get(name) != self.about.get(name))
        if other:
            return self._set_aside(f"it belongs to a job with other {', '.join(other)}")
        return state

    def write(self, state):
        with whole(self.path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save({"about": self.about, "state": state}, file)
            except RuntimeError as error:  # of torch's writer, where the file's own error came before: a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def remove(self):
        self.path.unlink(missing_ok=True)

    def _set_aside(self, reason):
        aside = self.path.with_name(f"{self.path.name}.aside")
        os.replace(self.path, aside)
        log.warning("the checkpoint %s is not continued, as %s: it is kept as %s", self.path, reason, aside.name)


def code():
    """A digest of the library's modules that this process has loaded: what a job's result can depend on.

    With those by which a job searches for others too, loaded or not: a search goes on in a job of either kind.
    """
    loaded = (
        module.__file__
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "seam" and getattr(module, "__file__", None)
    )
    files = sorted({*loaded, *(str(Path(__file__).with_name(f"{name}.py")) for name in ("together", "vectorised"))})
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


class Run:
    """The state of a training loop: what it trains, and where it stands.

    batches: what an epoch goes through, as `seam.data.batches` gives it (a list will do where nothing is kept).
    parts: {name: object with `state_dict` and `load_state_dict`}: models, masks, optimizers, schedules.
    checkpoint: a Checkpoint, or None to keep nothing.
    advice: the end of the sentence about a loss that is not finite.

    >>> with Run(batches, {"model": model, "sgd": sgd}, checkpoint) as run:      # doctest: +SKIP
    ...     while run.epoch <= epochs:
    ...         images, right, loss = run.one_epoch(step)
    ...         accuracy = evaluate.accuracy(*evaluate.outputs(model, run.watched(test)))
    ...         run.end_epoch({"loss": loss / images, "accuracy": accuracy})

    It begins where the checkpoint stands. A checkpoint is written after an epoch, unless the
    last is so young that writing would take more than a hundredth of the time, within long ones every five minutes, and
    on SIGTERM or SIGINT, which end the process with status 75.
    """

    def __init__(self, batches, parts, checkpoint=None, advice="lower the learning rate"):
        self.batches, self.parts, self.checkpoint, self.advice = batches, parts, checkpoint, advice
        self.generator = getattr(batches, "generator", None)
        self.epoch, self.batch, self.totals, self.drawn = 1, 0, torch.zeros(3), None
        self.history, self.best, self.selected_epoch, self.extra = [], None, 0, {}
        self.seconds = 0.0  # of this epoch, before this process took it up
        self.signal, self.handlers = None, {}
        self.writing = 0.0  # seconds that the last checkpoint took

    def __enter__(self):
        state = self.checkpoint and self.checkpoint.read()
        if state:
            self._restore(state)
            log.info("goes on from the checkpoint %s: epoch %d, batch %d", self.checkpoint.path, self.epoch, self.batch)
        if self.checkpoint and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.handlers[number] = signal.signal(number, self._note)
        self.start = self.written = time.perf_counter()
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def one_epoch(self, step):
        """(images, right, loss): sums over the epoch's images; read from the device once.

        step(images, labels) trains on a batch and gives its logits and its mean loss. Raises UserError where the
        loss is not finite.
        """
        for images, labels in self.rest_of_epoch():
            found = counted(*step(images, labels), labels)
            self.totals = self.totals.to(found.device) + found
            self.batch += 1
            self.check(due=self.is_due())
        return self.sums()

    def rest_of_epoch(self):
        """The epoch's batches, from where it stands."""
        if self.batch == 0:
            self.totals, self.drawn = torch.zeros(3), self.generator and self.generator.get_state()
        elif self.generator is not None:
            self.generator.set_state(self.drawn)
        if self.batch and hasattr(self.batches, "starting_at"):
            return self.batches.starting_at(self.batch)
        return itertools.islice(iter(self.batches), self.batch, None)

    def sums(self):
        """(images, right, loss) of the epoch so far. Raises UserError where the loss is not finite."""
        self._require_finite()
        return self.totals.tolist()

    def watched(self, batches):
        """The same batches; a signal to stop is answered between them."""
        for batch in batches:
            self.check()
            yield batch

    def end_epoch(self, row, best=None, save=None, **extra):
        """Note the epoch's `row` of the history. `best`: what is to be kept of it if it is the best so far.

        save: whether to write a checkpoint; if that is worth its time, where nothing is said. Who says it answers
            signals, too: of runs that go on together none may stop alone.
        """
        self.history.append(row)
        if best is not None:
            self.best, self.selected_epoch = best, self.epoch
        self.extra |= extra
        self.epoch, self.batch, self.totals, self.seconds = self.epoch + 1, 0, torch.zeros(3), 0.0
        self.start = time.perf_counter()
        if self.is_worth_saving() if save is None else save:
            self.save()
        if save is None:
            self.check()

    def epoch_seconds(self):
        return self.seconds + time.perf_counter() - self.start

    def _require_finite(self):
        loss = self.totals[2].item()
        if not math.isfinite(loss):
            kept = ""
            if self.checkpoint and self.checkpoint.path.exists():
                kept = f" (the last good state is in {self.checkpoint.path})"
            raise UserError(f"The loss became {loss} in epoch {self.epoch}: {self.advice}{kept}.")

    def _note(self, number, _):
        self.signal = number

    def is_due(self):
        """Whether it is time for a checkpoint within the epoch."""
        return self.checkpoint is not None and time.perf_counter() - self.written > EVERY

    def is_worth_saving(self, runs=1):
        """Whether to write a checkpoint at an epoch's end, of each of so many `runs` that go on together."""
        return time.perf_counter() - self.written >= RARELY * runs * self.writing

    def check(self, due=False):
        """Answer a signal to stop; write a checkpoint if it is `due`."""
        if self.signal is not None:
            if self.checkpoint:
                self.save()
            name = signal.Signals(self.signal).name
            log.info("stopped by %s in epoch %d, batch %d: run again to go on", name, self.epoch, self.batch)
            print(f"\nStopped by {name} in epoch {self.epoch}: run again to go on from there.\n", file=sys.stderr)
            raise SystemExit(STOPPED)
        if due:
            self.save()

    def save(self):
        """Write the checkpoint."""
        if not self.checkpoint:
            return
        if self.batch:
            self._require_finite()
        begun = time.perf_counter()
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # of this job's GPU, if it has one
        self.checkpoint.write(
            {
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
                "generator": self.generator and self.generator.get_state(),
                "place": {name: getattr(self, name) for name in PLACE} | {"seconds": self.epoch_seconds()},
            }
        )
        self.written = time.perf_counter()
        self.writing = self.written - begun

    def _restore(self, state):
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["random"]["cpu"])
        if torch.cuda.is_initialized() and state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"])
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        for name, value in state["place"].items():
            setattr(self, name, value)


def counted(logits, loss, labels):
    """(images, right, loss) [3]: sums over the images of a batch.

    logits: [B, n]; loss: [], the mean; labels: [B]. Of several searches: [B, T, n], [T], [B, T] and [T, 3].
    """
    images, right = torch.full_like(loss, len(labels)), (logits.detach().argmax(-1) == labels).sum(0)
    return torch.stack([images, right, loss.detach() * len(labels)], -1)


PLACE = ("epoch", "batch", "totals", "drawn", "history", "best", "selected_epoch", "extra")

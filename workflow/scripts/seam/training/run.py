"""A training loop that can be interrupted and resumed, and ends as if it had never been interrupted."""

from __future__ import annotations

import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NoReturn, Protocol, Self, TypeVar

import torch

from seam.errors import UserError, one_line
from seam.evaluation import require_labels, require_pair
from seam.log import log
from seam.progress import progress
from seam.training.checkpoint import Checkpoint

SAVE_SECONDS = 300  # between two checkpoints within an epoch
SAVE_RATIO = 100  # an epoch ends with a checkpoint if the last one is this many times as old as it takes to write one
EXIT_STOPPED = 75  # the exit status of a job that a signal stopped and that can be resumed: EX_TEMPFAIL of sysexits.h
STATE = ("epoch", "batch", "totals", "generator_state", "history", "selected", "selected_epoch")  # in checkpoints

Batch = tuple[torch.Tensor, torch.Tensor]  # images [B, 3, H, W] and labels [B]
Step = Callable[[torch.Tensor, torch.Tensor], Batch]  # trains on a batch -> its logits [B, n] and its mean loss []
Item = TypeVar("Item")


class Batches(Sized, Iterable[Batch], Protocol):
    """The batches of an epoch, anew at each iteration, and their number."""


class Stateful(Protocol):
    """A model, an optimizer, masks: anything whose state a checkpoint holds."""

    def state_dict(self) -> Any:
        """Return the state, of values that `torch.save` can store."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Continue from a state."""
        ...


class TrainingRun:
    """The state of a training loop: what it trains, how far it is, and what it has recorded.

    >>> with TrainingRun(batches, {"model": model, "sgd": sgd}, checkpoint) as run:      # doctest: +SKIP
    ...     while run.epoch <= epochs:
    ...         images, right, loss = run.train_epoch(step)
    ...         value = accuracy(*predict(model, run.interruptible(test)))
    ...         run.end_epoch({"loss": loss / images, "accuracy": value})

    It begins where the checkpoint stands. It writes a checkpoint after an epoch, if that takes at most a hundredth of
    the time since the last one; within long epochs every five minutes; and on SIGTERM or SIGINT, which end the process
    with status 75.

    epoch: the number of the current epoch, from 1. history: a row for each epoch that has ended. selected: what the
    loop keeps of its epochs, and selected_epoch the last epoch that changed it (0: none did).
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        parts: Mapping[str, Stateful],
        checkpoint: Checkpoint | None = None,
        advice: str = "lower the learning rate",
    ) -> None:
        """batches: what an epoch trains on, as `seam.data.batches` gives it; a list will do without a checkpoint.

        parts: everything that the loop changes, by name. advice: what the user can do if the loss is not finite.
        """
        self.batches, self.parts, self.checkpoint, self.advice = batches, dict(parts), checkpoint, advice
        self.name: str | None = None  # of one of several runs of a job, on the terminal
        self.most_epochs: int | None = None  # for the time that is left, on the terminal
        self.facts: dict[str, Any] = {}  # of the run, that the terminal shows beside each epoch's row
        self.trained = 0  # epochs in this process
        self.generator: torch.Generator | None = getattr(batches, "generator", None)
        self.epoch, self.batch, self.totals = 1, 0, torch.zeros(3)
        # At the start of the epoch, that of `generator`, or torch's own if the batches may draw from that.
        self.generator_state: torch.Tensor | None = None
        self.history: list[dict[str, Any]] = []
        self.selected: Any = None
        self.selected_epoch = 0
        self.earlier_seconds = 0.0  # of this epoch, in processes before this one
        self.signal: int | None = None
        self.handlers: dict[int, Any] = {}
        self.save_seconds = 0.0  # that the last checkpoint took

    def __enter__(self) -> Self:
        state = self.checkpoint.read() if self.checkpoint else None
        if self.checkpoint and state:
            self._restore(state)
            log.info("resumes from the checkpoint %s: epoch %d, batch %d", self.checkpoint.path, self.epoch, self.batch)
        if self.checkpoint and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.handlers[number] = signal.signal(number, self._note_signal)
        self.start = self.saved = self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def train_epoch(self, step: Step) -> tuple[float, float, float]:
        """Train the rest of the epoch; return sums over all its images: their number, right answers, loss.

        The sums are read from the device once. Raises UserError if there is no batch, if a batch is no pair of tensors,
        if labels on the CPU are not the numbers of outputs, or if the loss is not finite.
        """
        for images, labels in map(require_pair, self.remaining_batches()):
            try:
                logits, loss = step(images, labels)
            except (IndexError, RuntimeError, ValueError) as error:  # as torch's losses raise them
                require_training_labels(images, labels, error)
                raise
            sums = batch_sums(logits, loss, labels)
            self.totals = self.totals.to(sums.device) + sums
            self.batch += 1
            self.exit_if_signalled()
            if self.is_save_due():
                self.save()
        return self.epoch_sums()

    def remaining_batches(self) -> Iterator[Batch]:
        """Return the batches of the epoch that are still to be trained on."""
        if self.batch == 0:
            self.totals = torch.zeros(3)
            self.generator_state = torch.get_rng_state() if self.generator is None else self.generator.get_state()
            return iter(self.batches)
        if self.generator is not None and self.generator_state is not None:
            self.generator.set_state(self.generator_state)
        now = torch.get_rng_state()
        if self.generator is None and self.generator_state is not None:  # the batches may draw from torch's own numbers
            torch.set_rng_state(self.generator_state)
        starting_at = getattr(self.batches, "starting_at", None)
        batches = iter(self.batches if starting_at is None else starting_at(self.batch))
        for _ in itertools.islice(batches, self.batch if starting_at is None else 0):
            pass
        begin = list(itertools.islice(batches, 1))  # iterators draw when the first batch is taken
        torch.set_rng_state(now)
        return itertools.chain(begin, batches)

    def epoch_sums(self) -> tuple[float, float, float]:
        """Return sums over the images of the epoch so far: their number, right answers, loss.

        Raises UserError if the loss is not finite.
        """
        self._require_finite_loss()
        images, right, loss = self.totals.tolist()
        if not images:
            raise UserError("There are no images to train on: the batches of an epoch are empty.")
        return images, right, loss

    def interruptible(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items; before each, stop the process if a signal has asked for it."""
        for item in items:
            self.exit_if_signalled()
            yield item

    def end_epoch(self, row: dict[str, Any], selected: Any = None, save: bool | None = None) -> None:
        """Record the epoch's `row` of the history, and go to the next epoch.

        selected: replaces `self.selected`, unless it is None. save: whether to write a checkpoint; by default, if it
        is worth its time.
        """
        self.history.append(row)
        self.trained += 1
        left = None
        if self.most_epochs is not None:
            left = (time.perf_counter() - self.began) / self.trained * (self.most_epochs - self.epoch)
        progress.end_epoch(self.name, self.epoch, self.most_epochs, {**self.facts, **row}, left)
        if selected is not None:
            self.selected, self.selected_epoch = selected, self.epoch
        self.epoch, self.batch, self.totals, self.earlier_seconds = self.epoch + 1, 0, torch.zeros(3), 0.0
        self.start = time.perf_counter()
        if self.is_save_worthwhile() if save is None else save:
            self.save()
        if save is None:
            self.exit_if_signalled()

    def epoch_seconds(self) -> float:
        """Return the seconds that the epoch has taken so far, in all processes."""
        return self.earlier_seconds + time.perf_counter() - self.start

    def _require_finite_loss(self) -> None:
        if not self.is_finite:
            place = ""
            if self.checkpoint and self.checkpoint.path.exists():
                place = f" (the last good state is in {self.checkpoint.path})"
            raise UserError(f"The loss became {self.totals[2].item()} in epoch {self.epoch}: {self.advice}{place}.")

    def _note_signal(self, number: int, _: object) -> None:
        self.signal = number

    def is_save_due(self) -> bool:
        """Return whether it is time for a checkpoint within the epoch."""
        return self.checkpoint is not None and time.perf_counter() - self.saved > SAVE_SECONDS

    def is_save_worthwhile(self, runs: int = 1) -> bool:
        """Return whether the end of an epoch is worth a checkpoint of each of `runs` runs that train side by side."""
        return time.perf_counter() - self.saved >= SAVE_RATIO * runs * self.save_seconds

    def exit_if_signalled(self) -> None:
        """If a signal has asked for it, write a checkpoint and end the process with status 75."""
        if self.signal is not None:
            self.save()
            self.end_process(self.signal)

    def end_process(self, number: int) -> NoReturn:
        """End the process with status 75, because it received the signal `number`."""
        name = signal.Signals(number).name
        log.info("stopped by %s in epoch %d, batch %d: run again to resume", name, self.epoch, self.batch)
        print(f"\nStopped by {name} in epoch {self.epoch}: run again to resume from there.\n", file=sys.stderr)
        raise SystemExit(EXIT_STOPPED)

    @property
    def is_finite(self) -> bool:
        """Whether the loss of the epoch so far is a finite number."""
        return math.isfinite(float(self.totals[2]))

    def save(self) -> None:
        """Write the checkpoint, if there is one. Raises UserError if the loss is not finite."""
        if not self.checkpoint:
            return
        if self.batch:
            self._require_finite_loss()
        begin = time.perf_counter()
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # of this job's GPU, if it has one
        self.checkpoint.write(
            {
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
                "generator": None if self.generator is None else self.generator.get_state(),
                "run": {name: getattr(self, name) for name in STATE} | {"earlier_seconds": self.epoch_seconds()},
            }
        )
        self.saved = time.perf_counter()
        self.save_seconds = self.saved - begin

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
            torch.set_rng_state(state["random"]["cpu"])
            if torch.cuda.is_initialized() and state["random"]["cuda"] is not None:
                torch.cuda.set_rng_state(state["random"]["cuda"])
            if self.generator is not None:
                self.generator.set_state(state["generator"])
            for name in (*STATE, "earlier_seconds"):
                setattr(self, name, state["run"][name])
        except torch.OutOfMemoryError:  # a RuntimeError that has nothing to do with the file
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            assert self.checkpoint
            raise UserError(
                f"{self.checkpoint.path} does not fit this job ({one_line(error)}): delete it, and the job starts anew."
            ) from error


def require_training_labels(images: torch.Tensor, labels: torch.Tensor, error: Exception) -> None:
    """Raise UserError if the labels [B] of `images`, on the CPU, explain why a training step raised `error`.

    Labels are read after a failure only, because most batches are right.
    """
    if labels.device.type != "cpu":  # after a failed kernel nothing can be read from a GPU
        return
    require_labels(labels, [len(images)])
    if labels.dtype not in (torch.int64, torch.uint8):
        raise UserError(f"The training labels are {labels.dtype}: convert them with .long().") from error
    if isinstance(error, IndexError):
        raise UserError(
            f"The training labels go from {labels.min()} to {labels.max()}, and the model has fewer outputs: labels "
            "are the numbers of outputs, from 0."
        ) from error


def batch_sums(logits: torch.Tensor, loss: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return sums [3] over the images of a batch: their number, right answers, loss.

    logits: [B, n]. loss: the mean []. labels: [B]. Several searches: [B, T, n], [T] and [B, T] give [T, 3].
    """
    images, right = torch.full_like(loss, len(labels)), (logits.detach().argmax(-1) == labels).sum(0)
    return torch.stack([images, right, loss.detach() * len(labels)], -1)

"""The rules of a mask search (SeaM, section III): phases, stop rule, history row, selection and result.

The drivers `plain`, `stacked` and `by_threshold` train epochs and leave every decision to a `MaskSearch`. To control a
search otherwise, write a subclass, as `seam.search.budget` does: `begin_epoch` is called before each epoch, `end_epoch`
after it, and a constraint after each step that trains masks (see `seam.search.training`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from seam import evaluation
from seam.evaluation import predict
from seam.log import log
from seam.masks.bits import pack_bits, unpack_bits
from seam.models.surgery import copy_state
from seam.search.training import MaskTraining
from seam.settings import SearchSettings
from seam.training.run import Batch, TrainingRun

ADVICE = "lower lr_mask, lr_head or alpha"  # if the loss is not finite
SELECTED_ON = {"holdout": "held-out", "last": "training", "test": "test"}  # images, by `selection` of the settings

Tensors = dict[str, torch.Tensor]
Measure = Callable[[torch.Tensor, torch.Tensor], float]  # logits [N, K], labels [N] -> an accuracy


@dataclass
class SearchResult:
    """The masks and the head of the selected epoch, and the history: a dictionary for each epoch.

    budget: whether a budget was met, as metrics.json has it; None without a budget. weights: the state of the network,
    if a search of channels has trained it. shifts: {layer: what was added to its biases}, if they were trained.
    """

    bits: Tensors
    head: Tensors
    history: list[dict[str, Any]]
    selected_epoch: int
    budget: dict[str, Any] | None = None
    weights: Tensors | None = None
    shifts: Tensors | None = None


def is_evaluated(epoch: int, settings: SearchSettings) -> bool:
    """Return whether an epoch is evaluated, so that it can be selected: each `evaluate_every`-th, and the last.

    With `selection: last`, only the last one is.
    """
    if settings.selection == "last":
        return epoch == settings.epochs
    return epoch % settings.evaluate_every == 0 or epoch == settings.epochs


class MaskSearch:
    """One search of a target problem: what its epochs train, when it ends, and which epoch is its result.

    By default, of every `head_every` epochs the first trains the head alone, and the others train masks and head. With
    the schedule `fast` only the very first epoch trains the head alone, and the search runs all its epochs.
    """

    def __init__(
        self,
        run: TrainingRun,
        settings: SearchSettings,
        source_accuracy: float,
        name: str | None = None,
        measure: Measure = evaluation.accuracy,
    ) -> None:
        """source_accuracy: that of the source model on the images of the selection. name: for the log, if needed.

        measure: the accuracy by which epochs are compared, plain or balanced.
        """
        self.run, self.settings, self.name = run, settings, name
        self.source_accuracy = float(source_accuracy)  # of NumPy, say, whose numbers a checkpoint cannot hold
        self.measure = lambda logits, labels: float(measure(logits, labels))
        run.most_epochs, run.name = settings.epochs, name
        run.facts = {"source_accuracy": source_accuracy, "images": SELECTED_ON[settings.selection]}
        self.penalty_share: Callable[[], float] | None = None  # what alpha is multiplied with; None: the retention

    def search(self, training: MaskTraining, selection: Iterable[Batch]) -> None:
        """Train until the search ends; `selection` are the batches on which epochs are compared."""
        while self.has_next_epoch():
            phase = self.begin_epoch()
            sums = self.run.train_epoch(training.begin_epoch(phase))
            retention = training.masks.retention(self.run.epoch)
            accuracy = None
            if self.is_evaluated():
                accuracy = self.measure(*predict(training.model, self.run.interruptible(selection)))
            self.end_epoch(phase, sums, retention, accuracy, training.masks.bits, partial(copy_state, training.head))

    def has_next_epoch(self) -> bool:
        """Return whether the search has another epoch; log why, if it ends early."""
        run, settings = self.run, self.settings
        if run.epoch > settings.epochs:
            return False
        patience = max(settings.patience, settings.evaluate_every)  # one evaluation, at least, finds none better
        # The schedule `fast` is at its best when its rates have fallen.
        if settings.schedule != "fast" and run.selected and run.epoch - run.selected_epoch > patience:
            log.info("the selected epoch did not change for %d epochs: the search ends", patience)
            return False
        return True

    def begin_epoch(self) -> str:
        """Return the phase of the epoch: `head`, which trains the head alone, or `masks`, which trains both."""
        epoch, settings = self.run.epoch, self.settings
        head_only = epoch == 1 if settings.schedule == "fast" else (epoch - 1) % settings.head_every == 0
        return "head" if head_only else "masks"

    def is_evaluated(self) -> bool:
        """Return whether the epoch is evaluated, so that it can be selected."""
        return is_evaluated(self.run.epoch, self.settings)

    def end_epoch(
        self,
        phase: str,
        sums: tuple[float, float, float],
        retention: float,
        accuracy: float | None,
        bits: Callable[[], Tensors],
        head: Callable[[], Tensors],
        *,
        save: bool | None = None,
        share: int = 1,
    ) -> None:
        """Log the epoch, select it if it is the best so far, and record it.

        sums: images, right answers and loss of the epoch's steps. accuracy: None if the epoch is not evaluated. bits,
        head: give the masks and the state of the head, on the CPU. save: see `TrainingRun.end_epoch`. share: the
        number of searches among which the epoch's time is divided.
        """
        row = {"epoch": self.run.epoch, "phase": phase} | self._figures(sums, retention, accuracy, share)
        selected = None
        if accuracy is not None:
            settings = self.settings
            rank = rank_epoch(accuracy, retention, self.source_accuracy - settings.tolerance, settings.accuracy_worth)
            if self.run.selected is None or rank > self.run.selected["rank"]:
                selected = {"rank": rank, "bits": pack_bits(bits()), "head": head()}
        self._log(row, " selected" if selected else "")
        self.run.end_epoch({**row, "selected": int(selected is not None)}, selected, save)

    def _figures(
        self, sums: tuple[float, float, float], retention: float, accuracy: float | None, share: int = 1
    ) -> dict[str, Any]:
        """Return the figures of an epoch as all histories have them."""
        images, right, loss = sums
        penalty = self.settings.alpha * (retention if self.penalty_share is None else self.penalty_share())
        return {
            "loss": loss / images + penalty,
            "cross_entropy": loss / images,
            "penalty": penalty,
            "train_accuracy": right / images,
            "accuracy": accuracy,
            "retention": retention,
            "seconds": self.run.epoch_seconds() / share,
        }

    def _log(self, row: dict[str, Any], event: str) -> None:
        accuracy = "not evaluated"
        if row["accuracy"] is not None:
            images = SELECTED_ON[self.settings.selection]
            accuracy = f"{images} accuracy {row['accuracy']:.4f} (source {self.source_accuracy:.4f})"
        log.info(
            "%sepoch %d/%d %-5s loss %.4f %s retention %.4f %.1f s%s",
            f"{self.name}: " if self.name else "", row["epoch"], self.settings.epochs, row["phase"], row["loss"],
            accuracy, row["retention"], row["seconds"], event,
        )  # fmt: skip

    def result(self, network: nn.Module) -> SearchResult:
        """Return the result of a search that has ended; `network` is the masked one."""
        selected = self.run.selected
        bits = unpack_bits(selected["bits"], network)
        return SearchResult(bits, selected["head"], self.run.history, self.run.selected_epoch)


def rank_epoch(accuracy: float, retention: float, wanted: float, worth: float | None) -> tuple[float, ...]:
    """Return the rank of an epoch, by which epochs are compared: the highest is selected, the first of equal ones.

    Lower retention ranks higher, in steps of 0.001; ties go to accuracy. Each point of accuracy that is missing to the
    `wanted` one (the source model's, less the tolerance) costs as much as `worth` points of retention.

    With `worth` None, as published, an epoch of the wanted accuracy ranks above all others, which are compared by
    accuracy - retention: one image more or less can then decide between a tenth of the weights and all of them.
    """
    if worth is not None:
        return (-round(retention, 3) - worth * max(wanted - accuracy, 0.0), accuracy)
    if accuracy >= wanted:
        return (1, -round(retention, 3), accuracy)
    return (0, accuracy - retention, accuracy)

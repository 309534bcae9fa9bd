"""The mask search of indirect reuse: one search, which stores its masks whenever it reaches a threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from seam.log import log
from seam.masks.bits import pack_bits
from seam.masks.layers import unused_parameters
from seam.masks.masks import Masks
from seam.memory import own_mappings
from seam.models.surgery import outputs_in_training
from seam.search.mask_search import MaskSearch, Tensors
from seam.search.training import MaskTraining
from seam.settings import SearchSettings, ThresholdSearchSettings
from seam.training.checkpoint import Checkpoint
from seam.training.run import Batch, Batches, TrainingRun

ADVICE = "lower transfer.search.lr_mask, lr_last or alpha"  # if the loss is not finite


@dataclass
class ThresholdResult:
    """The masks of the thresholds that a search reached, and its history: a dictionary for each epoch.

    reached: {threshold: {"epoch", "bits"}}, the epoch at whose end it was reached and its packed masks.
    """

    reached: dict[str, dict[str, Any]]
    history: list[dict[str, Any]]

    @property
    def most_removed(self) -> float:
        """The largest share of the weights that the search removed at the end of an epoch."""
        return 1 - min(row["retention"] for row in self.history)


def search_by_threshold(
    model: nn.Module,
    last_layer: str,
    batches: Batches,
    selection: Iterable[Batch],
    settings: ThresholdSearchSettings,
    thresholds: Sequence[float],
    checkpoint: Checkpoint | None = None,
) -> ThresholdResult:
    """Search the masks of all layers of `model` but `last_layer`, which is trained with them; return the result.

    thresholds: shares of the weights to remove. The masks of a threshold are those of the first epoch at whose end at
    least so many are removed. The search ends when it has reached all of them, or after `epochs`. selection: batches of
    the images on which the history's accuracy is measured. Raises UserError if the loss is not finite or no weight is
    left.
    """
    head = model.requires_grad_(False).get_submodule(last_layer).requires_grad_(True)
    images = next(iter(selection))[0][:2]
    outputs_in_training(model, images)  # finds layers whose statistics must stay
    unused = unused_parameters(model, images, {last_layer})
    with own_mappings():
        masks = Masks(model, {last_layer} | unused)
    if settings.initial_masks == "magnitude":
        masks.order_by_magnitude()
    training = MaskTraining(
        model, head, masks, lr_mask=settings.lr_mask, lr_head=settings.lr_last, alpha=settings.alpha, head_phase=False
    )
    with TrainingRun(batches, training.parts, checkpoint, ADVICE) as run:
        mask_search = ThresholdSearch(run, settings, thresholds)
        mask_search.search(training, selection)
    return ThresholdResult(mask_search.reached, run.history)


class ThresholdSearch(MaskSearch):
    """One search that trains masks in all its epochs, and ends when it has reached all thresholds."""

    def __init__(self, run: TrainingRun, settings: ThresholdSearchSettings, thresholds: Sequence[float]) -> None:
        super().__init__(run, SearchSettings(epochs=settings.epochs, alpha=settings.alpha), source_accuracy=0.0)
        self.thresholds = thresholds

    @property
    def reached(self) -> dict[str, dict[str, Any]]:
        """{threshold: {"epoch", "bits"}} of the thresholds reached so far."""
        return self.run.selected or {}

    def has_next_epoch(self) -> bool:
        """Return whether the search has another epoch."""
        return self.run.epoch <= self.settings.epochs and len(self.reached) < len(self.thresholds)

    def begin_epoch(self) -> str:
        """Return the phase of the epoch, which is always `masks`."""
        return "masks"

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
        """Log the epoch, store its masks for the thresholds that it reached first, and record it."""
        row = {"epoch": self.run.epoch, **self._figures(sums, retention, accuracy, share)}
        names = [f"{threshold:g}" for threshold in self.thresholds if 1 - retention >= threshold]
        new = [name for name in names if name not in self.reached]
        log.info(
            "epoch %d/%d loss %.4f accuracy %.4f retention %.4f %.1f s%s",
            row["epoch"], self.settings.epochs, row["loss"], accuracy, retention, row["seconds"],
            "".join(f" {name} removed" for name in new),
        )  # fmt: skip
        selected = None
        if new:
            reached = {"epoch": self.run.epoch, "bits": pack_bits(bits())}
            selected = {**self.reached, **dict.fromkeys(new, reached)}
        self.run.end_epoch(row, selected, save)

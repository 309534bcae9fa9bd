"""Train a part of a model, and keep the epoch that is best on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from seam import evaluation
from seam.evaluation import predict
from seam.log import log
from seam.models.surgery import copy_state
from seam.training.checkpoint import Checkpoint
from seam.training.run import Batch, Batches, Stateful, Step, TrainingRun


def train_and_select(
    model: nn.Module,
    part: Any,
    step: Step,
    parts: Mapping[str, Stateful],
    batches: Batches,
    selection: Iterable[Batch],
    epochs: int,
    set_mode: Callable[[nn.Module], Any],
    checkpoint: Checkpoint | None = None,
    advice: str = "lower its learning rate",
    measure: Callable[[torch.Tensor, torch.Tensor], float] = evaluation.accuracy,
    patience: int | None = None,
    takes_last: bool = False,
) -> tuple[list[dict[str, Any]], int]:
    """Train `part` of `model` by `step` for `epochs`; return (history, selected epoch).

    The part, a module or another `Stateful` of tensors, ends as it was in the selected epoch: the first with the best
    accuracy of the model on `selection`. parts: {name: what a step changes}, for the checkpoint. set_mode: puts the
    model into the mode in which it is trained. measure: the accuracy, of logits [N, n] and labels [N]. patience: how
    many epochs without a better one end the training early, if any. takes_last: whether the last epoch is selected,
    whatever its accuracy. Raises UserError if the loss is not finite.
    """
    with TrainingRun(batches, parts, checkpoint, advice) as run:
        run.most_epochs = epochs
        while run.epoch <= epochs and (patience is None or run.epoch - run.selected_epoch <= patience):
            set_mode(model)
            images, right, loss = run.train_epoch(step)
            accuracy = measure(*predict(model, run.interruptible(selection)))
            row = {
                "epoch": run.epoch,
                "loss": loss / images,
                "train_accuracy": right / images,
                "accuracy": accuracy,
                "seconds": run.epoch_seconds(),
            }
            selected = None
            if takes_last:
                is_selected = run.epoch == epochs
            else:
                is_selected = run.selected is None or accuracy > run.selected["accuracy"]
            if is_selected:
                selected = {"accuracy": accuracy, "part": copy_state(part)}
            log.info(
                "epoch %d/%d loss %.4f accuracy %.4f %.1f s%s",
                row["epoch"], epochs, row["loss"], accuracy, row["seconds"], " selected" if selected else "",
            )  # fmt: skip
            run.end_epoch({**row, "selected": int(selected is not None)}, selected)
    assert run.selected is not None  # the first epoch was, or the last one
    part.load_state_dict(run.selected["part"])
    return run.history, run.selected_epoch

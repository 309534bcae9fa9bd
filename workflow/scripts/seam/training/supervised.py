"""Supervised training: of a source model from random weights, and of a student from a source model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from seam import evaluation
from seam.evaluation import predict
from seam.log import log
from seam.models.surgery import outputs_in_training, set_training_mode
from seam.precision import forward
from seam.settings import FinetuningSettings, LastLayerSettings, TrainingSettings
from seam.training.checkpoint import Checkpoint
from seam.training.run import Batch, Batches, TrainingRun
from seam.training.selecting import train_and_select


def one_cycle(steps: int, rise: float = 0.2, low: float = 0.04) -> Callable[[int], float]:
    """Return the function step -> factor on the learning rate: from `low` to 1 and down to 0, both along a cosine.

    It is torch's OneCycleLR, which cannot do five steps.
    """
    peak = max(rise * steps - 1, 1)
    last = max(steps - 1, peak + 1)

    def factor(step: int) -> float:
        first, second, way = (low, 1, step / peak) if step <= peak else (1, 0, (step - peak) / (last - peak))
        return second + (first - second) * (1 + math.cos(math.pi * min(way, 1))) / 2

    return factor


def train(
    model: nn.Module,
    batches: Batches,
    settings: TrainingSettings,
    test: Iterable[Batch] | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place; return its history, one dictionary an epoch.

    The learning rate rises over the first fifth of the steps to `lr` and falls to zero, both along a cosine
    (Smith, "Super-Convergence", 2018). test: batches to evaluate after each epoch, for the history alone. No epoch is
    selected: the last one is the result. checkpoint: where to resume from. Raises UserError if the loss is not finite.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(settings.epochs * len(batches)))

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = forward(model, images)
        loss = cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return logits, loss

    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    with TrainingRun(batches, parts, checkpoint, "lower training.lr") as run:
        run.most_epochs = settings.epochs
        while run.epoch <= settings.epochs:
            model.train()
            images, right, loss = run.train_epoch(step)
            row = {
                "epoch": run.epoch,
                "loss": loss / images,
                "train_accuracy": right / images,
                "seconds": run.epoch_seconds(),
            }
            if test is not None:
                row["test_accuracy"] = evaluation.accuracy(*predict(model, run.interruptible(test)))
            log.info("epoch %d/%d %s", run.epoch, settings.epochs, {k: round(v, 4) for k, v in row.items()})
            run.end_epoch(row)
    return run.history


def train_last_layer(
    model: nn.Module,
    last_layer: str,
    batches: Batches,
    selection: Iterable[Batch],
    settings: LastLayerSettings,
    checkpoint: Checkpoint | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """Train the layer `last_layer` of `model` alone; return (history, selected epoch).

    All other parameters and batch norm stay as they are. The rest is as in `finetune`.
    """
    layer = model.get_submodule(last_layer)
    outputs_in_training(model, next(iter(selection))[0][:2])  # finds layers whose statistics must stay
    model.requires_grad_(False)
    layer.requires_grad_(True)
    optimizer = torch.optim.SGD(
        layer.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    return _train_and_select(model, optimizer, batches, selection, settings, set_training_mode, {}, checkpoint)


def finetune(
    model: nn.Module,
    last_layer: str,
    batches: Batches,
    selection: Iterable[Batch],
    settings: FinetuningSettings,
    bits: Mapping[str, torch.Tensor] | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """Train all of `model` at constant rates; return (history, selected epoch).

    The model ends as it was in the selected epoch: the first with the best accuracy on `selection`. The training uses
    SGD with momentum and weight decay, as published, and ends after `patience` epochs without a better one.

    last_layer: the name of the layer that is trained at `lr_last`. bits: {name: boolean mask}, where to keep the
    parameter zero while the mask is False. checkpoint: where to resume from. Raises UserError if the loss is not
    finite.
    """
    layer = model.get_submodule(last_layer)
    last_ids = {id(parameter) for parameter in layer.parameters()}
    others = [parameter for parameter in model.parameters() if id(parameter) not in last_ids]
    groups = [{"params": list(layer.parameters()), "lr": settings.lr_last}, {"params": others, "lr": settings.lr}]
    optimizer = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return _train_and_select(model, optimizer, batches, selection, settings, nn.Module.train, bits or {}, checkpoint)


def _train_and_select(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    selection: Iterable[Batch],
    settings: FinetuningSettings | LastLayerSettings,
    set_mode: Callable[[nn.Module], Any],
    bits: Mapping[str, torch.Tensor],
    checkpoint: Checkpoint | None,
) -> tuple[list[dict[str, Any]], int]:
    """Train with early stopping, and load the selected epoch; return (history, selected epoch).

    set_mode: puts the model into the mode in which it is trained.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    masked = [(parameters[name], bit.to(parameters[name].device)) for name, bit in bits.items()]

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = forward(model, images)
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, bit in masked:
                parameter.mul_(bit)
        return logits, loss

    return train_and_select(
        model, model, step, {"model": model, "optimizer": optimizer}, batches, selection, settings.epochs, set_mode,
        checkpoint, "lower its lr in transfer", patience=settings.patience,
    )  # fmt: skip

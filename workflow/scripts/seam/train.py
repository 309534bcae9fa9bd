"""Supervised training of a source model: SGD with Nesterov momentum under a one-cycle schedule."""

import math
import time
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from seam import evaluate
from seam.files import UserError
from seam.progress import log


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a training; `config.schema.yaml` describes each."""

    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0005
    label_smoothing: float = 0.0


def one_cycle(steps, rise=0.2, low=0.04):
    """The factor on the learning rate at each of `steps`: from `low` to 1 and down to 0, both along a cosine.

    As torch's OneCycleLR has it, which cannot do five steps.
    """
    peak = max(rise * steps - 1, 1)
    last = max(steps - 1, peak + 1)

    def factor(step):
        first, second, way = (low, 1, step / peak) if step <= peak else (1, 0, (step - peak) / (last - peak))
        return second + (first - second) * (1 + math.cos(math.pi * min(way, 1))) / 2

    return factor


def train(model, batches, settings, test=None):
    """Train `model` in place; returns its history, one dictionary an epoch.

    The learning rate rises over the first fifth of the steps to `lr` and falls to zero, both along a cosine
    (Smith, "Super-Convergence", 2018). `test`, if given, is evaluated after each epoch for the
    log alone: nothing is chosen by it, the last epoch is the result. Raises UserError if the loss is
    not finite.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(settings.epochs * len(batches)))
    history = []
    for epoch in range(1, settings.epochs + 1):
        start, losses, right, images = time.perf_counter(), 0.0, 0, 0
        model.train()
        for inputs, labels in batches:
            logits = model(inputs)
            loss = cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses = losses + loss.detach() * len(labels)
            right = right + (logits.detach().argmax(1) == labels).sum()
            images += len(labels)
        row = {
            "epoch": epoch,
            "loss": losses.item() / images,
            "train_accuracy": right.item() / images,
            "seconds": time.perf_counter() - start,
        }
        if not math.isfinite(row["loss"]):
            raise UserError(f"The training loss became {row['loss']} in epoch {epoch}: lower training.lr.")
        if test is not None:
            row["test_accuracy"] = evaluate.accuracy(*evaluate.outputs(model, test))
        history.append(row)
        log.info("epoch %d/%d %s", epoch, settings.epochs, {k: round(v, 4) for k, v in row.items()})
    return history

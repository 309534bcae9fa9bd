"""The mask search (SeaM, section III): gradient descent on which weights a target problem needs."""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from seam import evaluate, models
from seam.adam import Adam
from seam.checkpoint import Run
from seam.device import forward
from seam.masking import Masks, pack, unpack
from seam.progress import lasting, log


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a search; `config.schema.yaml` describes each."""

    epochs: int = 300
    batch_size: int = 64
    lr_mask: float = 0.05
    lr_head: float = 0.1
    alpha: float = 1.0
    head_every: int = 5
    schedule: str = "published"
    selection: str = "holdout"
    holdout: float = 0.2
    tolerance: float = 0.0
    accuracy_worth: float | None = 5.0
    patience: int = 50


@dataclass
class Result:
    """bits, head: the selected epoch's masks and head; history: one dictionary an epoch."""

    bits: dict
    head: dict
    history: list
    selected_epoch: int


def with_head(module, inputs, classes):
    """`module` -> ReLU -> Linear(inputs, classes): the re-engineered model's shape, its head new."""
    return nn.Sequential(OrderedDict(source=module, relu=nn.ReLU(), head=nn.Linear(inputs, classes)))


def search(model, train, select, source_accuracy, settings, checkpoint=None):
    """Search the masks and the head of `model`, made by `with_head`; it is changed in place.

    train: gives (images, labels) batches, anew at each iteration; an epoch is one pass.
    select: batches of the images on which an epoch is chosen.
    source_accuracy: what the source model achieves on those.
    checkpoint: a `seam.checkpoint.Checkpoint` to go on from, if the search was interrupted.
    The seed is torch's own: call `torch.manual_seed` before.

    Of every `head_every` epochs the first trains the head alone, by an Adam of its own; the others train
    masks and head by a second Adam. With the schedule `fast` it is the very first epoch alone, masks begin by the
    weights' magnitudes, and the second Adam's rates fall to zero along a cosine. Raises UserError if the loss is not
    finite or no weight is left.
    """
    network, head = model.source, model.head
    network.requires_grad_(False)
    fast = settings.schedule == "fast"
    rates = cosine((settings.epochs - 1) * len(train)) if fast else None
    with lasting():
        masks = Masks(network)
        head_only = Adam([(head.parameters(), settings.lr_head)])
        both = Adam([(masks.values.values(), settings.lr_mask), (head.parameters(), settings.lr_head)], rates)
    if fast:
        masks.begin_by_magnitude()
    parts = {"masks": masks, "head": head, "head_only": head_only, "both": both}
    steps = {"head": head_step(model, head_only), "masks": mask_step(model, head, masks, both, settings.alpha)}
    wanted = source_accuracy - settings.tolerance
    with Run(train, parts, checkpoint, "lower lr_mask, lr_head or alpha") as run:
        while run.epoch <= settings.epochs and run.epoch - run.selected_epoch <= settings.patience:
            head_only_epoch = run.epoch == 1 if fast else (run.epoch - 1) % settings.head_every == 0
            phase = "head" if head_only_epoch else "masks"
            models.training_mode(model)
            masks.train(phase == "masks")
            images, right, loss = run.one_epoch(steps[phase])
            retention = masks.retention(run.epoch)
            accuracy = evaluate.accuracy(*evaluate.outputs(model, run.watched(select)))
            row = {
                "epoch": run.epoch,
                "phase": phase,
                "loss": loss / images + settings.alpha * retention,
                "cross_entropy": loss / images,
                "penalty": settings.alpha * retention,
                "train_accuracy": right / images,
                "accuracy": accuracy,
                "retention": retention,
                "seconds": run.epoch_seconds(),
            }
            best, rank = None, _rank(accuracy, retention, wanted, settings.accuracy_worth)
            if run.best is None or rank > run.best["rank"]:
                best = {"rank": rank, "bits": pack(masks.bits()), "head": models.copied(head)}
            log.info(
                "epoch %d/%d %-5s loss %.4f accuracy %.4f (source %.4f) retention %.4f %.1f s%s",
                run.epoch, settings.epochs, phase, row["loss"], accuracy, source_accuracy, retention, row["seconds"],
                " selected" if best else "",
            )  # fmt: skip
            run.end_epoch({**row, "selected": int(best is not None)}, best)
        if run.epoch <= settings.epochs:
            log.info("the selected epoch did not change for %d epochs: the search ends", settings.patience)
    return Result(unpack(run.best["bits"], network), run.best["head"], run.history, run.selected_epoch)


def cosine(steps):
    """The factor on the rates at each of `steps`, from 1 to 0 (Loshchilov and Hutter, "SGDR", 2017)."""
    return lambda step: (1 + math.cos(math.pi * min(step / max(steps, 1), 1))) / 2


def _rank(accuracy, retention, wanted, worth):
    """Orders epochs by retention, to which each point of accuracy that is missing to the wanted one (the source's, less
    the tolerance) adds `worth` points. Retention counts in steps of 0.001, ties go to accuracy.

    As published, where `worth` is None, an epoch of the wanted accuracy is above any other, and the others go by
    accuracy - retention: whether one image more is right can decide between a tenth of the weights and all.
    """
    if worth is not None:
        return (-round(retention, 3) - worth * max(wanted - accuracy, 0.0), accuracy)
    if accuracy >= wanted:
        return (1, -round(retention, 3), accuracy)
    return (0, accuracy - retention, accuracy)


def head_step(model, optimizer):
    """A training step of the head alone, for `Run.one_epoch`."""

    def step(images, labels):
        with torch.no_grad():
            features = model.relu(forward(model.source, images))
        logits = model.head(features)
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return logits, loss

    return step


def mask_step(model, head, masks, optimizer, alpha):
    """A training step of the masks and of `head`, a layer of `model` that has none, for `Run.one_epoch`."""

    def step(images, labels):
        logits = forward(model, images)
        loss = cross_entropy(logits, labels)
        head.zero_grad()
        with masks.updated(optimizer, alpha):
            loss.backward()
        optimizer.step()
        return logits, loss

    return step

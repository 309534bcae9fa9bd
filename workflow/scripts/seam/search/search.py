"""The mask search (SeaM, section III): gradient descent on which weights a target problem needs."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import cross_entropy

from seam import evaluation
from seam.evaluation import predict
from seam.log import log
from seam.masks.bits import pack_bits, unpack_bits
from seam.masks.layers import unused_parameters
from seam.masks.masks import Masks
from seam.memory import own_mappings
from seam.models.surgery import copy_state, set_training_mode
from seam.precision import forward
from seam.training.adam import Adam
from seam.training.graphs import graphed
from seam.training.run import Run

ADVICE = "lower lr_mask, lr_head or alpha"  # where the loss is not finite


@dataclass
class SearchResult:
    """bits, head: the selected epoch's masks and head; history: one dictionary an epoch."""

    bits: dict
    head: dict
    history: list
    selected_epoch: int


def search(model, train, select, source_accuracy, settings, checkpoint=None):
    """Search the masks and the head of `model`, made by `with_head`; gives a `Result`.

    model: changed in place, and left in train mode with the masks and the head of the last epoch. What was selected is
        in the result: `masking.bake` its bits into the source model, and load its head.
    train: gives (images, labels) batches, anew at each iteration, and has a length; an epoch is one pass.
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
    exclude = unused_parameters(network, next(iter(select))[0][:2])
    with own_mappings():
        masks = Masks(network, exclude)
    parts, steps = training(model, masks, head, settings, len(train))
    with Run(train, parts, checkpoint, ADVICE) as run:
        while goes_on(run, settings):
            phase = phase_of(run.epoch, settings)
            set_training_mode(model)
            masks.train(phase == "masks")
            sums = run.one_epoch(steps[phase])
            retention = masks.retention(run.epoch)
            accuracy = None
            if is_evaluated(run.epoch, settings):
                accuracy = evaluation.accuracy(*predict(model, run.watched(select)))
            row = row_of(run, sums, accuracy, retention, settings)
            run.end_epoch(*judged(run, row, source_accuracy, settings, masks.bits, partial(copy_state, head)))
    return result_of(run, network)


def training(model, masks, head, settings, batches, losses=None):
    """({name: what a `Run` keeps}, {phase: its step}) of a search whose epochs have so many `batches`.

    losses: of several searches, instead of cross entropy.
    """
    rates = cosine((settings.epochs - 1) * batches) if settings.schedule == "fast" else None
    with own_mappings():
        head_only = Adam([(head.parameters(), settings.lr_head)])
        both = Adam([(masks.values.values(), settings.lr_mask), (head.parameters(), settings.lr_head)], rates)
    if settings.schedule == "fast":
        masks.begin_by_magnitude()
    parts = {"masks": masks, "head": head, "head_only": head_only, "both": both}
    steps = {
        "head": head_step(model, head_only, losses),
        "masks": mask_step(model, head, masks, both, settings.alpha, losses),
    }
    return parts, {phase: graphed(step, parts.values(), head.weight.device) for phase, step in steps.items()}


def phase_of(epoch, settings):
    """What an epoch trains: `head`, alone, or `masks`, with the head."""
    head_only = epoch == 1 if settings.schedule == "fast" else (epoch - 1) % settings.head_every == 0
    return "head" if head_only else "masks"


def is_evaluated(epoch, settings):
    """Whether an epoch is evaluated, and can be selected: of every `evaluate_every` the last, and the very last."""
    return epoch % settings.evaluate_every == 0 or epoch == settings.epochs


def goes_on(run, settings):
    """Whether the search has another epoch."""
    if run.epoch > settings.epochs:
        return False
    # The schedule `fast` is at its best when its rates have fallen.
    if settings.schedule != "fast" and run.best and run.epoch - run.selected_epoch > settings.patience:
        log.info("the selected epoch did not change for %d epochs: the search ends", settings.patience)
        return False
    return True


def row_of(run, sums, accuracy, retention, settings):
    """An epoch as a row of the history. sums: (images, right, loss) of its steps; accuracy: None if not evaluated."""
    images, right, loss = sums
    return {
        "epoch": run.epoch,
        "phase": phase_of(run.epoch, settings),
        "loss": loss / images + settings.alpha * retention,
        "cross_entropy": loss / images,
        "penalty": settings.alpha * retention,
        "train_accuracy": right / images,
        "accuracy": accuracy,
        "retention": retention,
        "seconds": run.epoch_seconds(),
    }


def judged(run, row, source_accuracy, settings, bits, head):
    """(the row with whether the epoch is the best so far, what is to be kept of it, or None); a line in the log.

    bits, head: functions that give its masks and its head's state dictionary, on the CPU.
    """
    wanted, best, said = source_accuracy - settings.tolerance, None, "not evaluated"
    if row["accuracy"] is not None:
        rank = _rank(row["accuracy"], row["retention"], wanted, settings.accuracy_worth)
        if run.best is None or rank > run.best["rank"]:
            best = {"rank": rank, "bits": pack_bits(bits()), "head": head()}
        images = "held-out" if settings.selection == "holdout" else "test"
        said = f"{images} accuracy {row['accuracy']:.4f} (source {source_accuracy:.4f})"
    log.info(
        "epoch %d/%d %-5s loss %.4f %s retention %.4f %.1f s%s",
        row["epoch"], settings.epochs, row["phase"], row["loss"], said, row["retention"], row["seconds"],
        " selected" if best else "",
    )  # fmt: skip
    return {**row, "selected": int(best is not None)}, best


def result_of(run, network):
    return SearchResult(unpack_bits(run.best["bits"], network), run.best["head"], run.history, run.selected_epoch)


def cosine(steps):
    """The factor on the rates at each of `steps`, from 1 to 0 (Loshchilov and Hutter, "SGDR", 2017), on tensors."""
    return lambda step: (1 + torch.cos(math.pi * (step / max(steps, 1)).clamp(max=1))) / 2


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


def head_step(model, optimizer, losses=None):
    """A training step of the head alone, for `Run.one_epoch`. losses: as for `training`."""

    def step(images, labels):
        with torch.no_grad():
            features = model.relu(forward(model.source, images))
        logits = model.head(features)
        loss = (losses or cross_entropy)(logits, labels)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        return logits, loss

    return step


def mask_step(model, head, masks, optimizer, alpha, losses=None):
    """A training step of the masks and of `head`, a layer of `model` that has none; losses: as for `training`."""

    def step(images, labels):
        logits = forward(model, images)
        loss = (losses or cross_entropy)(logits, labels)
        head.zero_grad()
        with masks.updated(optimizer, alpha):
            loss.sum().backward()
        optimizer.step()
        return logits, loss

    return step

"""Supervised training: of a source model from nothing, of a student from a source model."""

import math

import torch
from torch.nn.functional import cross_entropy

from seam import evaluation
from seam.evaluation import predict
from seam.log import log
from seam.models.surgery import copy_state, set_training_mode
from seam.precision import forward
from seam.training.run import Run


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


def train(model, batches, settings, test=None, checkpoint=None):
    """Train `model` in place; returns its history, one dictionary an epoch.

    The learning rate rises over the first fifth of the steps to `lr` and falls to zero, both along a cosine
    (Smith, "Super-Convergence", 2018). `test`, if given, is evaluated after each epoch for the
    log alone: nothing is chosen by it, the last epoch is the result. `checkpoint`: a `seam.checkpoint.Checkpoint`
    to go on from, if the training was interrupted. Raises UserError if the loss is not finite.
    """
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(settings.epochs * len(batches)))

    def step(images, labels):
        logits = forward(model, images)
        loss = cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return logits, loss

    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    with Run(batches, parts, checkpoint, "lower training.lr") as run:
        while run.epoch <= settings.epochs:
            model.train()
            images, right, loss = run.one_epoch(step)
            row = {
                "epoch": run.epoch,
                "loss": loss / images,
                "train_accuracy": right / images,
                "seconds": run.epoch_seconds(),
            }
            if test is not None:
                row["test_accuracy"] = evaluation.accuracy(*predict(model, run.watched(test)))
            log.info("epoch %d/%d %s", run.epoch, settings.epochs, {k: round(v, 4) for k, v in row.items()})
            run.end_epoch(row)
    return run.history


def finetune(model, last, batches, select, settings, zeros=None, checkpoint=None):
    """Train `model` at constant rates and leave it as it was in its best epoch; returns (history, that epoch).

    last: the name of its last layer, which is trained at `lr_last`; without that rate it alone is trained, at
        `lr`, while batch norm stays as it is.
    select: batches of the images on which the epoch is chosen, the first of the best accuracy.
    zeros: {name: boolean mask}, where to keep the parameter zero while it is False.
    checkpoint: a `seam.checkpoint.Checkpoint` to go on from, if the training was interrupted.

    SGD with momentum and weight decay, as published. It ends after `patience` epochs without a better one.
    Raises UserError if the loss is not finite.
    """
    layer = model.get_submodule(last)
    own = {id(parameter) for parameter in layer.parameters()}
    others = [parameter for parameter in model.parameters() if id(parameter) not in own]
    alone = settings.lr_last is None
    groups = [{"params": list(layer.parameters()), "lr": settings.lr if alone else settings.lr_last}]
    if alone:
        for parameter in others:
            parameter.requires_grad_(False)
    else:
        groups.append({"params": others, "lr": settings.lr})
    optimizer = torch.optim.SGD(groups, momentum=settings.momentum, weight_decay=settings.weight_decay)
    parameters = dict(model.named_parameters())
    kept = [(parameters[name], bit.to(parameters[name].device)) for name, bit in (zeros or {}).items()]

    def step(images, labels):
        logits = forward(model, images)
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, bit in kept:
                parameter.mul_(bit)
        return logits, loss

    parts = {"model": model, "optimizer": optimizer}
    with Run(batches, parts, checkpoint, "lower its lr in transfer") as run:
        while run.epoch <= settings.epochs and run.epoch - run.selected_epoch <= settings.patience:
            if alone:
                set_training_mode(model)
            else:
                model.train()
            images, right, loss = run.one_epoch(step)
            accuracy = evaluation.accuracy(*predict(model, run.watched(select)))
            row = {
                "epoch": run.epoch,
                "loss": loss / images,
                "train_accuracy": right / images,
                "accuracy": accuracy,
                "seconds": run.epoch_seconds(),
            }
            best = None
            if run.best is None or accuracy > run.best["accuracy"]:
                best = {"accuracy": accuracy, "model": copy_state(model)}
            log.info("epoch %d/%d %s", run.epoch, settings.epochs, {k: round(v, 4) for k, v in row.items()})
            run.end_epoch({**row, "selected": int(best is not None)}, best)
    model.load_state_dict(run.best["model"])
    return run.history, run.selected_epoch

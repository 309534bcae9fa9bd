"""The mask search (SeaM, section III): gradient descent on which weights a target problem needs."""

import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from seam import evaluate
from seam.files import UserError
from seam.masking import Masks
from seam.progress import log


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a search; `config.schema.yaml` describes each."""

    epochs: int = 300
    batch_size: int = 64
    lr_mask: float = 0.05
    lr_head: float = 0.1
    alpha: float = 1.0
    head_every: int = 5
    selection: str = "holdout"
    holdout: float = 0.2
    tolerance: float = 0.0
    patience: int = 50


@dataclass
class Result:
    """bits, head: the selected epoch's masks and head; history: one dictionary an epoch."""

    bits: dict
    head: dict
    history: list = field(default_factory=list)
    selected_epoch: int = 0


def with_head(module, inputs, classes):
    """`module` -> ReLU -> Linear(inputs, classes): the re-engineered model's shape, its head new."""
    return nn.Sequential(OrderedDict(source=module, relu=nn.ReLU(), head=nn.Linear(inputs, classes)))


def training_mode(model):
    """Train mode, so that dropout is active, but batch norm stays as the source model has it."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def search(model, train, select, source_accuracy, settings):
    """Search the masks and the head of `model`, made by `with_head`; it is changed in place.

    train: gives (images, labels) batches, anew at each iteration; an epoch is one pass.
    select: batches of the images on which an epoch is chosen.
    source_accuracy: what the source model achieves on those.
    The seed is torch's own: call `torch.manual_seed` before.

    Of every `head_every` epochs the first trains the head alone, by an Adam of its own; the others train
    masks and head by a second Adam. Raises UserError if the loss is not finite or no weight is left.
    """
    network, head = model.source, model.head
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    masks = Masks(network)
    values = list(masks.values.values())
    fused = {"fused": True, "eps": 1e-8}
    head_only = torch.optim.Adam(head.parameters(), lr=settings.lr_head, **fused)
    both = torch.optim.Adam(
        [
            {"params": values, "lr": settings.lr_mask},
            {"params": list(head.parameters()), "lr": settings.lr_head},
        ],
        **fused,
    )
    result, best = Result({}, {}), None
    for epoch in range(1, settings.epochs + 1):
        start = time.perf_counter()
        phase = "head" if (epoch - 1) % settings.head_every == 0 else "masks"
        training_mode(model)
        if phase == "head":
            totals = _head_epoch(model, train, head_only)
        else:
            totals = _mask_epoch(model, masks, train, both, settings.alpha)
        images, right, loss = totals.tolist()  # the epoch's only wait for the device before the evaluation
        kept = masks.kept().item()
        retention = kept / masks.count
        if not math.isfinite(loss):
            raise UserError(f"The loss became {loss} in epoch {epoch}: lower lr_mask, lr_head or alpha.")
        if not kept:
            raise UserError(f"No weight was left in epoch {epoch}: lower alpha or lr_mask.")
        accuracy = evaluate.accuracy(*evaluate.outputs(model, select))
        rank = _rank(accuracy, retention, source_accuracy - settings.tolerance)
        selected = best is None or rank > best
        if selected:
            best, result.selected_epoch = rank, epoch
            result.bits = masks.bits()
            result.head = {name: value.detach().cpu().clone() for name, value in head.state_dict().items()}
        row = {
            "epoch": epoch,
            "phase": phase,
            "loss": loss / images + settings.alpha * retention,
            "cross_entropy": loss / images,
            "penalty": settings.alpha * retention,
            "train_accuracy": right / images,
            "accuracy": accuracy,
            "retention": retention,
            "seconds": time.perf_counter() - start,
            "selected": int(selected),
        }
        result.history.append(row)
        log.info(
            "epoch %d/%d %-5s loss %.4f accuracy %.4f (source %.4f) retention %.4f %.1f s%s",
            epoch, settings.epochs, phase, row["loss"], accuracy, source_accuracy, retention, row["seconds"],
            " selected" if selected else "",
        )  # fmt: skip
        if epoch - result.selected_epoch >= settings.patience:
            log.info("the selected epoch did not change for %d epochs: the search ends", settings.patience)
            break
    return result


def _rank(accuracy, retention, wanted):
    """Orders epochs: those of the wanted accuracy by least retention, the others by a trade-off.

    Retention counts in steps of 0.001, ties go to accuracy; an epoch that reaches the wanted accuracy (the
    source's, less the tolerance) is above any that does not.
    """
    if accuracy >= wanted:
        return (1, -round(retention, 3), accuracy)
    return (0, accuracy - retention, accuracy)


def _head_epoch(model, batches, optimizer):
    def step(images, labels):
        with torch.no_grad():
            features = model.relu(model.source(images))
        logits = model.head(features)
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return logits, loss

    return _epoch(batches, step)


def _mask_epoch(model, masks, batches, optimizer, alpha):
    def step(images, labels):
        logits = model(images)
        loss = cross_entropy(logits, labels)
        model.head.zero_grad()
        loss.backward()
        masks.backward(alpha)
        optimizer.step()
        masks.apply()
        return logits, loss

    for parameter in masks.parameters.values():
        parameter.requires_grad_(True)
    totals = _epoch(batches, step)
    for parameter in masks.parameters.values():
        parameter.requires_grad_(False)
    return totals


def _epoch(batches, step):
    """Sums over the epoch's images, on the device: [images, right, cross entropy]."""
    totals = 0
    for images, labels in batches:
        logits, loss = step(images, labels)
        right = (logits.detach().argmax(1) == labels).sum()
        totals = totals + torch.stack([torch.ones_like(loss), right / len(labels), loss.detach()]) * len(labels)
    return totals

"""The search of channels: from all of them down to a budget, along a ramp.

The first epoch trains the head alone. Then channels leave at a hundred moments over the first part of the search, down
to the budget; the rest of the search trains what is left. Widths are multiples of `channels.multiple` throughout, so
that nothing is rounded afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from seam import evaluation
from seam.errors import UserError
from seam.evaluation import predict
from seam.log import log
from seam.masks.bits import pack_bits, unpack_groups
from seam.masks.channel_costs import ChannelTime, Cost, fewest, keep_best, macs_cost, weights_cost
from seam.masks.channels import ChannelGroups
from seam.masks.layers import unused_parameters
from seam.models.surgery import copy_module, copy_state
from seam.models.uses import count_uses
from seam.search.channel_training import ChannelMasks, ChannelTraining
from seam.search.inputs import first_images
from seam.search.mask_search import SELECTED_ON, Measure, SearchResult, is_evaluated
from seam.search.training import train_head
from seam.settings import TIMES, SearchSettings, budget_share, budget_unit, budget_words
from seam.training.adam import Adam
from seam.training.checkpoint import Checkpoint
from seam.training.distillation import Teacher
from seam.training.losses import class_loss
from seam.training.run import Batch, Batches, TrainingRun

ADVICE = "lower channels.lr, or lr_head of the budget"  # if the loss is not finite
RAMP = 0.6  # the share of the steps after the first epoch in which channels leave
FADE = 0.08  # the share of the steps in which the gate of a channel that leaves falls to 0
SETTLING = 0.05  # the share of the steps before the first channel leaves, so that masks know what they are worth
MOMENTS = 100  # at which channels leave
NEAR = 0.95  # of the budget; a branch that would leave less than this stays as long as channels can leave instead


class Ramp:
    """The share of the cost that is allowed after each step: from 1 to the budget along a cubic curve.

    It falls fast at first, where channels abound, and slowly at the end (Zhu and Gupta, "To prune, or not to prune",
    2017).
    """

    def __init__(self, budget: float, steps: int) -> None:
        """budget: the share of the cost to reach. steps: of the whole search, without those of the head alone."""
        self.budget = budget
        self.first, self.last = int(SETTLING * steps), max(int((RAMP - FADE) * steps), 1)
        self.every = max((self.last - self.first) // MOMENTS, 1)

    def is_due(self, step: int) -> bool:
        """Return whether channels leave after this step, counted from 1."""
        return self.first < step <= self.last and ((step - self.first) % self.every == 0 or step == self.last)

    def share(self, step: int) -> float:
        """Return the share of the cost that is allowed after this step."""
        way = min(max((step - self.first) / max(self.last - self.first, 1), 0.0), 1.0)
        return self.budget + (1 - self.budget) * (1 - way) ** 3


def search_channels(
    model: nn.Module,
    groups: ChannelGroups,
    batches: Batches,
    selection: Iterable[Batch],
    source_accuracy: float,
    settings: SearchSettings,
    checkpoint: Checkpoint | None = None,
    measure: Measure = evaluation.accuracy,
    layer_costs: Mapping[str, Any] | None = None,
    class_weights: Sequence[float] | None = None,
) -> SearchResult:
    """Search which channels of `model`, which `with_head` made, to keep within a budget; return the result.

    model: is changed in place. groups: of its source network. layer_costs: for a budget of time, the table that
    `seam.cost.channel_costs` measures. The other arguments are those of
    `seam.search.plain.search`. The result has the selected epoch's bits {group: bool
    [units]}, head and, if `train_weights` is set, all weights of the network. Only epochs within the budget are
    selected: the one with the best accuracy on `selection`.

    Random numbers come from torch's own generator: call `torch.manual_seed` before. Raises UserError if images, labels
    and model do not fit together, if the budget cannot be met, or if the loss is not finite. A search that fails or is
    interrupted leaves the network as it was, and the head trained.
    """
    network, head = model.get_submodule("source"), model.get_submodule("head")
    channels = settings.of_channels
    images = first_images(model, selection)
    retention = weights_cost(network, groups, unused_parameters(network, images))
    name, cost, budget = prepare_channel_budget(network, groups, images, settings, retention, layer_costs)
    widths = cost.widths(channels.multiple, budget, channels.branches)
    log.info("widths that a search may choose: %s", widths)
    teacher = None
    if channels.distillation and channels.train_weights:
        teacher = Teacher(copy_module(network), channels.distillation, channels.temperature)
    steps = max(settings.epochs - 1, 1) * len(batches)
    masks = ChannelMasks(network.requires_grad_(True), groups, max(int(FADE * steps), 1))
    ramp = Ramp(budget, steps)
    sizes = groups.unit_sizes()

    def remove(step: int) -> None:
        if ramp.is_due(step):
            price = cost.prices(masks.kept)
            # Removed channels do not return: their weights no longer train.
            worth = (sizes * masks.worth.cpu() + 1e-20).sqrt() / price.clamp(min=price.max().item() * 1e-6) * masks.kept
            limit, large = ramp.share(step), _too_large(groups, masks.kept, cost, NEAR * budget)
            kept = keep_best(worth.where(~large, torch.inf), groups, cost.share, limit, widths)
            if cost.share(kept) > limit:
                kept = keep_best(worth, groups, cost.share, limit, widths)
            masks.kept = kept

    device = next(head.parameters()).device
    of_batch = class_loss(class_weights, device)
    training = ChannelTraining(
        model, masks, teacher, lr=channels.lr, lr_head=settings.lr_head, steps=steps,
        train_weights=channels.train_weights, after_step=remove, loss=of_batch,
    )  # fmt: skip
    head_only = Adam([(list(head.parameters()), settings.lr_head)])
    run = TrainingRun(batches, {**training.parts, "head_only": head_only}, checkpoint, ADVICE)
    with _unchanged_on_failure(model), run:
        run.most_epochs = settings.epochs
        run.facts = {"source_accuracy": float(source_accuracy), "images": SELECTED_ON[settings.selection]}
        while run.epoch <= settings.epochs:
            phase = "head" if run.epoch == 1 else "masks"
            if phase == "head":
                model.eval()
            step = train_head(model, head_only, of_batch) if phase == "head" else training.begin_epoch()
            images, right, loss = run.train_epoch(step)
            accuracy = None
            if is_evaluated(run.epoch, settings):
                accuracy = float(measure(*predict(model, run.interruptible(selection))))
            share = cost.share(masks.kept)
            row = {
                "epoch": run.epoch,
                "phase": phase,
                "loss": loss / images,
                "cross_entropy": loss / images,
                "penalty": 0.0,
                "train_accuracy": right / images,
                "accuracy": accuracy,
                "retention": retention.share(masks.kept),
                "seconds": run.epoch_seconds(),
                "cost": share,
            }
            selected = None
            is_within = (share <= budget and masks.is_settled()) or run.epoch == settings.epochs
            if accuracy is not None and is_within and (run.selected is None or accuracy >= run.selected["accuracy"]):
                selected = {"accuracy": accuracy, "bits": pack_bits(masks.bits()), "head": copy_state(head)}
                selected["weights"] = copy_state(network) if channels.train_weights else None
            shown = "not evaluated" if accuracy is None else f"accuracy {accuracy:.4f}"
            log.info(
                "epoch %d/%d %-5s loss %.4f %s (source %.4f) cost left %.4f %.1f s%s",
                run.epoch, settings.epochs, phase, row["loss"], shown, source_accuracy, share, row["seconds"],
                " selected" if selected else "",
            )  # fmt: skip
            run.end_epoch({**row, "selected": int(selected is not None)}, selected)
    result = _result(run, groups)
    share = run.history[run.selected_epoch - 1]["cost"]
    result.budget = {"name": name, "limit": budget, "cost": share, "whole": cost.total, "met": share <= budget}
    return result


@contextlib.contextmanager
def _unchanged_on_failure(model: nn.Module) -> Iterator[None]:
    """Give the source network the weights that it has now if what runs in this context fails or is interrupted."""
    network = model.get_submodule("source")
    initial = copy_state(network)
    try:
        yield
    except BaseException:  # also Ctrl-C in a notebook, after which a search may begin on the same network
        network.load_state_dict(initial)
        network.requires_grad_(False)
        model.eval()
        raise


def _too_large(groups: ChannelGroups, kept: torch.Tensor, cost: Cost, least: float) -> torch.Tensor:
    """Return the branches, bool [units], of which a single one would leave less than `least` of the cost."""
    large = torch.zeros_like(kept)
    for unit in range(groups.count - len(groups.branches), groups.count):
        without = kept.clone()
        without[unit] = False
        large[unit] = bool(kept[unit]) and cost.share(without) < least
    return large


def prepare_channel_budget(
    network: nn.Module,
    groups: ChannelGroups,
    images: torch.Tensor,
    settings: SearchSettings,
    weights: Cost,
    layer_costs: Mapping[str, Any] | None = None,
) -> tuple[str, Cost, float]:
    """Return (name, cost, share of the cost that may be left) of the budget of `settings`.

    images: some of those that the network runs on. weights: the cost in weights. Raises UserError if the budget
    cannot be met.
    """
    assert settings.budget is not None
    channels = settings.of_channels
    unit = budget_unit(settings.budget)
    value = float(settings.budget[unit])
    cost: Cost
    if unit in TIMES:
        if layer_costs is None:
            raise UserError(
                f"A budget in {unit} needs a table of what layers take in the engine: run it by the workflow."
            )
        cost = ChannelTime(groups, layer_costs)
    elif unit == "weights":
        cost = weights
    else:
        cost = macs_cost(network, groups, count_uses(network, images))
    share = budget_share(unit, value, cost.total)
    least = cost.share(fewest(groups, cost.widths(channels.multiple, share, channels.branches)))
    name = f"{unit}: {value:g}"
    if least > share:
        raise UserError(
            f"A budget of {budget_words(unit, value)} cannot be met with widths that are multiples of "
            f"{channels.multiple}: they leave at least {budget_words(unit, least * value / share)}. Raise the budget "
            "above that, or lower channels.multiple."
        )
    if share >= 1:
        log.warning("a budget of %s is met by the source model itself", budget_words(unit, value))
    return name, cost, min(share, 1.0)


def _result(run: TrainingRun, groups: ChannelGroups) -> SearchResult:
    selected = run.selected
    bits = unpack_groups(selected["bits"], groups.sizes)
    return SearchResult(bits, selected["head"], run.history, run.selected_epoch, weights=selected["weights"])

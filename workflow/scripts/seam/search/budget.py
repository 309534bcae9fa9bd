"""A search that meets a budget: weights, multiply-accumulates (MACs) or milliseconds go in instead of alpha.

The first epoch trains the head and measures how much the loss depends on each mask. Masks then begin in that order.
After each step all masks are shifted by the same amount, down or up, until what they cost lies on a ramp that ends at
the budget. This is gradient descent with a multiplier of the penalty that is solved for in each step, instead of chosen
beforehand: Adam's step is that of the cross entropy alone. Masks cross zero one after the other, so that the network
never loses many weights at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from seam import evaluation
from seam.log import log
from seam.masks.biases import Biases
from seam.masks.bits import pack_bits
from seam.masks.costs import Cost, make_cost, relative_prices, require_reachable
from seam.masks.masks import Masks
from seam.precision import forward
from seam.search.distillation import Distillation
from seam.search.mask_search import MaskSearch, Measure, SearchResult, Tensors
from seam.search.training import MaskTraining, cosine
from seam.settings import SearchSettings, budget_share, budget_unit, budget_words
from seam.training.adam import Adam
from seam.training.losses import Loss
from seam.training.run import Step, TrainingRun

WITHIN = 1.05  # an epoch that costs up to this many times the budget can be selected
RAMP = 2 / 3  # of the steps that train masks; the rest is at the budget
POWER = 2.0  # of the ramp
SPREAD = (0.25, 1.75)  # of the masks at first
RATE_STEPS = 1500  # steps of a search whose masks learn at `lr_mask`; the rate falls with the root of their number
HALVINGS = 21  # of the interval in which the multiplier lies

BUDGET_ADVICE = "lower lr_mask or lr_head of the budget"  # if the loss is not finite


class Budget:
    """What the masks of a search may cost: a ramp from all down to the budget, and the shifts that follow it.

    share: the budget as a share of the source model's cost. name: as the config gives it, such as "weights: 0.1".
    saliency: {name: how much the loss depends on each mask, summed over batches}.
    """

    name = ""

    def __init__(
        self, masks: Masks, cost: Cost, share: float, steps: int, prices: Mapping[str, float] | None = None
    ) -> None:
        """steps: that train masks. prices: the penalty, as `relative_prices` returns it; by default the cost's own."""
        self.masks, self.cost, self.share, self.steps = masks, cost, share, steps
        self.prices = relative_prices(cost, masks) if prices is None else prices
        self.ramp = max(RAMP * steps, 1.0)
        self.saliency = {name: torch.zeros_like(value) for name, value in masks.values.items()}
        self.counter = torch.zeros((), device=next(iter(masks.values.values())).device)  # steps done

    @torch.no_grad()
    def observe(self) -> None:
        """Add what the gradient of a batch says of each mask: |g * w|, as in SNIP (Lee et al., ICLR 2019)."""
        self.masks.backward(0.0)
        for name, value in self.masks.values.items():
            assert value.grad is not None
            self.saliency[name] += value.grad.abs()
            value.grad = None

    @torch.no_grad()
    def order(self) -> None:
        """Set the masks in the order of their saliency per price, over all layers; equal ones by magnitude."""
        values, low, high = self.masks.values, *SPREAD
        worth = []
        for name, saliency in self.saliency.items():
            magnitude = self.masks.weights[name].abs()
            relative = saliency + 1e-12 * magnitude / magnitude.mean().clamp(min=1e-12)
            worth.append((relative / max(self.prices[name], 1e-12)).flatten())
        rank = torch.cat(worth).argsort(stable=True).argsort()
        spread = low + (high - low) * rank / max(len(rank) - 1, 1)
        for value, part in zip(
            values.values(), spread.split([value.numel() for value in values.values()]), strict=True
        ):
            value.copy_(part.view(value.shape))
        for saliency in self.saliency.values():
            saliency.zero_()

    def target(self) -> torch.Tensor:
        """Return the share of the cost that the ramp allows now, []."""
        rest = (1 - self.counter / self.ramp).clamp(min=0)
        return self.share + (1 - self.share) * rest**POWER

    @torch.no_grad()
    def step(self) -> None:
        """Go to the next step: shift the masks so that they cost what the ramp allows, and apply them."""
        self.counter += 1
        target, values = self.target(), self.masks.values
        most = {name: value.max() for name, value in values.items()}
        low = torch.stack([value.min() for value in values.values()]).min() - 1e-3
        high = torch.stack(list(most.values())).max()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            kept = {name: value > threshold(middle, most[name]) for name, value in values.items()}
            within = self.cost.share(kept) <= target
            high, low = torch.where(within, middle, high), torch.where(within, low, middle)
        for name, value in values.items():
            value.sub_(threshold(high, most[name]))
        self.masks.apply()

    @torch.no_grad()
    def cost_share(self) -> float:
        """Return what the masks cost now, as a share of the source model's cost."""
        return float(self.cost.share({name: value > 0 for name, value in self.masks.values.items()}))

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps done, and the saliency itself, not a copy."""
        return {"steps": int(self.counter), "saliency": self.saliency}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.counter.fill_(state["steps"])
        for name, saliency in self.saliency.items():
            saliency.copy_(state["saliency"][name])


def threshold(multiplier: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """Return what a mask must exceed to be kept: the multiplier, but less than the highest mask, `most`."""
    return torch.nextafter(torch.minimum(multiplier, most), torch.full_like(most, -torch.inf))


class BudgetTraining(MaskTraining):
    """The training of a search that meets a budget. The phase `head` also observes the masks, and no bias changes."""

    def begin_epoch(self, phase: str) -> Step:
        """Put the model into training mode for an epoch of this phase; return the phase's step."""
        step = super().begin_epoch(phase)
        self.masks.train()
        return step


class BudgetSearch(MaskSearch):
    """One search that meets a budget. The first epoch trains the head alone, the others masks and head."""

    def __init__(
        self,
        run: TrainingRun,
        settings: SearchSettings,
        source_accuracy: float,
        budget: Budget,
        name: str | None = None,
        measure: Measure = evaluation.accuracy,
        biases: Biases | None = None,
    ) -> None:
        """biases: that are trained beside the masks."""
        super().__init__(run, settings, source_accuracy, name, measure)
        self.budget, self.biases = budget, biases

    def has_next_epoch(self) -> bool:
        """Return whether the search has another epoch: it runs all of them."""
        return self.run.epoch <= self.settings.epochs

    def begin_epoch(self) -> str:
        """Return the phase of the epoch: `head` for the first, then `masks`, which begin in order."""
        if self.run.epoch == 2 and self.run.batch == 0:
            self.budget.order()
        return "head" if self.run.epoch == 1 else "masks"

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
        """Log the epoch, select it if it is the best so far, and record it with what it costs (`cost`)."""
        cost = self.budget.cost_share()
        row = {"epoch": self.run.epoch, "phase": phase} | self._figures(sums, retention, accuracy, share)
        selected = None
        if accuracy is not None:
            rank = rank_within_budget(accuracy, cost, self.budget.share)
            if self.run.selected is None or rank >= tuple(self.run.selected["rank"]):
                shifts = {} if self.biases is None else self.biases.shifts()
                selected = {"rank": rank, "bits": pack_bits(bits()), "head": head(), "shifts": shifts}
        self._log(row, f" cost {cost:.4f}" + " selected" * bool(selected))
        self.run.end_epoch({**row, "cost": cost, "selected": int(selected is not None)}, selected, save)

    def result(self, network: nn.Module) -> SearchResult:
        """Return the result of a search that has ended, with what it costs; `network` is the masked one."""
        result = super().result(network)
        result.shifts = self.run.selected["shifts"]
        cost = result.history[result.selected_epoch - 1]["cost"]
        limit, total = self.budget.share, self.budget.cost.total
        met = cost <= WITHIN * limit
        result.budget = {"name": self.budget.name, "limit": limit, "cost": cost, "whole": total, "met": met}
        if not met:
            log.warning(
                "the budget %s is not met: the result costs %.4f, the budget is %.4f of the source model's cost",
                self.budget.name,
                cost,
                limit,
            )
        return result


def rank_within_budget(accuracy: float, cost: float, budget: float) -> tuple[float, ...]:
    """Return the rank of an epoch: the highest is selected, the last of equal ones, whose rates were the lowest.

    Epochs within WITHIN times the budget are compared by accuracy, and rank above all others. These are compared by
    how little they cost.
    """
    return (1.0, accuracy) if cost <= WITHIN * budget else (0.0, -cost)


def prepare_budget(
    masks: Masks,
    network: nn.Module,
    images: torch.Tensor,
    settings: SearchSettings,
    batches: int,
    layer_costs: Mapping[str, Any] | None = None,
) -> Budget:
    """Return the budget of `settings` for masks on a network.

    images: some of those that it runs on. batches: the number in an epoch. layer_costs: see `latency_cost`. Raises
    UserError if it cannot be met.
    """
    assert settings.budget is not None
    unit = budget_unit(settings.budget)
    cost = make_cost(unit.removesuffix("_ms"), masks, network, images, layer_costs)
    value = float(settings.budget[unit])
    share = budget_share(unit, value, cost.total)
    require_reachable(cost, masks, share, unit, value)
    if share >= 1:
        log.warning("a budget of %s is met by the source model itself", budget_words(unit, value))
    prices = relative_prices(make_cost(settings.price, masks, network, images, layer_costs), masks)
    budget = Budget(masks, cost, min(share, 1.0), (settings.epochs - 1) * batches, prices)
    budget.name = f"{unit}: {value:g}"
    return budget


def prepare_budget_training(
    model: nn.Module,
    head: nn.Module,
    masks: Masks,
    budget: Budget,
    settings: SearchSettings,
    distillation: Distillation | None = None,
    loss: Loss = cross_entropy,
    biases: Biases | None = None,
) -> MaskTraining:
    """Return the training of a search that meets a budget. Rates fall to zero along a cosine."""
    if distillation is not None:
        distillation.label_loss = None if loss is cross_entropy else loss
        loss = distillation.loss
    steps = max(budget.steps, 1)
    return BudgetTraining(
        model, head, masks, lr_mask=settings.lr_mask * math.sqrt(RATE_STEPS / steps), lr_head=settings.lr_head,
        biases=biases, lr_bias=bias_rate(settings, steps),
        alpha=0.0, rate_factor=cosine(steps), loss=loss, constraint=budget,
        head_step=lambda optimizer: observing_step(model, optimizer, budget, loss),
        wrap=None if distillation is None else distillation.observed,
    )  # fmt: skip


def bias_rate(settings: SearchSettings, steps: int) -> float:
    """Return Adam's learning rate for the biases in a search with so many steps; 0: they are not trained.

    Unlike that of the masks, it does not rise if there are fewer steps than RATE_STEPS: large steps end in channels
    that are below zero for all images.
    """
    return (settings.budget or {}).get("lr_bias", 0.0) * math.sqrt(min(RATE_STEPS / max(steps, 1), 1.0))


def observing_step(model: nn.Module, optimizer: Adam, budget: Budget, loss: Loss) -> Step:
    """Return a training step of the head that also observes how much the loss depends on each mask."""

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = forward(model, images)
        value = loss(logits, labels)
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.step()
        budget.observe()
        return logits, value

    return step

"""What masks cost: the share of the source model's weights, multiply-accumulates or time that is left.

A budget limits such a share, and a penalty sets what each kept weight costs in the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from seam.errors import UserError
from seam.log import log
from seam.masks.masks import Masks
from seam.models.uses import count_uses
from seam.precision import widest_type
from seam.settings import budget_words


class Cost(Protocol):
    """A function of the masks. It must not fall when a mask is added.

    total: what the model costs with all its weights, in the unit of a budget (weights, MACs, milliseconds).
    """

    total: float

    def share(self, kept: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what is left of the cost if the masks `kept` {name: bool} are kept: [] on their device, 1 for all."""
        ...

    def prices(self) -> Mapping[str, float]:
        """Return {name: how much the share falls if one mask of this parameter is removed}."""
        ...


class LinearCost:
    """A cost that is a sum over the kept weights, and a fixed part that no mask removes."""

    def __init__(self, price: Mapping[str, float], masks: Masks, fixed: float = 0.0) -> None:
        """price: what one kept weight of each parameter costs. fixed: what everything else costs."""
        counts = {name: value.numel() for name, value in masks.values.items()}
        self.fixed, self.price = fixed, {name: price.get(name, 0.0) for name in counts}
        self.total = fixed + sum(self.price[name] * count for name, count in counts.items())
        self.on_device: dict[torch.device, torch.Tensor] = {}  # the prices, in the order of the masks

    def share(self, kept: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the share of the cost that is left."""
        counts = torch.stack([bits.count_nonzero() for bits in kept.values()])
        device = counts.device
        if device not in self.on_device:  # made once: a CUDA graph must not copy from the host
            prices = [self.price[name] for name in kept]
            self.on_device[device] = torch.tensor(prices, dtype=widest_type(device), device=device)
        prices = self.on_device[device]
        return (self.fixed + (prices * counts.to(prices.dtype)).sum()) / self.total

    def prices(self) -> Mapping[str, float]:
        """Return what each mask of a parameter adds to the share."""
        return {name: price / self.total for name, price in self.price.items()}


def make_cost(
    unit: str,
    masks: Masks,
    network: nn.Module,
    images: torch.Tensor,
    layer_costs: Mapping[str, Any] | None = None,
) -> Cost:
    """Return what masks on a network cost in `unit`: weights, macs or latency.

    images: some of those that the network runs on. layer_costs: see `latency_cost`, which alone needs them.
    """
    if unit == "latency":
        if layer_costs is None:
            raise UserError(
                "A cost in latency needs a table of what layers cost in the engine: run it by the workflow."
            )
        return latency_cost(masks, layer_costs, dict(network.named_parameters(remove_duplicate=False)))
    if unit == "macs":
        return macs_cost(masks, count_uses(network, images), dict(network.named_parameters(remove_duplicate=False)))
    if unit == "weights":
        return weights_cost(masks)
    raise UserError(f"The cost {unit} is not known: choose weights, macs or latency.")


def latency_cost(masks: Masks, layer_costs: Mapping[str, Any], parameters: Mapping[str, torch.Tensor]) -> LinearCost:
    """Return the milliseconds of a batch in an engine as a cost.

    layer_costs: `weight_ms` {name: milliseconds of one kept weight} and `fixed_ms`, as `seam.cost.layer_costs` measures
    them. parameters: all of the model. Weights without masks count as fixed. Biases cost nothing.
    """
    times = layer_costs["weight_ms"]
    unmasked = sum(time * parameters[name].numel() for name, time in times.items() if name not in masks.values)
    return LinearCost({name: times.get(name, 0.0) for name in masks.values}, masks, layer_costs["fixed_ms"] + unmasked)


def relative_prices(cost: Cost, masks: Masks) -> dict[str, float]:
    """Return {name: the price of a mask of this parameter}, 1 in the mean over all masks.

    Raises UserError if all prices are 0.
    """
    prices = cost.prices()
    total = sum(prices[name] * value.numel() for name, value in masks.values.items())
    if not total:
        raise UserError("None of the weights that the search may remove costs anything: set penalty: weights.")
    return {name: prices[name] * masks.count / total for name in masks.values}


def penalty_share(cost: Cost, masks: Masks) -> float:
    """Return the part of the cost that masks can remove, as a share: 1 if all are kept, 0 if none is."""
    kept = {name: value > 0 for name, value in masks.values.items()}
    prices = relative_prices(cost, masks)
    return sum(prices[name] * int(bits.count_nonzero()) for name, bits in kept.items()) / masks.count


def weights_cost(masks: Masks) -> LinearCost:
    """Return the retention as a cost: each kept weight and bias counts 1."""
    return LinearCost(dict.fromkeys(masks.values, 1.0), masks)


def macs_cost(masks: Masks, uses: Mapping[str, float], parameters: Mapping[str, torch.Tensor]) -> LinearCost:
    """Return the multiply-accumulates (MACs) for one image as a cost.

    uses: of each weight, from `seam.models.uses.count_uses`. parameters: all of the model. Weights without masks count
    as fixed. Biases cost nothing, as `seam.cost.macs` counts them. Raises UserError if no weight has uses, and warns of
    weights with masks that have none.
    """
    if not uses:
        raise UserError("No multiply-accumulates are found in the model: set a budget or penalty of weights.")
    free = [
        name
        for name, value in masks.values.items()
        if value.dim() > 1 and name not in uses and "bias" not in name.rpartition(".")[2]
    ]
    if free:
        log.warning(
            "no MACs are counted for %s (parameters: %d): no convolution or linear operation multiplies by them "
            "directly, so that a budget of MACs leaves them out",
            ", ".join(free[:3]) + ", ..." * (len(free) > 3), len(free),
        )  # fmt: skip
    fixed = sum(times * parameters[name].numel() for name, times in uses.items() if name not in masks.values)
    return LinearCost({name: uses.get(name, 0.0) for name in masks.values}, masks, fixed)


def require_reachable(cost: Cost, masks: Masks, share: float, unit: str, value: float) -> None:
    """Raise UserError if one kept mask of each parameter costs more than `share`, the budget of `value` in `unit`."""
    kept = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in masks.values.items()}
    for bits in kept.values():
        bits[(0,) * bits.dim()] = True
    least = cost.share(kept).item()
    if least >= share:
        raise UserError(
            f"A budget of {budget_words(unit, value)} cannot be met: layers without masks stay whole, and each other "
            f"layer keeps at least one weight, which leaves {budget_words(unit, least * value / share)}. Raise the "
            "budget above that."
        )

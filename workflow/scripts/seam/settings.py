"""The hyper-parameters of every procedure, with their defaults.

`workflow/schemas/config.schema.yaml` describes each of them and has the same defaults, which a test checks. This module
imports neither torch nor anything else of the package, so that reading it costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

UNITS = ("weights", "macs", "latency", "latency_ms")  # of budgets
TIMES = ("latency", "latency_ms")  # of UNITS: a share of the source model's time, and milliseconds
PENALTIES = ("weights", "macs", "latency")  # what a kept weight costs
BUDGET_SEARCH = {"epochs": 30, "batch_size": 0, "lr_mask": 0.01, "lr_head": 0.005}  # of a search that meets a budget
NOT_OF_CHANNELS = ("lr_mask", "distillation", "lr_bias")  # of budgets: they have no effect on searches of channels
BUDGET_OPTIONS = {"distillation": 0.7, "lr_bias": 0.01}  # that stay in `budget` of the settings
BUDGET_KEYS = (*UNITS, *BUDGET_SEARCH, *BUDGET_OPTIONS, "engine", "batch")  # that `budget` of the config can have
BATCH_SIZES = (64, 32, 16)  # that `choose_batch_size` chooses from
BUDGET_STEPS = 1500  # that such a search has at least, if its batch size is chosen

# The ranges of settings that differ from 0 and more; tests compare them with the schema of the config.
LEAST = {"epochs": 1, "batch_size": 2, "head_every": 2, "patience": 1, "evaluate_every": 1, "multiple": 1}
POSITIVE = ("lr_mask", "lr_head", "lr", "temperature", "holdout", *UNITS)
MOST = {"cutmix": 1.0, "tolerance": 1.0, "holdout": 0.5, "weights": 1.0, "latency": 1.0}
# That a program may also set to 0: the batch size is then chosen, the masks or the head stay, nothing is held out.
MAY_BE_ZERO = ("batch_size", "lr_mask", "lr_head", "holdout")

DISTILLED = "-distilled"  # the end of the name of a baseline that learns the source model's answers
RECOVERED = "-recovered"  # the end of the name of a baseline that gets the recovery of the search, too
# Baselines of searches of channels: see seam.reuse.channel_baselines. All others are of searches of single weights.
CHANNEL_BASELINES = tuple(
    name + end
    for name in (
        *("widths-scratch", "widths-magnitude", "widths-taylor"),
        *("uniform-scratch", "uniform-magnitude", "uniform-taylor", "finetuned"),
    )
    for end in ("", DISTILLED)
)


def is_in_range(name: str, value: Any) -> bool:
    """Return whether the value of a setting is in its range, or no number at all."""
    if not isinstance(value, (int, float)):
        return True
    return LEAST.get(name, 0) <= value <= MOST.get(name, 1e12) and not (name in POSITIVE and value == 0)


def range_words(name: str) -> str:
    """Return the range of a setting, as it follows `a number`.

    >>> range_words("lr_mask"), range_words("head_every"), range_words("holdout")
    (' above 0', ' of at least 2', ' above 0 and at most 0.5')
    """
    words = " above 0" if name in POSITIVE else f" of at least {LEAST.get(name, 0)}"
    return words + (f" and at most {MOST[name]:g}" if name in MOST else "")


def require_in_range(name: str, value: Any, owner: str = "") -> None:
    """Raise ValueError unless a program may give a setting this value. owner: follows the name in the sentence."""
    if not is_in_range(name, value) and not (name in MAY_BE_ZERO and value == 0):
        raise ValueError(f"{name}{owner} is {value!r}: it must be a number{range_words(name)}.")


@dataclass(frozen=True)
class TrainingSettings:
    """How a source model is trained: `training` of the config."""

    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0005
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class ChannelSettings:
    """How a search of channels differs from one of single weights: `search.channels` of the config."""

    multiple: int = 8
    branches: bool = True
    train_weights: bool = True
    lr: float = 0.001
    distillation: float = 1.0
    temperature: float = 2.0


@dataclass(frozen=True)
class SearchSettings:
    """How the masks of a target problem are searched in direct reuse: `search` of the config.

    `search_settings` makes one from the config. batch_size: 0 for the one that `choose_batch_size` returns. penalty:
    what a kept weight costs, one of PENALTIES; None: what the budget is counted in, weights without a budget. budget:
    {unit: what may be kept} for the schedule `budget`, see `budget_unit`. granularity: what a mask stands for, `weight`
    or `channel`. channels: {name: value} of `ChannelSettings`. Raises ValueError if the schedule, the selection, the
    penalty, the budget or the granularity is unknown, or if a number is out of its range.
    """

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
    evaluate_every: int = 1
    penalty: str | None = None
    budget: Mapping[str, Any] | None = None
    granularity: str = "weight"
    channels: Mapping[str, Any] | None = None
    balance: str = "auto"
    few_images: int = 50
    initial_head: str = "random"

    def __post_init__(self) -> None:
        schedules = ("published", "fast") if self.budget is None else ("budget",)
        for name, choices in (
            ("schedule", schedules), ("selection", ("holdout", "last", "test")), ("penalty", (None, *PENALTIES)),
            ("balance", ("auto", "always", "never")), ("initial_head", ("random", "source")),
            ("granularity", ("weight", "channel")),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                options = ", ".join(choice for choice in choices if choice)
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {options}.")
        for name, value in asdict(self).items():
            require_in_range(name, value)
        if self.budget is not None:
            check_budget(self.budget)

    @property
    def price(self) -> str:
        """What a kept weight costs: one of PENALTIES."""
        if self.penalty is not None or self.budget is None:
            return self.penalty or "weights"
        return budget_unit(self.budget).removesuffix("_ms")

    @property
    def can_share_a_pass(self) -> bool:
        """Whether such searches can be stacked: those with a budget or a penalty by cost cannot."""
        return self.budget is None and self.price == "weights"

    @property
    def of_channels(self) -> ChannelSettings:
        """The settings of a search of channels, complete."""
        return ChannelSettings(**(self.channels or {}))

    def recorded(self) -> dict[str, Any]:
        """Return the settings as results and checkpoints record them: without those of OPTIONAL at their defaults."""
        return without_defaults(asdict(self), OPTIONAL)


# Settings of a search that results record only where they are not these defaults.
OPTIONAL: dict[str, Any] = {
    "penalty": None,
    "budget": None,
    "granularity": "weight",
    "channels": None,
    "balance": "auto",
    "few_images": 50,
    "initial_head": "random",
}


# The same of a search of indirect reuse.
OPTIONAL_OF_THRESHOLDS: dict[str, Any] = {"initial_masks": "equal"}


def without_defaults(settings: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the optional ones at their defaults, so that results are those of earlier versions."""
    return {name: value for name, value in settings.items() if value != optional.get(name, ...)}


# What a search with few images takes instead of its own settings: docs/search.md has the measurements.
FEW_IMAGES: dict[str, Any] = {
    **{"schedule": "fast", "epochs": 60, "lr_mask": 0.02, "lr_head": 0.01},
    **{"initial_head": "source", "selection": "last"},
}
ALPHA_PER_IMAGE = 0.02  # of the smallest class: with few images, alpha is at most so much for each


def for_few_images(settings: SearchSettings, fewest: int) -> SearchSettings:
    """Return the settings of a search whose smallest class has `fewest` training images.

    They are `settings` itself, unless these are at most `few_images`. Searches with a budget or of channels, which
    learn from the source model, keep their own.
    """
    if fewest > settings.few_images or settings.budget is not None or settings.granularity == "channel":
        return settings
    alpha = min(settings.alpha, ALPHA_PER_IMAGE * fewest)
    return replace(settings, **FEW_IMAGES, alpha=alpha)


def budget_unit(budget: Mapping[str, Any]) -> str:
    """Return what a budget is counted in, one of UNITS. Raises ValueError unless it gives exactly one of them."""
    units = [unit for unit in UNITS if budget.get(unit) is not None]
    if len(units) != 1:
        raise ValueError(f"A budget gives one of {', '.join(UNITS)}; this one gives {', '.join(units) or 'none'}.")
    return units[0]


def check_budget(budget: Any) -> None:
    """Raise ValueError unless a budget gives one unit, and otherwise keys that it can have, in their ranges."""
    if not isinstance(budget, Mapping):
        raise ValueError(f"A budget is a mapping, such as {{'weights': 0.25}}, and not {budget!r}.")
    if unknown := sorted(map(str, budget.keys() - set(BUDGET_KEYS))):
        raise ValueError(f"A budget has no key {unknown[0]}: it can have {', '.join(BUDGET_KEYS)}.")
    budget_unit(budget)
    for name, value in budget.items():
        require_in_range(name, value, " of the budget")
    if (budget.get("distillation") or 0) > 1:
        raise ValueError(f"distillation of the budget is {budget['distillation']!r}: it must be at most 1.")


def budget_share(unit: str, value: float, total: float) -> float:
    """Return the share of the source model's cost that a budget allows.

    total: what the source model costs, in the budget's unit.

    >>> budget_share("macs", 0.25, 41e6), budget_share("macs", 10.25e6, 41e6), budget_share("latency_ms", 2.0, 8.0)
    (0.25, 0.25, 0.25)
    """
    return value if unit in ("weights", "latency") or (unit == "macs" and value <= 1) else value / total


def budget_words(unit: str, value: float) -> str:
    """Return a budget as a sentence names it.

    >>> budget_words("weights", 0.25), budget_words("macs", 10e6), budget_words("latency_ms", 0.5)
    ('25 % of the weights', '10,000,000 MACs', '0.5 ms')
    """
    if unit == "latency_ms":
        return f"{value:g} ms"
    if unit == "macs" and value > 1:
        return f"{value:,.0f} MACs"
    nouns = {"weights": "weights", "macs": "MACs", "latency": "time"}
    return f"{100 * value:.4g} % of the {nouns[unit]}"


def choose_batch_size(images: int, epochs: int) -> int:
    """Return the batch size of a search that meets a budget: the largest that leaves BUDGET_STEPS steps, at least 16.

    images: the number of training images. A search needs steps more than it needs exact gradients.
    """
    return next((size for size in BATCH_SIZES if images * epochs >= size * BUDGET_STEPS), BATCH_SIZES[-1])


def search_settings(search: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters of a search, sorted, from `search` of the config, as `SearchSettings` takes them.

    With a budget, the schedule is `budget`. Its epochs and rates are the keys that `budget` itself has, or the
    defaults of BUDGET_SEARCH: those in `search` belong to the other schedules, and with alpha, patience and the like
    have no effect, so that they return to their defaults. Settings that are not given are left out. Raises ValueError
    if the budget has another key, or a number out of its range.

    >>> search_settings({"epochs": 300, "lr_mask": 0.12, "budget": {"weights": 0.1, "epochs": 60}})["epochs"]
    60
    """
    settings = without_defaults(search, OPTIONAL)
    if settings.get("granularity") == "channel":
        channels = asdict(ChannelSettings(**settings.get("channels", {})))
        settings["channels"] = dict(sorted(channels.items()))
    else:
        settings.pop("channels", None)
    if budget := settings.get("budget"):
        check_budget(budget)
        given_values = {name: value for name, value in budget.items() if name in BUDGET_SEARCH and value is not None}
        settings = {name: value for name, value in settings.items() if name in SHARED}
        settings |= BUDGET_SEARCH | given_values | {"schedule": "budget", "alpha": 0.0}
        given = {name: value for name, value in budget.items() if name not in BUDGET_SEARCH and value is not None}
        options = {} if settings.get("granularity") == "channel" else BUDGET_OPTIONS
        settings["budget"] = dict(sorted((options | given).items()))
    return dict(sorted(settings.items()))


SHARED = ("selection", "holdout", "evaluate_every", *OPTIONAL)  # that budgets leave in effect


@dataclass(frozen=True)
class RecoverySettings:
    """How a re-engineered model is trained after its search: `recovery` of the config. 0 epochs: not at all."""

    epochs: int = 0
    batch_size: int = 64
    lr: float = 0.001
    lr_head: float = 0.005
    distillation: float = 1.0
    temperature: float = 2.0
    fresh_negatives: bool = False
    train_batch_norm: bool = True
    cutmix: float = 0.0


@dataclass(frozen=True)
class TransferSettings:
    """What all steps of indirect reuse share: the keys of `transfer` of the config that are no block.

    last_layer: the name of the source model's last layer, or None to find it (an entry of `models` has it).
    """

    batch_size: int = 64
    selection: str = "holdout"
    holdout: float = 0.1
    last_layer: str | None = None


@dataclass(frozen=True)
class LastLayerSettings:
    """How a new last layer is trained while all other layers stay as they are: `transfer.head` of the config."""

    epochs: int = 300
    patience: int = 30
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0001


@dataclass(frozen=True)
class ThresholdSearchSettings:
    """How the masks of indirect reuse are searched: `transfer.search` of the config.

    initial_masks: `equal` or `magnitude`, the order in which weights are removed unless the loss says otherwise. Raises
    ValueError if it is unknown.
    """

    epochs: int = 300
    lr_mask: float = 0.05
    lr_last: float = 0.001
    alpha: float = 0.5
    initial_masks: str = "equal"

    def __post_init__(self) -> None:
        if self.initial_masks not in ("equal", "magnitude"):
            raise ValueError(f"initial_masks is {self.initial_masks!r}: choose one of equal, magnitude.")


@dataclass(frozen=True)
class FinetuningSettings:
    """How a student is trained: `transfer.finetune` of the config, and with other defaults `standard` and `retrain`."""

    epochs: int = 300
    patience: int = 30
    lr: float = 0.005
    lr_last: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0001
    keep_zeros: bool = False


@dataclass(frozen=True)
class RemosSettings(FinetuningSettings):
    """How a student by ReMoS is made: `transfer.remos` of the config.

    ratio: the share of the convolutions' weights that are removed. coverage: the mean of a channel's scaled values from
    which an image covers it.
    """

    patience: int = 300
    ratio: float = 0.1
    coverage: float = 0.5


@dataclass(frozen=True)
class AttackSettings:
    """How test images are perturbed against a source model, in normalised space: `attack` of the config."""

    eps: float = 0.1
    step: float = 0.01
    steps: int = 40
    clip: tuple[float, float] = (-2.2, 2.2)
    target: float = 1000.0
    weight: float = 0.1
    batch_size: int = 64

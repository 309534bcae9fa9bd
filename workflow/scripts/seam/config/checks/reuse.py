"""Check `stack`, and the entries of `direct_reuse` and `indirect_reuse`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from seam.config.checks.datasets import check_image_size
from seam.config.entries import direct_entries, folder_name, indirect_entries, targets_of
from seam.config.wording import require_known_names, shown
from seam.errors import UserError
from seam.settings import CHANNEL_BASELINES, NOT_OF_CHANNELS, RECOVERED, TIMES, budget_unit


def check_stack(config: dict[str, Any]) -> None:
    """Raise UserError if searches are to be stacked on a CPU."""
    if config["stack"] > 1 and config["device"] == "cpu":
        raise UserError(
            f"stack is {config['stack']}, but device is cpu, on which a stack of searches is slower than the same "
            "searches one by one: set stack to 1, or name another device."
        )


def check_direct_reuse(config: dict[str, Any], classes: dict[str, Sequence[str] | None]) -> None:
    """Raise UserError for an unknown model, target or override, or if two targets share a result folder.

    classes: {data set: its class names, or None if its data are not given}.
    """
    first_use: dict[tuple[str, str, str], tuple[str, str]] = {}  # (key, target) by result folder
    for key, entry in direct_entries(config):
        _check_model_name(key, entry, config)
        name = config["models"][entry["model"]]["dataset"]
        targets = targets_of(key, entry, config["datasets"][name], classes[name])
        for target in targets:
            folder = folder_name(target)
            first_key, first_target = first_use.setdefault((entry["model"], entry["problem"], folder), (key, target))
            if (first_key, first_target) != (key, target):
                raise UserError(
                    f"{key}.targets names {shown(target)}, but {first_key}.targets has {shown(first_target)} for the "
                    f"same model and problem, with results in the same folder ({folder}): leave one out or rename it."
                )
        for place, search in _searches(config, key, entry):
            check_budget(place, search.get("budget"))
        _check_channels(key, entry, config)
        _check_recovered_baselines(key, entry, config)
        if classes[name] is not None:
            require_known_names(f"{key}.overrides", entry.get("overrides", {}), targets, "a target of this entry")


def _searches(config: dict[str, Any], key: str, entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the settings of searches that apply to an entry of `direct_reuse`, each with its key."""
    yield "search", config["search"]
    yield f"{key}.search", entry.get("search", {})
    for target, search in entry.get("overrides", {}).items():
        yield f"{key}.overrides.{target}", search


def check_budget(key: str, budget: dict[str, Any] | None) -> None:
    """Raise UserError unless a budget gives one unit, and `engine` and `batch` only with latency."""
    if budget is None:
        return
    try:
        unit = budget_unit(budget)
    except ValueError as error:
        raise UserError(f"{key}.budget: {error}") from error
    for name in ("engine", "batch"):
        if name in budget and unit not in TIMES:
            raise UserError(f"{key}.budget has {name}, which only a budget in {' or '.join(TIMES)} takes: remove it.")


def _check_channels(key: str, entry: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise UserError if an entry searches channels without a budget that such a search can meet."""
    search = {**config["search"], **entry.get("search", {})}
    baselines = entry.get("baselines", config["baselines"])
    for place, settings in {
        f"{key}.search": search,
        **{
            f"{key}.overrides.{target}": {**search, **override}
            for target, override in entry.get("overrides", {}).items()
        },
    }.items():
        budget = settings.get("budget")
        if settings["granularity"] == "channel" and not budget:
            raise UserError(
                f"{place} has granularity: channel and no budget, without which a search of channels has no end: add "
                "one, such as budget: {macs: 0.25}."
            )
        engine = (budget or {}).get("engine", "seam")
        if settings["granularity"] == "weight" and engine != "seam":
            raise UserError(
                f"{place}.budget is for {engine}, which gains nothing from weights that are zero: set engine: seam, or "
                "granularity: channel, or give a budget in weights or macs."
            )
        is_channel = settings["granularity"] == "channel"
        unused = [f"budget.{name}" for name in NOT_OF_CHANNELS if (budget or {}).get(name) is not None]
        unused += ["penalty"] if settings.get("penalty") is not None else []
        if is_channel and unused:
            raise UserError(f"{place} searches channels, on which {unused[0]} has no effect: leave it out.")
        for name in baselines:
            if (name in CHANNEL_BASELINES) != is_channel:
                fitting = "widths-scratch or finetuned" if is_channel else "head or magnitude"
                raise UserError(
                    f"{place} has granularity: {settings['granularity']}, with which the baseline {name} cannot be "
                    f"compared: give the entry baselines of its own, such as {fitting}, or baselines: []."
                )


def _check_recovered_baselines(key: str, entry: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise UserError if a baseline of an entry needs a recovery that the entry's models do not have."""
    if {**config["recovery"], **entry.get("recovery", {})}["epochs"]:
        return
    for name in entry.get("baselines", config["baselines"]):
        if name.endswith(RECOVERED):
            raise UserError(
                f"{key} has the baseline {name}, but its models have no recovery (recovery.epochs is 0): give the "
                "entry one, such as recovery: {epochs: 20}, or baselines of its own without it."
            )


def check_indirect_reuse(config: dict[str, Any]) -> None:
    """Raise UserError for an unknown name, a data set that comes twice, or thresholds that do not fit together."""
    first_use: dict[tuple[str, str], str] = {}  # key by model and data set
    _check_clip("attack.clip", config["attack"])
    for key, entry in indirect_entries(config):
        _check_model_name(key, entry, config)
        known = config["datasets"]
        require_known_names(f"{key}.datasets", entry["datasets"], known, "the name of a data set under datasets")
        for name in entry["datasets"]:
            first_key = first_use.setdefault((entry["model"], name), key)
            if first_key != key:
                raise UserError(
                    f"{key}.datasets names {shown(name)}, but {first_key}.datasets names it for the same model: "
                    "leave one out."
                )
            beginning = f"{key}.model is {shown(entry['model'])}, of the architecture"
            check_image_size(beginning, config["models"][entry["model"]], name, config["datasets"][name])
        for place, threshold in enumerate(entry["thresholds"]):
            if round(threshold, 3) != threshold:  # it is part of a folder's name
                raise UserError(f"{key}.thresholds[{place}] is {threshold}, but may have three decimals at most.")
        for threshold in entry["compare_at"] or []:
            if threshold not in entry["thresholds"]:
                known = shown(entry["thresholds"]).removeprefix("the list ")
                raise UserError(f"{key}.compare_at names {threshold}, but must be among thresholds: {known}.")
        overrides = entry.get("overrides", {})
        require_known_names(f"{key}.overrides", overrides, entry["datasets"], "a data set of this entry")
        _check_clip(f"{key}.attack.clip", entry.get("attack", {}))


def _check_model_name(key: str, entry: dict[str, Any], config: dict[str, Any]) -> None:
    require_known_names(f"{key}.model", [entry["model"]], config["models"], "the name of a model under models")


def _check_clip(key: str, attack: dict[str, Any]) -> None:
    low, high = attack.get("clip", (0, 1))
    if low >= high:
        raise UserError(f"{key} is {shown(attack['clip'])}, but its first value must be less than its second.")

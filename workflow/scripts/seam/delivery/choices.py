"""What a person writes on the command line, turned into the entries that the workflow's procedures take."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from seam.config.checks.datasets import check_dataset
from seam.config.checks.models import check_model, model_classes
from seam.config.entries import folder_name
from seam.config.wording import closest, did_you_mean, hint
from seam.data.batches import AUGMENTATIONS
from seam.data.kinds.imagefolder import unusable_classes
from seam.data.kinds.registry import IMAGENET, class_names
from seam.data.problems import PROBLEMS, REST
from seam.delivery.card import counted
from seam.errors import UserError
from seam.files import json_digest
from seam.models.architectures import ARCHITECTURES, import_timm, timm_name
from seam.models.classes import known_names, match_classes, normalised_name
from seam.models.published import imagenet_outputs, published_categories
from seam.models.weights import is_weights_file
from seam.reuse.cards import MOST_PIXELS
from seam.settings import (
    BUDGET_SEARCH,
    NOT_OF_CHANNELS,
    SHARED,
    ChannelSettings,
    RecoverySettings,
    SearchSettings,
    is_in_range,
    range_words,
    search_settings,
)

LONG = 60  # characters of a name of a folder
SMALL = 32  # pixels, for which resnet20 and vgg16_bn are made
OWN_SIZE = 224  # pixels, for an architecture in a file of the user's, which does not say it
KNOWN_NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
BUDGET = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(%|k|m|g)?\s*:?\s*(weights|macs|time|ms)?\s*", re.IGNORECASE)
FACTORS = {"%": 0.01, "k": 1e3, "m": 1e6, "g": 1e9}
USUAL_EPOCHS = 45  # of a recovery
RECOVERY = f"epochs={USUAL_EPOCHS},fresh_negatives=true,cutmix=0.5"  # after a search with a budget, by default
UNIT_KEYS = {"weights": "weights", "macs": "macs", "time": "latency", "ms": "latency_ms"}


@dataclass
class Choices:
    """A problem as the command line gives it, checked.

    model, dataset: the names of their folders. entry: of the data set. source: of the model, as `fetch_weights` takes
    it, but for the normalization if that is to be found. keep: the classes, by the data set's names.
    """

    model: str
    dataset: str
    entry: dict[str, Any]
    source: dict[str, Any]
    architecture: str
    problem: str
    target: str
    keep: list[str]
    settings: dict[str, Any]
    recovery: dict[str, Any] = field(default_factory=dict)  # settings of `RecoverySettings`; empty: none
    seed: int = 0
    notes: list[str] = field(default_factory=list)


def resolve_architecture(model: str) -> str:
    """Return the architecture that MODEL names, as `build_model` takes it."""
    if model in ARCHITECTURES:
        return model
    if model.startswith("torchvision:"):
        name = model.removeprefix("torchvision:").lower()
        if name not in torchvision_names():
            close = did_you_mean(name, torchvision_names())
            raise UserError(f"MODEL is {model}, but torchvision has no such classifier{close}.")
        return f"torchvision:{name}"
    if model.startswith("timm:"):
        return f"timm:{timm_name(model)}"
    path, _, factory = model.rpartition(":")
    if path.endswith(".py") or model.endswith(".py"):
        path, factory = (path, factory) if path.endswith(".py") else (model, "")
        if not factory:
            raise UserError(f"MODEL is {model}, but must name a function in the file, too: {model}:build, say.")
        return f"{os.path.expanduser(path)}:{factory}"
    names = torchvision_names()
    if model.lower() in names:
        return f"torchvision:{model.lower()}"
    raise UserError(
        f"MODEL is {model}, but must be {', '.join(ARCHITECTURES)}, the name of a classifier of torchvision, "
        f"timm:NAME, or path.py:function{did_you_mean(model, [*ARCHITECTURES, *names])}."
    )


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def option_words(error: UserError) -> UserError:
    """Return an error about weights with the options of the command line in place of the keys of the config."""
    text = str(error)
    for key, option in (("under classes", "by --classes"), ("weights_key", "--weights-key")):
        text = text.replace(key, option)
    return UserError(text)


def default_weights(architecture: str) -> str:
    """Return the weights to take if none are given. Raises UserError if there are none."""
    if architecture.startswith("torchvision:"):
        import torchvision

        enum = torchvision.models.get_model_weights(architecture.removeprefix("torchvision:"))
        return enum["DEFAULT"].name
    raise UserError("--weights is missing: give the file of the trained weights.")


def default_size(architecture: str, weights: str) -> int:
    """Return the size in pixels of the images that a model is made for, as far as that is known."""
    if architecture in ARCHITECTURES:
        return SMALL
    if architecture.startswith("torchvision:"):
        import torchvision

        enum = torchvision.models.get_model_weights(architecture.removeprefix("torchvision:"))
        members = enum.__members__
        chosen = members.get(weights) or enum["DEFAULT"]
        size = getattr(chosen.transforms(), "crop_size", [224])
        return int(size[0])
    if architecture.startswith("timm:"):
        return int(import_timm().get_pretrained_cfg(timm_name(architecture)).input_size[-1])
    return OWN_SIZE


def parse_budget(text: str) -> dict[str, Any]:
    """Return the budget of a search: `25%` of the weights, `25% macs`, `10M macs`, `50% time` or `5 ms`.

    >>> parse_budget("25%"), parse_budget("10Mmacs"), parse_budget("50% time")
    ({'weights': 0.25}, {'macs': 10000000.0}, {'latency': 0.5})
    """
    match = BUDGET.fullmatch(text)
    if not match:
        raise UserError(
            f"--budget is {text}, but must be a share such as 25%, or 25% macs, 10M macs, 50% time or 5 ms."
        )
    number, factor, unit = match.groups()
    unit = (unit or "weights").lower()
    value = float(number) * FACTORS.get((factor or "").lower(), 1)
    if unit == "ms" and factor:
        raise UserError(f"--budget is {text}, but ms take a plain number: 5 ms, say, or 50% time for a share.")
    is_share = factor == "%" or unit in ("weights", "time")
    if value <= 0 or (is_share and value > 1):
        example = {"weights": "25%", "macs": "25% macs", "time": "50% time", "ms": "5 ms"}[unit]
        limits = "more than 0 % and at most 100 %" if is_share else "more than 0"
        raise UserError(f"--budget is {text}, but must be {limits}: {example}, say.")
    return {UNIT_KEYS[unit]: round(value, 12)}


def parse_normalization(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std) of a name of KNOWN_NORMALIZATIONS or of `0.5,0.5,0.5/0.2,0.2,0.2`."""
    if text in KNOWN_NORMALIZATIONS:
        return KNOWN_NORMALIZATIONS[text]
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if len(mean) != 3 or len(std) != 3 or not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        known = ", ".join(KNOWN_NORMALIZATIONS)
        raise UserError(
            f"--normalization is {text}, but must be {known}, or mean and std of values from 0 to 1, such as "
            "0.49,0.48,0.45/0.25,0.24,0.26."
        )
    return mean, std


def search_choice(
    images: int,
    budget: dict[str, Any] | None,
    epochs: int | None,
    given: Sequence[str],
    granularity: str = "weight",
    few: bool = False,
) -> dict[str, Any]:
    """Return the settings of a search: towards a budget, or with the schedule `fast`.

    images: of the training. given: `name=value` of any setting of `search`, `channels.multiple=16` for one of channels.
    granularity: `weight` or `channel`. few: whether the smallest class has few images (`for_few_images`). Where
    images are not many, batches are small: masks need steps more than images. With few, the batch size is that of the
    measurements in docs/search.md. Raises UserError, in the words of the command line.
    """
    if granularity == "channel" and budget is None:
        raise UserError("--budget is none, but a search of channels needs one: 50% macs, say.")
    batch_size = next((size for size in (64, 32, 16) if images >= 20 * size), 8)
    if few:
        batch_size = SearchSettings().batch_size
    search: dict[str, Any] = {} if granularity == "weight" else {"granularity": granularity}
    if budget is not None:  # which chooses its batch size itself
        search["budget"] = {**budget, **({"epochs": epochs} if epochs else {})}
    else:
        search |= {"batch_size": batch_size, "schedule": "fast", "epochs": epochs or 20, "lr_mask": 0.1, "alpha": 3.0}
    known = [each.name for each in fields(SearchSettings) if each.name not in ("budget", "granularity", "channels")]
    known += [f"channels.{each.name}" for each in fields(ChannelSettings)]
    names = [text.partition("=")[0] for text in given] + ["epochs"] * (epochs is not None)
    for name in names:
        if names.count(name) > 1:
            other = " (--epochs is the same)" if name == "epochs" and epochs is not None else ""
            raise UserError(f"--search {name} is given twice{other}: leave one out.")
    for text in given:
        name, _, value = text.partition("=")
        block, _, key = name.rpartition(".")
        if block and name in known:
            if granularity != "channel":
                raise UserError(f"--search {text} has no effect without channels: add --granularity channel.")
            given_value = _value(key, value, getattr(ChannelSettings(), key), f"--search {text}")
            search.setdefault("channels", {})[key] = given_value
            continue
        if name not in known:
            raise UserError(f"--search {text} is no setting of a search{hint(name, known, len(known))}")
        given_value = _value(name, value, getattr(SearchSettings(), name), f"--search {text}")
        if granularity == "channel" and name in (*NOT_OF_CHANNELS, "penalty"):
            raise UserError(f"--search {text} has no effect on a search of channels: leave it out.")
        if budget is not None and name not in SHARED:
            if name not in BUDGET_SEARCH:
                raise UserError(f"--search {text} has no effect with a budget: leave it out, or choose --budget none.")
            search["budget"][name] = given_value
        else:
            search[name] = given_value
    settings = search_settings({**asdict(SearchSettings()), **search})
    try:
        SearchSettings(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"--search: {error}") from error
    return settings


def recovery_choice(text: str | None) -> dict[str, Any]:
    """Return the settings of a recovery, sorted, from `8` epochs or `epochs=8,lr=0.0005`; empty for none or 0.

    A number alone changes the epochs of the command's default; settings by name change those of the config.

    >>> recovery_choice("8")["epochs"], recovery_choice("8")["cutmix"], recovery_choice("epochs=3")["cutmix"]
    (8, 0.5, 0.0)
    """
    if text in (None, "none", "0"):
        return {}
    settings = f"{RECOVERY},epochs={text}" if text.isdecimal() else text
    defaults, given = {**asdict(RecoverySettings()), "epochs": USUAL_EPOCHS}, {}
    for part in settings.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            name, value = "epochs", name
        if name not in defaults:
            raise UserError(f"--recovery {part.strip()} is no setting of a recovery{hint(name, defaults)}")
        if name in given and not text.isdecimal():
            raise UserError(f"--recovery {text} gives {name} twice: leave one out.")
        given[name] = _value(name, value, defaults[name], f"--recovery {part.strip()}")
    if "epochs" not in given:
        raise UserError(f"--recovery is {text}, but must say how many epochs it takes: epochs=8,{text}.")
    return dict(sorted({**defaults, **given}.items()))


def _value(name: str, text: str, default: Any, shown: str) -> Any:
    """Return the value that a text stands for, of the kind of the default of the setting `name`.

    Raises UserError if it is of another kind, or out of range. shown: how the sentence begins, `--search name=value`.
    """
    value: Any = {"none": None, "null": None, "true": True, "false": False}.get(text.lower(), text)
    if isinstance(value, str):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                value = kind(text)
                break
    kinds = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}
    fits = default is None or type(value) in kinds[type(default)] or (value is None and name == "accuracy_worth")
    if not fits or not is_in_range(name, value):
        words = {int: "a whole number", float: "a number", bool: "true or false"}.get(type(default), "a word")
        if type(default) in (int, float):
            words += range_words(name)
        raise UserError(f"{shown} does not fit: this setting takes {words}, such as {str(default).lower()}.")
    return float(value) if type(default) is float and value is not None else value


def choose_problem(keep: Sequence[str], problem: str | None) -> str:
    """Return the kind of problem: `binary` for a single class, `multiclass` for several, or the one that is given."""
    if problem is None:
        return "binary" if len(keep) == 1 else "multiclass"
    if problem not in PROBLEMS:
        raise UserError(f"--problem is {problem}, but must be one of {', '.join(PROBLEMS)}.")
    if problem == "binary" and len(keep) != 1:
        raise UserError(f"--problem binary takes one class, but --keep names {len(keep)}: choose another kind.")
    if problem != "binary" and len(keep) < 2:
        raise UserError(f"--problem {problem} takes two classes or more: add some to --keep, or choose binary.")
    return problem


def make_choices(
    model: str,
    data: str,
    keep: Sequence[str],
    *,
    weights: str | None = None,
    weights_key: str | None = None,
    classes: str | None = None,
    problem: str | None = None,
    size: int | None = None,
    normalization: str | None = None,
    augmentation: Sequence[str] | None = None,
    test_share: float | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Choices:
    """Return the checked choices. Raises UserError, in the words of the command line."""
    architecture = resolve_architecture(model)
    weights = os.path.expanduser(weights) if weights else default_weights(architecture)
    notes = []
    if size is None and architecture.rpartition(":")[0].endswith(".py"):
        notes.append(f"images of {OWN_SIZE} px, as nothing says otherwise: --size sets it")
    size = size or default_size(architecture, weights)
    if size > MOST_PIXELS:
        raise UserError(f"{model} takes images of {size} px: give --size, at most {MOST_PIXELS}.")
    entry: dict[str, Any] = {"kind": "imagefolder", "root": os.path.expanduser(data), "size": size, "classes": None}
    if unknown := [each for each in augmentation or () if each not in AUGMENTATIONS]:
        allowed = ", ".join(AUGMENTATIONS)
        raise UserError(
            f"--augmentation {unknown[0]} is unknown: give some of {allowed}, separated by commas, or none."
        )
    entry["augmentation"] = list(augmentation) if augmentation is not None else None
    if test_share is not None:
        entry["test_share"] = test_share
    if seed:
        entry["split_seed"] = seed
    outputs: Any = classes
    if classes and "," in classes and not os.path.exists(classes):
        outputs = [part.strip() for part in classes.split(",")]
    mean_std = parse_normalization(normalization) if normalization else None
    source: dict[str, Any] = {
        "architecture": architecture,
        "dataset": "data",
        "weights": weights,
        "weights_key": weights_key,
        "classes": outputs,
        "normalization": None if mean_std is None else dict(zip(("mean", "std"), map(list, mean_std), strict=True)),
    }
    try:
        check_dataset("datasets.data", entry)
        # A missing normalization is found by fit, later.
        normalised = {**source, "normalization": source["normalization"] or {}}
        check_model("models.data", normalised, {"data": entry}, in_config=False)
        every = class_names({**entry, "classes": None})
        names = model_classes(source, entry)
        if outputs == "imagenet":
            names = imagenet_outputs(published_categories("torchvision:resnet50", "IMAGENET1K_V2"), _wnids())
        wanted = set(map(normalised_name, keep))
        few = [name for name in unusable_classes(entry["root"], every) if normalised_name(name) not in wanted]
        if few:
            notes.append(f"classes of the data that have too few images are left out: {_shortened(few)}")
            names = names or [[name] for name in every]  # the model knows them nevertheless
            every = [name for name in every if name not in few]
        known = names
        if names == "weights" and not is_weights_file(weights):
            known = imagenet_outputs(published_categories(architecture, weights), _wnids())
        owner = "The model's classes (--classes)" if classes else "The model's classes"
        entry["classes"] = known_classes(every, known, keep, owner, notes)
    except UserError as error:
        text = str(error)
        for key, option in (
            ("datasets.data.root: root:", "--data:"), ("datasets.data.root", "--data"), ("datasets.data: ", "--data: "),
            ("models.data.architecture", "MODEL"), ("models.data.weights_key", "--weights-key"),
            ("models.data.weights", "--weights"), ("models.data.classes", "--classes"),
            ("datasets.data.size", "--size"), ("datasets.data", "--data"),
            ("root: ", ""),
        ):  # fmt: skip
            text = text.replace(key, option)
        raise UserError(text) from error
    kept = find_kept(keep, entry["classes"])
    kind = choose_problem(kept, problem)
    if kind != "multiclass" and len(kept) == len(entry["classes"]):
        raise UserError(
            f"--problem {kind} needs images of other classes, but --keep names all the classes of {data} that can be "
            "used: add folders of images of what else the model sees."
        )
    if kind != "multiclass" and REST in (kept if kind == "multiclass_rest" else ["-".join(kept)]):
        raise UserError(
            f"--keep names the class {REST}, as the other classes together are called: rename its folder, or choose "
            "--problem multiclass."
        )
    base = folder_name(name or _base_name(architecture))
    fetch: dict[str, Any] = {
        "architecture": architecture,
        "weights": weights,
        "kind": source["classes"] if weights == "hub" and isinstance(outputs, str) else "imagefolder",
        "class_lists": [entry["classes"]] if names is None or names != "weights" else [entry["classes"], _wnids()],
        "normalization": source["normalization"] and list(source["normalization"].values()),
    }
    if names is not None:
        fetch["outputs"] = names
    if weights_key:
        fetch["key"] = weights_key
    target = folder_name("-".join(kept))
    if len("-".join(kept)) > LONG:
        target = f"{folder_name(kept[0])[:LONG]}-and-{len(kept) - 1}-more"
    if len(target) > 2 * LONG or (len(kept) == 1 and len(kept[0]) > LONG):
        target = f"{folder_name(kept[0])[:LONG]}-{json_digest({'classes': kept})[:8]}"
    return Choices(
        model=base,
        dataset=folder_name(Path(entry["root"]).resolve().stem) or "data",
        entry={key: value for key, value in sorted(entry.items()) if value is not None or key in ("classes",)},
        source=fetch,
        architecture=architecture,
        problem=kind,
        target=target,
        keep=kept,
        settings={},
        seed=seed,
        notes=notes,
    )


def known_classes(
    every: Sequence[str],
    names: list[list[str]] | str | None,
    keep: Sequence[str],
    owner: str,
    notes: list[str],
) -> list[str]:
    """Return the classes of the data that the model knows; the others are left out, which `notes` then says.

    names: those of the model's outputs, or None if they are the data's, or `weights` if they are not known yet. owner:
    what has these names, for the sentence of an error.
    """
    if not isinstance(names, list):
        return list(every)
    known, wanted = known_names(names, every), set(map(normalised_name, keep))
    match_classes(names, [name for name in every if name in known or normalised_name(name) in wanted], owner)
    if left := sorted(set(every) - set(known)):
        notes.append(f"classes of the data that the model does not know are left out: {_shortened(left)}")
    if len(known) < 2:
        raise UserError(
            f"--data has {counted(len(known), 'class', 'classes')} that the model knows: give images of two or more, "
            "so that there is something to tell apart."
        )
    return known


def _shortened(names: Sequence[str], most: int = 5) -> str:
    """Return names as a list, the first of them if they are many.

    >>> _shortened(["cat", "dog"]), _shortened(["cat", "dog", "ox"], most=2)
    ('cat, dog', 'cat, dog and 1 more')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextlib.contextmanager
def data_errors() -> Iterator[None]:
    """Put errors about the root of a data set, as the config calls it, into the words of the command line."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub("^root: ", "--data: ", str(error))) from error


def find_kept(keep: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the classes of the data that `keep` names, without regard to case, `_` and `-`, in its order."""
    kept = []
    for name in keep:
        matching = [each for each in classes if each == name] or [
            each for each in classes if normalised_name(each) == normalised_name(name)
        ]
        if len(matching) != 1:
            close = closest(name, classes)
            known = (
                f"did you mean {close}?"
                if close
                else f"it has {', '.join(classes[:12])}" + ", ..." * (len(classes) > 12)
            )
            raise UserError(f"--keep names {name}, which is no class of the data: {known}")
        if matching[0] in kept:
            raise UserError(f"--keep names {name} twice: once is enough.")
        kept.append(matching[0])
    return kept


def _wnids() -> list[str]:
    return class_names(IMAGENET)


def _base_name(architecture: str) -> str:
    path, _, name = architecture.rpartition(":")
    return Path(path).stem if path.endswith(".py") else name

"""How many images go through which passes of a network in each job of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from seam.data.kinds import imagefolder
from seam.data.kinds.registry import KINDS, class_names
from seam.files import read_json
from seam.settings import SearchSettings, choose_batch_size, for_few_images

# Training and test images of a class in the published data sets; means where classes differ.
PUBLISHED = {
    "digits": (1437 / 10, 360 / 10),
    "cifar10": (5000, 1000),
    "cifar100": (500, 100),
    "imagenet": (1281167 / 1000, 50),
    "mit67": (5360 / 67, 1340 / 67),
    "cub200": (5994 / 200, 5794 / 200),
    "flower102": (2040 / 102, 6149 / 102),
    "dog120": (100, 8580 / 120),
    "action40": (100, 5532 / 40),
}
# The block of the settings that has a student's number of epochs, by rule.
BLOCKS = {"finetune_seam_head": "head", "finetune_seam_masks": "search"} | dict.fromkeys(
    ("finetune_standard", "retrain", "finetune_remos", "finetune_seam"), "settings"
)

Job = dict[str, Any]  # as rules/planned.smk writes it


@dataclass(frozen=True, order=True)
class Step:
    """A batch's pass through a network: "train", forward and backward, or "outputs", forward alone.

    size: of the images, in pixels.
    """

    kind: str
    architecture: str
    size: int
    batch_size: int


class Inventory:
    """The models and data sets of a validated config, and the numbers of images.

    folder: where the workflow keeps prepared data sets.
    """

    def __init__(
        self, models: dict[str, Any], datasets: dict[str, Any], folder: str | Path = "results/datasets"
    ) -> None:
        self.models, self.datasets, self.folder = models, datasets, Path(folder)
        self._counts: dict[str, Mapping[str, Mapping[str, float]]] = {}

    def counts(self, dataset: str) -> Mapping[str, Mapping[str, float]]:
        """Return {"train": {class: images}, "test": ...} of a data set: as prepared, as published, or counted."""
        if dataset not in self._counts:
            self._counts[dataset] = self._count(self.datasets[dataset], self.folder / dataset / "dataset.json")
        return self._counts[dataset]

    def _count(self, entry: dict[str, Any], manifest: Path) -> Mapping[str, Mapping[str, float]]:
        classes, kind = class_names(entry), entry["kind"]
        if manifest.exists():
            counts = read_json(manifest)["counts"]
            if list(counts["train"]) == classes:  # else the data set will be prepared again
                return counts
        if kind in PUBLISHED:
            return {
                s: {name: float(n) for name in classes} for s, n in zip(("train", "test"), PUBLISHED[kind], strict=True)
            }
        return imagefolder.KIND.counts(entry, classes)

    def images(self, dataset: str) -> dict[str, float]:
        """Return {"train": images, "test": images} of a data set."""
        return {split: sum(counts.values()) for split, counts in self.counts(dataset).items()}

    def problem(self, dataset: str, kind: str, members: list[str]) -> dict[str, float]:
        """Return {"train": images, "test": images} of a target problem."""
        return {split: sum(class_sizes(counts, kind, members)) for split, counts in self.counts(dataset).items()}

    def fewest(self, dataset: str, kind: str, members: list[str]) -> float:
        """Return the number of training images of a target problem's smallest class."""
        return min(class_sizes(self.counts(dataset)["train"], kind, members))

    def steps(self, model: str, dataset: str, batch_size: int, train: float, outputs: float) -> dict[Step, float]:
        """Return {Step: images} of a model for images that it trains on, and images that it only predicts."""
        entry, architecture = self.datasets[dataset], self.models[model]["architecture"]
        size = entry.get("size") or KINDS[entry["kind"]].size
        images = {"train": train, "outputs": outputs}
        return {Step(kind, architecture, size, batch_size): count for kind, count in images.items() if count}


def class_sizes(counts: Mapping[str, float], kind: str, members: list[str]) -> list[float]:
    """Return the number of images of each class of a target problem, from those {class: images} of a data set.

    >>> class_sizes({"cat": 10, "dog": 20, "cow": 90}, "multiclass_rest", ["cat", "dog"])
    [10, 20, 15.0]
    """
    sizes = [counts[name] for name in members]
    others = sum(counts.values()) - sum(sizes)
    if kind in ("binary", "group"):
        return [min(sum(sizes), others)] * 2
    return [*sizes, min(sum(sizes) / len(sizes), others)] if kind == "multiclass_rest" else sizes


def stage(job: Job) -> str:
    """Return the rule of a job; all stacks of searches are one stage."""
    return "reengineer" if job["rule"].startswith("reengineer_stack_") else job["rule"]


def work(job: Job, inventory: Inventory) -> dict[Step, float]:
    """Return how many images go through each step of a job, epochs in full; empty if the job runs no model."""
    rule, settings = stage(job), job["params"].get("settings", {})
    if rule == "reengineer":
        steps: Counter[Step] = Counter()
        for search in job["params"]["searches"]:
            steps.update(_search(search, inventory))
        return dict(steps)
    if rule in ("recover", "recover_baseline"):
        return _recovery(job["params"]["recovery"], job["search"], inventory)
    if rule == "train_channel_baseline":  # costs what its search and recovery do
        search = job["params"]["search"]
        steps = Counter(_search(search, inventory))
        if search["recovery"]:
            steps.update(_recovery({**search, "settings": search["recovery"]}, search["settings"], inventory))
        return dict(steps)
    if rule in ("train_baseline", "train_scratch"):
        return _baseline(job["wildcards"].get("baseline", "scratch"), job["params"]["search"], inventory)
    if rule not in ("train_source", "evaluate_source", "attack_source", "evaluate_defects", *BLOCKS):
        return {}
    model, dataset = job["wildcards"]["model"], job["wildcards"].get("dataset") or settings["dataset"]
    images = inventory.images(dataset)
    batch_size, train, outputs = 64, 0.0, images["test"]
    if rule == "train_source":
        training = settings["training"]
        batch_size, epochs = training["batch_size"], training["epochs"]
        train, outputs = epochs * images["train"], epochs * images["test"]
    elif rule in BLOCKS:
        batch_size, epochs = settings["common"]["batch_size"], settings[BLOCKS[rule]]["epochs"]
        train, outputs = (epochs * count for count in _selection(images, settings["common"]))
        if rule == "finetune_seam_head":  # the last layer alone takes hardly any time
            train, outputs = 0.0, train + outputs
    elif rule == "attack_source":
        batch_size, steps_each = settings["settings"]["batch_size"], settings["settings"]["steps"]
        train, outputs = steps_each * images["test"], 2 * images["test"]
    elif rule == "evaluate_defects":  # as they are, and perturbed
        outputs = 2 * images["test"]
        if attack_steps := job["params"].get("adaptive"):
            train, outputs = attack_steps * images["test"], 3 * images["test"]
    return inventory.steps(model, dataset, batch_size, train, outputs)


def _search(search: dict[str, Any], inventory: Inventory) -> dict[Step, float]:
    """Return the steps of one search, from the arguments of `seam.reuse.direct.reengineer`."""
    settings, dataset = _settings(search, inventory), search["dataset"]
    images = inventory.problem(dataset, search["problem"], search["members"])
    train, select = _selection(images, settings)
    epochs = settings["epochs"]
    batch_size = settings["batch_size"] or choose_batch_size(int(train), epochs)
    if settings["granularity"] == "channel":
        channels = SearchSettings(**settings).of_channels
        teaches = channels.distillation and channels.train_weights
        head, outputs = 1, epochs * train if teaches else train  # the first epoch trains the head alone
    elif budget := settings.get("budget"):  # the first epoch, too, computes gradients; the source model may teach
        head, outputs = 0, epochs * train if budget.get("distillation") else 0.0
    else:
        head = 1 if settings["schedule"] == "fast" else ceil(epochs / settings["head_every"])
        outputs = head * train
    # The source model is evaluated on the images of the selection and on the test images, the result on the latter.
    outputs += (ceil(epochs / settings["evaluate_every"]) + 1) * select + 2 * images["test"]
    return inventory.steps(search["model"], dataset, batch_size, (epochs - head) * train, outputs)


def _baseline(baseline: str, search: dict[str, Any], inventory: Inventory) -> dict[Step, float]:
    """Return the steps of a baseline, which trains as long as its search: the head, biases as well, or all weights."""
    settings, dataset = _settings(search, inventory), search["dataset"]
    images = inventory.problem(dataset, search["problem"], search["members"])
    train, select = _selection(images, settings)
    batch_size = settings["batch_size"] or choose_batch_size(int(train), settings["epochs"])
    train, outputs = settings["epochs"] * train, (settings["epochs"] + 1) * select + 2 * images["test"]
    budget = settings.get("budget") or {}
    if baseline == "head" or (baseline not in ("scratch", "biases") and not budget.get("lr_bias")):
        train, outputs = 0.0, train + outputs  # the head alone takes hardly any time
    elif baseline != "scratch" and budget.get("distillation"):
        outputs += train
    return inventory.steps(search["model"], dataset, batch_size, train, outputs)


def _recovery(recovery: dict[str, Any], search: dict[str, Any], inventory: Inventory) -> dict[Step, float]:
    """Return the steps of one recovery, as if nothing had been removed: what is left is known after the search.

    search: the settings of the search before it, which say what is held out.
    """
    settings, dataset = recovery["settings"], recovery["dataset"]
    images = inventory.problem(dataset, recovery["problem"], recovery["members"])
    taken = _settings({**recovery, "settings": search}, inventory)
    train, select = (settings["epochs"] * count for count in _selection(images, taken))
    outputs = select + 2 * images["test"]
    if settings["distillation"]:
        outputs += train
    return inventory.steps(recovery["model"], dataset, settings["batch_size"], train, outputs)


def _settings(search: dict[str, Any], inventory: Inventory) -> dict[str, Any]:
    """Return the settings that a search takes: others than its own if it has few images."""
    fewest = inventory.fewest(search["dataset"], search["problem"], search["members"])
    return asdict(for_few_images(SearchSettings(**search["settings"]), int(fewest)))


def _selection(images: dict[str, float], settings: dict[str, Any]) -> tuple[float, float]:
    """Return the number of images that train, and of those on which an epoch is selected."""
    if settings["selection"] == "test":
        return images["train"], images["test"]
    if settings["selection"] == "last":
        return images["train"], 0.0
    return (1 - settings["holdout"]) * images["train"], settings["holdout"] * images["train"]

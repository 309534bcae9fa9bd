"""Baselines of direct reuse: what is reached without a search, at the search's retention and in as many epochs.

Each has a name, as `baselines` of the config lists it, and a folder in the target problem's folder:

- `head`: a new head on the whole source model. `biases`: its biases are trained, too (`seam.masks.biases`).
- `magnitude`, `random`, `activation`, `snip`: a new head on the source model with masks from `seam.masks.scores`, which
  keep as many weights of each parameter as the search does. With `-overall` they keep as many weights in all, wherever
  they are.
- `scratch`: the same architecture with the weights where the search keeps them, trained from random values.

All use the images, the seed, the batches and the first head of the search. A head is trained like the search's: by Adam
at `head_rate`, with the search's schedule. If the search trains the biases of the network, those with masks do so, too,
with its loss and its rates, so that nothing but the masks differs. Where the classes differ much in their number of
images, the loss weighs them as the search's does. The selected epoch is the first with the best accuracy on the images
of the selection, the balanced one if that decides the search. Another baseline, such as a network with fewer channels,
needs a function like `train_masked` and a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam.data.batches import batches
from seam.data.storage import open_dataset
from seam.errors import UserError
from seam.evaluation import predict
from seam.files import load_tensors, read_json, sha256, write_csv, write_json
from seam.log import log
from seam.masks.biases import Biases
from seam.masks.bits import unpack_bits
from seam.masks.masks import Masks
from seam.masks.scores import (
    Scores,
    activation_scores,
    gradient_scores,
    keep_in_each,
    keep_overall,
    magnitude_scores,
    random_scores,
)
from seam.models.architectures import build_model
from seam.models.surgery import copy_state, set_training_mode, to_channels_last, with_head
from seam.models.weights import Source, open_source
from seam.precision import forward
from seam.reuse.direct import Reengineering
from seam.reuse.load import load_reengineered
from seam.reuse.provenance import environment
from seam.search.budget import bias_rate
from seam.search.distillation import Distillation
from seam.search.inputs import first_images
from seam.search.training import cosine, train_head
from seam.seeds import derive_seed
from seam.settings import BUDGET_OPTIONS, SearchSettings, TrainingSettings
from seam.training.adam import Adam
from seam.training.checkpoint import Checkpoint
from seam.training.graphs import with_cuda_graph
from seam.training.losses import Loss
from seam.training.run import Step
from seam.training.selecting import train_and_select
from seam.training.supervised import one_cycle

WHOLE = ("head", "biases")  # baselines that keep all weights
OVERALL = "-overall"  # the end of a baseline's name: weights are compared in the whole model, not in each parameter


class Baseline:
    """A baseline of a target problem whose search is done, ready to be trained.

    bits: {name: boolean mask} of the search; counts: {name: number of weights that it keeps}. epochs: of the search.
    """

    def __init__(
        self,
        baseline: str,
        search_folder: str | Path,
        checkpoint: str | Path,
        training: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        """baseline: its name. search_folder: the target problem's, with masks.safetensors and metrics.json.

        training: a dictionary of `TrainingSettings`, of `scratch`. arguments: those of `Reengineering`, of the search;
        `folder` is the baseline's. Raises UserError if the search was of another source model.
        """
        self.name, search_folder = baseline, Path(search_folder)
        self.reengineering = Reengineering(**arguments, checkpoint=checkpoint)
        self.dataset_folder, self.seed = arguments["dataset_folder"], arguments["seed"]
        each = self.reengineering
        self.source = open_source(each.model_folder, architecture=each.architecture)
        self.bits = read_bits(search_folder / "masks.safetensors", self.source, each.provenance["source model"])
        self.counts = {name: int(bit.sum()) for name, bit in self.bits.items()}
        self.epochs = int(read_json(search_folder / "metrics.json")["epochs"])
        depends = {"kept": {} if baseline in WHOLE else self.counts, "epochs": self.epochs}
        if baseline == "scratch":  # the others depend on no more of the search's masks than their number
            depends |= {"masks": sha256(search_folder / "masks.safetensors"), "training": dict(training or {})}
        self.provenance = {**each.provenance, "baseline": baseline, **depends}
        self.checkpoint = Checkpoint(checkpoint, self.provenance, __file__)

    def derive_seed(self, *names: str) -> int:
        """Return a seed of this baseline."""
        return derive_seed(self.seed, "baseline", self.name, *self.reengineering.names.values(), *names)

    def plain_batches(self, shuffle: bool = False, enlarge: bool = True) -> Any:
        """Return the batches of the training images as they are, without augmentation. enlarge: as in `batches`."""
        each, split = self.reengineering, open_dataset(self.dataset_folder).train
        subset = each.problem.train
        generator = torch.Generator().manual_seed(self.derive_seed("batches")) if shuffle else None
        return batches(
            split, subset.indices, subset.labels, each.settings.batch_size, normalization=self.source.normalization,
            device=each.device, shuffle=shuffle, generator=generator, enlarge=enlarge,
        )  # fmt: skip

    def scores(self) -> Scores:
        """Return the score of each weight, by the baseline's method."""
        method, names = self.name.removesuffix(OVERALL), list(self.bits)
        if method == "random":
            return random_scores(self.source.module, names, torch.Generator().manual_seed(self.derive_seed("masks")))
        if method == "magnitude":
            return magnitude_scores(self.source.module, names)
        each = self.reengineering
        network = to_channels_last(self.source.module, each.device, each.size)
        if method == "activation":
            return activation_scores(network, names, self.plain_batches())
        assert method == "snip"
        return self._gradient_scores(network, names)

    def _gradient_scores(self, network: nn.Module, names: list[str]) -> Scores:
        """Return the scores of SNIP. Its head is trained for one epoch, as at the start of the search.

        The gradients of a random head would say nothing of the target problem. With few images an epoch has too few
        steps for such a head, and the search begins with the source model's answers: then this head does so, too.
        """
        each = self.reengineering
        network.requires_grad_(False)
        torch.manual_seed(self.derive_seed("head"))
        model = with_head(network, len(self.source.classes), len(each.problem.classes)).to(each.device)
        head = model.get_submodule("head")
        if each.settings.initial_head == "source":
            head.load_state_dict(each.model.get_submodule("head").state_dict())
        loss = each.loss()
        step = train_head(model, Adam([(head.parameters(), head_rate(each.settings))]), loss)
        model.eval()
        for images, labels in self.plain_batches(shuffle=True):
            step(images, labels)
        images = self.plain_batches(enlarge=False)
        return gradient_scores(network, names, lambda batch, labels: loss(model(batch), labels), images)

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the masks of the baseline, {name: boolean mask} on the CPU."""
        if self.name in WHOLE:
            return {name: torch.ones_like(bit) for name, bit in self.bits.items()}
        if self.name == "scratch":
            return self.bits
        scores = self.scores()
        if self.name.endswith(OVERALL):
            return keep_overall(scores, sum(self.counts.values()))
        return keep_in_each(scores, self.counts)

    def bias_rate(self, steps: int) -> float:
        """Return Adam's learning rate for the biases of the network, trained for so many steps; 0: they are not."""
        settings = self.reengineering.settings
        if self.name == "biases" and not bias_rate(settings, steps):  # of a search that leaves the biases as they are
            settings = replace(settings, schedule="budget", budget={"weights": 1.0, **BUDGET_OPTIONS})
        return 0.0 if self.name == "head" else bias_rate(settings, steps)

    def save(
        self, bits: Mapping[str, torch.Tensor], model: nn.Module, history: list[dict[str, Any]], epoch: int, **more: Any
    ) -> dict[str, Any]:
        """Write history.csv and metrics.json into the baseline's folder; return the metrics."""
        count, kept = sum(bit.numel() for bit in bits.values()), sum(int(bit.sum()) for bit in bits.values())
        settings = {**self.reengineering.settings.recorded(), **more}
        metrics = write_results(self.reengineering, self.name, model, history, epoch, (count, kept), settings)
        self.checkpoint.remove()
        return metrics


def write_results(
    each: Reengineering,
    baseline: str,
    model: nn.Module,
    history: list[dict[str, Any]],
    epoch: int,
    weights: tuple[int, int],
    settings: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Write history.csv and metrics.json into the folder of `each`; return the metrics.

    each: the target problem. baseline: its name. model: trained. epoch: of `history`, selected. weights: (of the source
    model, kept). settings: of the training. more: further metrics.
    """
    import pandas as pd

    logits, labels = predict(model, each.test)
    right = int((logits.argmax(1) == labels).sum())
    row, (count, kept) = history[epoch - 1], weights
    holdout = {"source": each.source_accuracy, "baseline": row["accuracy"]} if each.uses_holdout else None
    problem = each.problem
    metrics = {
        **each.names,
        "baseline": baseline,
        "classes": list(problem.classes),
        "seed": each.seed,
        "settings": dict(settings),
        "images": {"train": len(problem.train), "holdout": len(problem.holdout), "test": len(problem.test)},
        **each.test_accuracies("baseline", logits, labels),
        "right": right,
        "holdout_accuracy": holdout,
        "retention": kept / count,
        "weights": count,
        "kept": kept,
        **more,
        "epochs": len(history),
        "selected_epoch": epoch,
        "seconds": sum(row["seconds"] for row in history),
        **environment(each.device),
    }
    write_csv(each.folder / "history.csv", pd.DataFrame(history))
    write_json(each.folder / "metrics.json", metrics)
    log.info("baseline %s: test accuracy %.4f, retention %.4f", baseline, right / len(labels), kept / count)
    return metrics


def read_bits(path: Path, source: Source, checksum: str) -> dict[str, torch.Tensor]:
    """Return the masks in the file of a search. Raises UserError if they are not those of this source model."""
    tensors, metadata = load_tensors(path)
    packed = {key.removeprefix("mask/"): value for key, value in tensors.items() if key.startswith("mask/")}
    if metadata.get("source_sha256") != checksum or not packed:
        raise UserError(f"{path} was searched for another source model: run the workflow again to make it.")
    try:
        return unpack_bits(packed, source.module)
    except ValueError as error:
        raise UserError(
            f"{path} does not fit its source model ({error}): run the workflow again to make it."
        ) from error


def train_masked(baseline: Baseline) -> dict[str, Any]:
    """Train a head, and biases, on the source model with the baseline's masks; write its folder; return the metrics.

    The folder gets masks.safetensors, from which `seam.load` loads the model, history.csv and metrics.json.
    """
    each = baseline.reengineering
    model, settings = each.model, each.settings
    first_head = copy_state(model.get_submodule("head"))  # before other random numbers are drawn
    bits = baseline.masks()
    network, head = model.get_submodule("source"), model.get_submodule("head")
    network.requires_grad_(False)
    first_images(model, each.selection)  # finds layers whose statistics must stay
    steps = baseline.epochs * len(each.train)
    factor = cosine(steps) if settings.schedule != "published" else None
    rate = baseline.bias_rate(steps)
    distillation = each.distillation() if rate else None  # of the source model, before it has masks
    if distillation is not None and each.class_weights is not None:
        distillation.label_loss = each.loss()
    masks = apply_bits(network, bits)
    head.load_state_dict(first_head)
    torch.manual_seed(baseline.derive_seed("training"))  # dropout draws from it
    biases = Biases(network, masks) if rate else None
    if biases is None:
        optimizer = Adam([(head.parameters(), head_rate(settings))], factor)
        parts = {"head": head, "optimizer": optimizer}
        step = train_head(model, optimizer, each.loss())
    else:
        biases.train()
        optimizer = Adam([(head.parameters(), settings.lr_head), (biases.values.values(), rate)], factor)
        parts = {"head": head, "biases": biases, "optimizer": optimizer}
        step = train_head_and_biases(model, biases, optimizer, each.loss(), distillation)
    step = with_cuda_graph(step, parts.values(), each.device)
    trained = head if biases is None else HeadAndBiases(head, biases)
    history, epoch = train_and_select(
        model, trained, step, parts, each.train, each.selection, baseline.epochs, set_training_mode,
        baseline.checkpoint, "lower lr_head", each.measure, takes_last=settings.selection == "last",
    )  # fmt: skip
    each.save_model(bits, copy_state(head), None if biases is None else biases.shifts())
    # The metrics are those of the stored model, so it is read back from its folder.
    stored = load_reengineered(each.folder, architecture=each.architecture)
    stored = to_channels_last(stored, each.device, each.size)
    return baseline.save(bits, stored, history, epoch)


def train_head_and_biases(
    model: nn.Module, biases: Biases, optimizer: Adam, loss: Loss, distillation: Distillation | None
) -> Step:
    """Return a training step of the head and the biases of `model`, whose masks stay as they are.

    loss: of the labels; distillation: has another, which counts instead.
    """
    if distillation is not None:
        loss = distillation.loss

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = forward(model, images)
        value = loss(logits, labels)
        optimizer.zero_grad()
        biases.zero_grad()
        value.sum().backward()
        biases.clear_removed()
        optimizer.step()
        biases.masks.apply()
        return logits, value

    return step if distillation is None else distillation.observed(step)


class HeadAndBiases:
    """A head and biases as one part, of which an epoch can be selected."""

    def __init__(self, head: nn.Module, biases: Biases) -> None:
        self.parts: dict[str, Any] = {"head": head, "biases": biases}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state of both, {part/name: tensor}."""
        return {f"{key}/{name}": value for key, part in self.parts.items() for name, value in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set both to a state."""
        for key, part in self.parts.items():
            part_state = {
                name.removeprefix(f"{key}/"): value for name, value in state.items() if name.startswith(f"{key}/")
            }
            part.load_state_dict(part_state)


def head_rate(settings: SearchSettings) -> float:
    """Return Adam's learning rate for the head of a baseline: the search's, or its default if the search has a budget.

    A search with a budget trains the head slowly, because the masks change below it. A head on a network that stays as
    it is would hardly learn at that rate.
    """
    return settings.lr_head if settings.budget is None else SearchSettings.lr_head


def apply_bits(network: nn.Module, bits: Mapping[str, torch.Tensor]) -> Masks:
    """Set the weights of `network` whose bit is False to zero, also if its batch norm is folded; return its masks."""
    masks = Masks(network)
    masks.load_state_dict({n: bits[n].float() if n in bits else torch.ones_like(v) for n, v in masks.values.items()})
    return masks


def train_from_scratch(baseline: Baseline, training: Mapping[str, Any]) -> dict[str, Any]:
    """Train the architecture from random weights where the search keeps them; write the folder; return the metrics.

    All weights and batch norm are trained by SGD with Nesterov momentum and a one-cycle learning rate, which suits
    random weights: `training` is a dictionary of `TrainingSettings`, whose epochs and batch size are the search's.
    The folder gets history.csv and metrics.json.
    """
    each, bits = baseline.reengineering, baseline.masks()
    torch.manual_seed(baseline.derive_seed("weights"))
    source = baseline.source
    network = build_model(source.architecture, len(source.classes), source.checksum)
    model = with_head(to_channels_last(network, each.device, each.size), len(source.classes), len(each.problem.classes))
    model = model.to(each.device).requires_grad_(True)
    overrides = {"epochs": baseline.epochs, "batch_size": each.settings.batch_size}
    settings = TrainingSettings(**{**training, **overrides})
    loss_of = each.loss(settings.label_smoothing)
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(settings.epochs * len(each.train)))
    parameters = dict(network.named_parameters(remove_duplicate=False))
    masked = [(parameters[name], bit.to(each.device)) for name, bit in bits.items()]

    def apply() -> None:
        with torch.no_grad():
            for parameter, bit in masked:
                parameter.mul_(bit)

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = forward(model, images)
        loss = loss_of(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        apply()
        return logits, loss

    apply()
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    history, epoch = train_and_select(
        model, model, step, parts, each.train, each.selection, settings.epochs, nn.Module.train, baseline.checkpoint,
        "lower training.lr", each.measure, takes_last=each.settings.selection == "last",
    )  # fmt: skip
    return baseline.save(bits, model, history, epoch, training=asdict(settings))


def train_baseline(
    baseline: str, search_folder: str | Path, training: Mapping[str, Any] | None = None, **arguments: Any
) -> dict[str, Any]:
    """Train a baseline by its name; write its folder; return its metrics. arguments: those of `Baseline`.

    training: a dictionary of `TrainingSettings`, for `scratch` alone.
    """
    ready = Baseline(baseline, search_folder, training=training, **arguments)
    return train_masked(ready) if training is None else train_from_scratch(ready, training)

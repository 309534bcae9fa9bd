"""Recovery: what the search left of a source model is trained on, all its weights and those of batch norm.

The source model itself is the teacher: it answers each image as it always did, and what is left of it learns these
answers beside the labels. That is what reuse has and training from nothing has not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seam.data.batches import batches
from seam.data.drawing import draw_problem, held_out_share
from seam.data.problems import TargetProblem, class_weights
from seam.data.storage import Dataset, open_dataset
from seam.device import select_device
from seam.evaluation import (
    accuracy,
    balanced_accuracy,
    class_metrics,
    confusion_matrix,
    predict,
    require_several_answers,
)
from seam.files import read_json, save_tensors, sha256, write_csv, write_json
from seam.log import log
from seam.models.surgery import copy_state, outputs_in_training, set_training_mode, to_channels_last
from seam.models.weights import Source, open_source
from seam.precision import forward
from seam.reuse.load import RECOVERED, kept_weights, load_reengineered
from seam.reuse.provenance import environment, provenance
from seam.seeds import derive_seed
from seam.settings import RecoverySettings
from seam.training.adam import Adam
from seam.training.checkpoint import Checkpoint
from seam.training.distillation import Teacher
from seam.training.losses import class_loss
from seam.training.mixing import Mixing
from seam.training.run import Batch, Batches, Step, TrainingRun
from seam.training.schedules import warm_cosine

ADVICE = "lower recovery.lr"  # if the loss is not finite


def recover(
    folder: str | Path,
    masks_folder: str | Path,
    model_folder: str | Path,
    dataset_folder: str | Path,
    model: str,
    dataset: str,
    problem: str,
    target: str,
    members: Sequence[str],
    settings: dict[str, Any],
    seed: int,
    device: str,
    checkpoint: str | Path,
    architecture: str | None = None,
    allow_one_answer: bool = False,
) -> dict[str, Any]:
    """Train the re-engineered model in `masks_folder`; write its weights, history and metrics into `folder`.

    settings: a dictionary of `RecoverySettings`. All other arguments are those of `seam.reuse.direct.Reengineering`.
    Recovery does not train on the images that the search held out, so that accuracies on them can be compared. If the
    balanced accuracy decided the search, the loss weighs all classes alike, as in the search. The metrics.json of
    `masks_folder` says what the search held out and what decided it. The last epoch is the result. Returns the metrics.
    Raises UserError if the result gives the same answer for all test images, unless `allow_one_answer`.
    """
    folder, place = Path(folder), select_device(device)
    chosen = RecoverySettings(**settings)
    images, source = open_dataset(dataset_folder), open_source(model_folder, architecture=architecture)
    searched = read_json(Path(masks_folder) / "metrics.json")
    is_balanced = searched["decided_by"] == "balanced_accuracy"
    holdout = held_out_share(searched["settings"])
    task = draw_problem(images, dataset, problem, target, members, seed, holdout)
    network = load_reengineered(masks_folder, model_folder, architecture, recovered=False)
    network = to_channels_last(network, place, images.size).requires_grad_(True)
    common = {"normalization": source.normalization, "device": place}

    def batches_of(split: Any, subset: Any) -> Any:
        return batches(split, subset.indices, subset.labels, chosen.batch_size, **common)

    if not chosen.train_batch_norm:  # finds layers whose statistics must stay, too
        outputs_in_training(network, torch.zeros(2, 3, *images.size, device=place))
    test, held = batches_of(images.test, task.test), batches_of(images.train, task.holdout)
    subsets = {"holdout": held, "test": test}
    before = {name: _accuracies(network, subset) for name, subset in subsets.items()}

    names = [model, dataset, problem, target]
    recovery_seed = derive_seed(seed, "recovery", *names)
    torch.manual_seed(recovery_seed)
    training = TrainingImages(images, task, source, chosen, recovery_seed, place)
    states = provenance(
        [*names, list(members)], asdict(chosen), seed, place, dataset_folder, model_folder,
        masks=sha256(Path(masks_folder) / "masks.safetensors"), holdout=holdout,
    )  # fmt: skip
    kept = {f"source.{name}": bits for name, bits in kept_weights(masks_folder, source.module).items()}
    teacher = None
    if chosen.distillation:
        teacher = Teacher(to_channels_last(source.module, place, images.size), chosen.distillation, chosen.temperature)
    file = Checkpoint(checkpoint, states, __file__)
    weights = class_weights(task.train.labels, len(task.classes)) if is_balanced else None
    history = train(network, training, chosen, teacher, held, kept, file, weights, recovery_seed)
    logits, labels = predict(network, test)
    matrix = confusion_matrix(logits.argmax(1), labels, len(task.classes))
    if not allow_one_answer:
        subject = f"The model of the {problem} problem {target}, after its recovery,"
        advice = "lower recovery.lr, or leave recovery out."
        require_several_answers(matrix, task.classes, subject, advice)
    metadata = {"masks_sha256": states["masks"]}
    save_tensors(folder / RECOVERED, copy_state(network), metadata)
    import pandas as pd

    write_csv(folder / "recovery.csv", pd.DataFrame(history))
    after = {name: _accuracies(network, subset) for name, subset in subsets.items()}
    metrics = {
        **dict(zip(("model", "dataset", "problem", "target"), names, strict=True)),
        "settings": asdict(chosen),
        "seed": seed,
        "accuracy": {"before": before["test"][0], "after": after["test"][0]},
        "balanced_accuracy": {"before": before["test"][1], "after": after["test"][1]},
        "per_class": class_metrics(matrix, task.classes),
        "confusion": matrix,
        "holdout_accuracy": (
            {name: values["holdout"][is_balanced] for name, values in (("before", before), ("after", after))}
            if len(task.holdout)
            else None
        ),
        "masks_sha256": states["masks"],
        "epochs": len(history),
        "seconds": sum(row["seconds"] for row in history),
        **environment(place),
    }
    write_json(folder / "recovery.json", metrics)
    log.info("test accuracy %.4f before recovery, %.4f after it", before["test"][0], after["test"][0])
    file.remove()
    return metrics


def _accuracies(network: nn.Module, subset: Any) -> tuple[float | None, float | None]:
    """Return (accuracy, balanced accuracy) on batches of images; None if there are none."""
    if not len(subset.labels):
        return None, None
    outputs = predict(network, subset)
    return accuracy(*outputs), balanced_accuracy(*outputs)


def train(
    network: nn.Module,
    images: Batches,
    settings: RecoverySettings,
    teacher: Teacher | None,
    held: Any,
    kept: Mapping[str, torch.Tensor],
    checkpoint: Checkpoint | None = None,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Train `network`, which `with_head` made, in place; return its history, a dictionary for each epoch.

    Adam, whose rates rise over 200 steps and fall to zero along a cosine. teacher: whose answers the outputs of the
    network's `source` learn. held: batches of images for the history. kept: {parameter: bool}; the others stay zero.
    weights: how often an image of each class counts in the loss; the history then has balanced accuracies. seed: of the
    batches that are mixed (`settings.cutmix`). In the history, a mixed image is right if the network names the class of
    the image that another was pasted into.
    """
    loss_of = class_loss(weights, next(network.parameters()).device)
    source, relu, head = (network.get_submodule(name) for name in ("source", "relu", "head"))
    groups = [(list(source.parameters()), settings.lr), (list(head.parameters()), settings.lr_head)]
    optimizer = Adam(groups, warm_cosine(settings.epochs * len(images)))
    parameters = dict(network.named_parameters(remove_duplicate=False))
    masked = [(parameters[name], bits.to(parameters[name].device)) for name, bits in kept.items()]
    mixing = Mixing(settings.cutmix, len(next(head.parameters())), seed)

    def step(batch: torch.Tensor, labels: torch.Tensor) -> Batch:
        batch, targets = mixing.apply(batch, labels, run.epoch, run.batch)
        features = forward(source, batch)
        logits = head(relu(features))
        loss = loss_of(logits, targets)
        total = loss if teacher is None else loss + teacher.loss(features, batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, bits in masked:
                parameter.mul_(bits)
        return logits, loss

    parts = {"network": network, "optimizer": optimizer}
    with TrainingRun(images, parts, checkpoint, ADVICE) as run:

        def begin() -> None:
            set_training_mode(network, batch_norm=settings.train_batch_norm)

        return train_epochs(run, settings.epochs, step, begin, network, held, weights)


def train_epochs(
    run: TrainingRun,
    epochs: int,
    step: Step,
    begin: Callable[[], Any],
    model: nn.Module,
    held: Any,
    weights: Sequence[float] | None,
) -> list[dict[str, Any]]:
    """Train `model` by `step` until `run` has so many epochs, each measured on the images `held`; return the history.

    begin: puts the model into training mode. weights: of the classes, if the balanced accuracy counts.
    """
    run.most_epochs = epochs
    while run.epoch <= epochs:
        begin()
        count, right, loss = run.train_epoch(step)
        shown = None
        if len(held.labels):
            shown = (accuracy if weights is None else balanced_accuracy)(*predict(model, run.interruptible(held)))
        row = {
            "epoch": run.epoch,
            "cross_entropy": loss / count,
            "train_accuracy": right / count,
            "accuracy": shown,
            "seconds": run.epoch_seconds(),
        }
        log.info("epoch %d/%d %s", run.epoch, epochs, {k: v and round(v, 4) for k, v in row.items()})
        run.end_epoch(row)
    return run.history


class TrainingImages:
    """The training batches of a problem; with `fresh_negatives`, the rest of two classes is drawn anew in each epoch.

    The rest is then drawn from all training images of other classes that are not held out.
    """

    def __init__(
        self,
        images: Dataset,
        problem: TargetProblem,
        source: Source,
        settings: RecoverySettings,
        seed: int,
        device: torch.device,
    ) -> None:
        self.images, self.problem, self.source, self.device = images, problem, source, device
        self.batch_size, self.first = settings.batch_size, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.positives = problem.train.indices[problem.train.labels == 0]
        self.fresh = settings.fresh_negatives and problem.kind in ("binary", "group")
        targets = [images.classes.index(member) for member in problem.members]
        others = np.flatnonzero(~np.isin(images.train.labels, targets))
        self.others = np.setdiff1d(others, problem.holdout.indices)
        self.fixed = self._batches(problem.train.indices, problem.train.labels)

    def _batches(self, indices: np.ndarray, labels: np.ndarray) -> Any:
        return batches(
            self.images.train, indices, labels, self.batch_size, normalization=self.source.normalization,
            device=self.device, augmentation=self.images.augmentation, generator=self.generator, shuffle=True,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.fixed)

    def starting_at(self, batch: int) -> TrainingImages:
        """Let the next epoch begin with its batch number `batch`; return self."""
        self.first = batch
        return self

    def __iter__(self) -> Iterator[Batch]:
        first, self.first = self.first, 0
        epoch = self.fixed
        if self.fresh:
            count = len(self.problem.train) - len(self.positives)
            order = torch.randperm(len(self.others), generator=self.generator)[:count].numpy()
            indices = np.concatenate([self.positives, self.others[order]])
            epoch = self._batches(indices, np.repeat([0, 1], [len(self.positives), count]))
        return iter(epoch.starting_at(first))

"""Baselines of a search of channels: what is reached at equal MACs and in equal training time without the search.

Each has a name, as `baselines` of the config lists it, and a folder in the target problem's folder:

- `widths-scratch`: the widths that the search found, trained from random weights.
- `widths-magnitude`, `widths-taylor`: these widths, of the source model's channels with the largest weights, or with
  the largest Taylor scores on the training images, removed at once.
- `uniform-...`: the same with one share of the channels in all layers, at the MACs of the search's result.
- `finetuned`: the whole source model.

With `-distilled` behind its name, a baseline also learns the source model's answers, as recovery does. All are trained
on the images of the recovery, those from random weights by SGD as `training` says, the others as in recovery. The last
epoch is the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam.data.storage import open_dataset
from seam.errors import UserError
from seam.files import load_tensors
from seam.log import log
from seam.masks.bits import unpack_groups
from seam.masks.channel_costs import macs_cost, multiples
from seam.masks.channel_scores import magnitude_scores
from seam.masks.channels import ChannelGroups
from seam.masks.layers import maskable, unused_parameters
from seam.masks.shrink import shrink
from seam.models.architectures import build_model
from seam.models.surgery import copy_state, to_channels_last, with_head
from seam.models.uses import count_uses
from seam.models.weights import open_source
from seam.precision import forward
from seam.reuse.baselines import head_rate, write_results
from seam.reuse.direct import Reengineering
from seam.reuse.load import load_reengineered
from seam.reuse.recovery import TrainingImages, train, train_epochs
from seam.search.channel_training import ChannelMasks
from seam.search.training import train_head
from seam.seeds import derive_seed
from seam.settings import DISTILLED, RecoverySettings, TrainingSettings
from seam.training.adam import Adam
from seam.training.checkpoint import Checkpoint
from seam.training.distillation import Teacher
from seam.training.losses import class_loss
from seam.training.mixing import UNMIXED, Mixing
from seam.training.run import Batch, Batches, TrainingRun
from seam.training.supervised import one_cycle

FORWARD = 1 / 3  # of what a training step costs: backward costs twice as much as forward
UNIFORM_MULTIPLE = 4  # of uniform widths, or the search's if that is less


def train_channel_baseline(
    baseline: str,
    search_folder: str | Path,
    checkpoint: str | Path,
    recovery: Mapping[str, Any],
    training: Mapping[str, Any],
    **arguments: Any,
) -> dict[str, Any]:
    """Train a baseline of a target problem whose search of channels is done; write its folder; return the metrics.

    The folder gets masks.safetensors, from which `seam.load` loads the model, history.csv and metrics.json.

    baseline: its name. search_folder: the target problem's, with masks.safetensors and metrics.json. checkpoint: the
    path of the file to resume from. recovery: `RecoverySettings` that follow the search; {}: none do. training:
    `TrainingSettings` of those from random weights, without epochs and batch size, which are those of the recovery.
    arguments: those of `Reengineering`, of the search; `folder` is the baseline's.
    """
    each = Reengineering(**arguments, checkpoint=checkpoint)
    assert each.groups is not None
    groups, plain = each.groups, baseline.removesuffix(DISTILLED)
    source = open_source(each.model_folder, architecture=each.architecture)
    images = next(iter(each.selection))[0][:1].cpu().contiguous()
    macs = macs_cost(source.module, groups, count_uses(source.module, images))
    searched = _searched(Path(search_folder) / "masks.safetensors", groups, each.provenance["source model"])
    chosen = RecoverySettings(**recovery)
    is_distilled, from_nothing = baseline.endswith(DISTILLED), "scratch" in plain
    share = macs.share(searched)
    counts = {name: int(bits.sum()) for name, bits in groups.split(searched).items()}
    if plain == "finetuned":
        counts = dict(groups.sizes)
    elif plain.startswith("uniform"):
        counts = uniform_widths(groups, macs.share, share, each.settings.of_channels.multiple)
    baseline_share = macs.share(torch.cat([torch.arange(size) < counts[name] for name, size in groups.sizes.items()]))
    if plain.startswith("uniform") and baseline_share > share * 1.05:
        log.warning(
            "%s keeps %.1f %% of the MACs and the search %.1f %%: uniform widths keep all residual branches and some "
            "channels of each layer",
            baseline, 100 * baseline_share, 100 * share,
        )  # fmt: skip
    epochs = equal_epochs(each.settings, recovery, share, baseline_share, is_distilled)
    log.info("%d epochs at %.1f %% of the MACs cost what search and recovery do", epochs, 100 * baseline_share)

    seed = derive_seed(arguments["seed"], "baseline", baseline, *each.names.values())
    kept = _choose(plain, counts, each, source.module, seed)
    torch.manual_seed(seed)
    network = source.module
    if from_nothing:
        network = build_model(source.architecture, len(source.classes), source.checksum)
    unused = unused_parameters(network, images)
    count = sum(parameter.numel() for parameter in maskable(network, unused).values())
    shrink(network, groups, kept)
    model = with_head(to_channels_last(network, each.device, each.size), len(source.classes), len(each.problem.classes))
    model = model.to(each.device).requires_grad_(True)
    teacher = None
    if is_distilled:
        frozen = open_source(each.model_folder, architecture=each.architecture).module
        weight = chosen.distillation or RecoverySettings.distillation
        teacher = Teacher(to_channels_last(frozen, each.device, each.size), weight, chosen.temperature)
    data = open_dataset(arguments["dataset_folder"])
    batches = TrainingImages(data, each.problem, source, chosen, seed, each.device)
    depends = {"baseline": baseline, "widths": counts, "epochs": epochs, "recovery": asdict(chosen)}
    if from_nothing:
        depends["training"] = dict(training)
    file = Checkpoint(checkpoint, {**each.provenance, **depends}, __file__)
    weights = each.class_weights
    held: Any = each.selection if each.uses_holdout else _NoImages()
    if from_nothing:
        settings = TrainingSettings(**{**training, "epochs": epochs, "batch_size": chosen.batch_size})
        mixing = Mixing(chosen.cutmix, len(each.problem.classes), seed)
        history = train_from_nothing(model, batches, settings, teacher, held, file, weights, mixing)
    else:
        settings = RecoverySettings(**{**asdict(chosen), "epochs": epochs})
        history = train(model, batches, settings, teacher, held, {}, file, weights, seed)
    each.save_channels(model.get_submodule("source"), groups, kept, copy_state(model.get_submodule("head")))
    stored: Any = load_reengineered(each.folder, architecture=each.architecture)
    stored = to_channels_last(stored, each.device, each.size)
    left = sum(parameter.numel() for parameter in maskable(stored.source, unused).values())
    recorded = {**each.settings.recorded(), "training": asdict(settings)}
    metrics = write_results(
        each, baseline, stored, history, len(history), (count, left), recorded,
        macs={"search": share, "baseline": baseline_share}, widths=counts,
    )  # fmt: skip
    file.remove()
    return metrics


class _NoImages:
    """Held-out images of a problem that has none."""

    labels = ()


def _searched(path: Path, groups: ChannelGroups, checksum: str) -> torch.Tensor:
    """Return the units that a search keeps, bool [units]. Raises UserError if it was of another source model."""
    tensors, metadata = load_tensors(path)
    packed = {key.removeprefix("channels/"): value for key, value in tensors.items() if key.startswith("channels/")}
    if metadata.get("source_sha256") != checksum or packed.keys() | groups.branches.keys() != groups.sizes.keys():
        raise UserError(f"{path} was searched for another source model: run the workflow again to make it.")
    return groups.joined(groups.completed(unpack_groups(packed, groups.sizes)))


def _choose(plain: str, counts: Mapping[str, int], each: Reengineering, network: nn.Module, seed: int) -> torch.Tensor:
    """Return which units a baseline keeps, bool [units]: in each group those of the highest scores."""
    groups = each.groups
    assert groups is not None
    if plain.endswith("magnitude"):
        scores = magnitude_scores(network, groups)
    elif plain.endswith("taylor"):
        scores = _taylor_scores(each, groups, seed)
    else:
        scores = -torch.arange(groups.count).float()  # random weights are all the same
    kept = torch.zeros(groups.count, dtype=torch.bool)
    first = 0
    for (name, size), part in zip(groups.sizes.items(), groups.split(scores).values(), strict=True):
        kept[first + part.topk(counts[name]).indices] = True
        first += size
    return kept


def _taylor_scores(each: Reengineering, groups: ChannelGroups, seed: int) -> torch.Tensor:
    """Return the Taylor scores on the training images, as the search's first masks, after an epoch of a head alone."""
    model, torch_seed = each.model, derive_seed(seed, "head")
    torch.manual_seed(torch_seed)
    network = model.get_submodule("source")
    network.requires_grad_(False)
    model.eval()
    loss = each.loss()
    step = train_head(model, Adam([(model.get_submodule("head").parameters(), head_rate(each.settings))]), loss)
    for images, labels in each.train:
        step(images, labels)
    masks = ChannelMasks(network.requires_grad_(True), groups)
    for images, labels in each.train:
        model.zero_grad()
        loss(forward(model, images), labels).backward()
        masks.restore()
    return masks.worth.cpu()


def uniform_widths(groups: ChannelGroups, share: Any, most: float, multiple: int) -> dict[str, int]:
    """Return the widths with one share of the channels in each group whose cost is the highest of at most `most`.

    share: a function of the kept units. Widths are multiples of UNIFORM_MULTIPLE, or of `multiple` if that is less, so
    that their MACs come close.
    """
    unit = min(multiple, UNIFORM_MULTIPLE)
    best: tuple[float, dict[str, int]] | None = None
    for percent in range(1, 101):
        widths = {
            name: min(multiples(size, unit), key=lambda width: abs(width - size * percent / 100))
            for name, size in groups.sizes.items()
        }
        cost = share(torch.cat([torch.arange(size) < widths[name] for name, size in groups.sizes.items()]))
        if best is None or best[0] < cost <= most:
            best = cost, widths
    assert best is not None
    return best[1]


def equal_epochs(
    search: Any, recovery: Mapping[str, Any], share: float, baseline_share: float, is_distilled: bool
) -> int:
    """Return the number of epochs that cost what search and recovery do, at least 1.

    search: its settings, complete. share: of the MACs that the search keeps. baseline_share: of
    those that the baseline keeps. An epoch costs its network's share of the MACs, and a third of the source model's if
    that teaches. The search computes with all channels, and its first epoch trains the head alone.
    """
    channels = search.of_channels
    taught = FORWARD if channels.distillation and channels.train_weights else 0.0
    total = FORWARD + (search.epochs - 1) * (1 + taught)
    if recovery:
        total += recovery["epochs"] * (share + FORWARD * bool(recovery["distillation"]))
    return max(1, round(total / (baseline_share + FORWARD * is_distilled)))


def train_from_nothing(
    model: nn.Module,
    batches: Batches,
    settings: TrainingSettings,
    teacher: Teacher | None,
    held: Any,
    checkpoint: Checkpoint | None,
    weights: Sequence[float] | None = None,
    mixing: Mixing = UNMIXED,
) -> list[dict[str, Any]]:
    """Train `model`, which `with_head` made of a random network, in place; return its history.

    SGD with Nesterov momentum and a one-cycle rate, which suits random weights; batch norm trains. weights: as those of
    `seam.reuse.recovery.train`. mixing: of the batches.
    """
    loss_of = class_loss(weights, next(model.parameters()).device, settings.label_smoothing)
    source, relu, head = (model.get_submodule(name) for name in ("source", "relu", "head"))
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, one_cycle(settings.epochs * len(batches)))

    def step(images: torch.Tensor, labels: torch.Tensor) -> Batch:
        images, targets = mixing.apply(images, labels, run.epoch, run.batch)
        features = forward(source, images)
        logits = head(relu(features))
        loss = loss_of(logits, targets)
        total = loss if teacher is None else loss + teacher.loss(features, images)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)  # the distillation loss of random weights is large
        optimizer.step()
        schedule.step()
        return logits, loss

    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    with TrainingRun(batches, parts, checkpoint, "lower training.lr") as run:
        return train_epochs(run, settings.epochs, step, model.train, model, held, weights)

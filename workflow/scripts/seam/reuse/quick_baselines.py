"""Baselines in seconds: heads on the features of a few fixed draws of the augmented training images.

The network below a baseline's head is frozen, so that its outputs need not be computed again in each epoch if the
images do not change. `seam.reuse.baselines` draws new crops in each epoch, as the search does. This module draws
`draws` epochs of them once and goes through them in turn: the head sees fewer different images. It makes
no results of the workflow, but tells in seconds what they will be like.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from seam.data.drawing import members_of_result
from seam.errors import UserError
from seam.files import read_json
from seam.precision import exact
from seam.reuse.baselines import OVERALL, Baseline, apply_bits, head_rate
from seam.search.training import cosine
from seam.training.adam import Adam
from seam.training.losses import Loss


def quick_baseline(baseline: str, search_folder: str | Path, draws: int = 4, **arguments: Any) -> dict[str, Any]:
    """Return {"baseline", "accuracy", "holdout_accuracy", "retention", "search", "search_retention", "source", ...}.

    baseline: any but `scratch` and `biases`; heads alone are trained, also if the search trains biases. search_folder:
    of a target problem in the workflow's results. arguments: of `Reengineering` that the folder does not tell, such as
    `architecture`. Accuracies are balanced ones if these decided the search. Nothing is written. Raises UserError for
    another baseline, and for a search of channels.
    """
    folder = Path(search_folder)
    search = read_json(folder / "metrics.json")
    scores = ("magnitude", "random", "activation", "snip")
    known = ("head", *scores, *(f"{score}{OVERALL}" for score in scores))
    if baseline not in known:
        raise UserError(f"{baseline} cannot be estimated from features: choose among {', '.join(known)}.")
    if search["settings"].get("granularity") == "channel":
        raise UserError(f"{folder} is of a search of channels: give folders of searches of single weights.")
    results = Path(os.path.abspath(folder)).parents[3]  # results/direct/{model}/{problem}/{target}
    ready = Baseline(
        baseline,
        folder,
        checkpoint=folder / "unused.pt",
        folder=folder,
        model_folder=results / "models" / search["model"],
        dataset_folder=results / "datasets" / search["dataset"],
        members=members_of_result(search),
        settings=search["settings"],
        device="cpu",
        **{name: search[name] for name in ("model", "dataset", "problem", "target", "seed")},
        **arguments,
    )
    each = ready.reengineering
    model, settings = each.model, each.settings
    first_head = {name: value.clone() for name, value in model.get_submodule("head").state_dict().items()}
    bits = ready.masks()
    apply_bits(model.get_submodule("source"), bits)
    model.get_submodule("head").load_state_dict(first_head)
    train = [features(model, each.train) for _ in range(draws)]
    held_out, test = features(model, each.selection), features(model, each.test)
    factor = cosine(ready.epochs * len(each.train)) if settings.schedule != "published" else None
    epoch, best, result = train_on_features(
        model.get_submodule("head"),
        train,
        held_out,
        test,
        ready.epochs,
        settings.batch_size,
        head_rate(settings),
        each.loss(),
        each.measure,
        factor,
        takes_last=settings.selection == "last",
    )
    count = sum(bit.numel() for bit in bits.values())
    return {
        **{name: search[name] for name in ("model", "problem", "target")},
        "baseline": baseline,
        "accuracy": result,
        "holdout_accuracy": best,
        "selected_epoch": epoch,
        "retention": sum(int(bit.sum()) for bit in bits.values()) / count,
        "search": search[search["decided_by"]]["reengineered"],
        "search_retention": search["retention"],
        "source": search[search["decided_by"]]["source"],
    }


@exact()
@torch.no_grad()
def features(model: torch.nn.Module, batches: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the head of `model` reads, [N, K], and the labels [N], of all images of `batches`."""
    model.eval()
    source, relu = model.get_submodule("source"), model.get_submodule("relu")
    values, labels = zip(*((relu(source(images)), labels) for images, labels in batches), strict=True)
    return torch.cat(values), torch.cat(labels)


def train_on_features(
    head: torch.nn.Module,
    train: list[tuple[torch.Tensor, torch.Tensor]],
    held_out: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    epochs: int,
    batch_size: int,
    lr: float,
    loss: Loss,
    measure: Callable[[torch.Tensor, torch.Tensor], float],
    factor: Any = None,
    takes_last: bool = False,
) -> tuple[int, float, float]:
    """Train the head; return (selected epoch, its accuracy on the held-out images, that on the test images).

    train: features and labels of each draw, which take turns. measure: the accuracy, of logits [N, n] and labels [N].
    takes_last: whether the last epoch is selected instead of the best one.
    """
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    optimizer, generator = Adam([(head.parameters(), lr)], factor), torch.Generator().manual_seed(0)
    best = (0, -1.0, 0.0)
    for epoch in range(1, epochs + 1):
        values, labels = train[(epoch - 1) % len(train)]
        for part in torch.randperm(len(labels), generator=generator).split(batch_size):
            optimizer.zero_grad()
            loss(head(values[part]), labels[part]).backward()
            optimizer.step()
        with torch.no_grad():
            reached = measure(head(held_out[0]), held_out[1])
            if epoch == epochs if takes_last else reached > best[1]:
                best = epoch, reached, measure(head(test[0]), test[1])
    return best

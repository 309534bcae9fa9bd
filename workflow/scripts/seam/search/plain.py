"""The mask search of one target problem: gradient descent on which weights the problem needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from seam import evaluation
from seam.errors import UserError
from seam.masks.biases import Biases
from seam.masks.costs import make_cost, penalty_share, relative_prices
from seam.masks.layers import unused_parameters
from seam.masks.masks import Masks
from seam.memory import own_mappings
from seam.search.budget import BUDGET_ADVICE, BudgetSearch, bias_rate, prepare_budget, prepare_budget_training
from seam.search.distillation import Distillation
from seam.search.inputs import first_images
from seam.search.mask_search import ADVICE, MaskSearch, Measure, SearchResult
from seam.search.training import prepare_training
from seam.settings import SearchSettings
from seam.training.checkpoint import Checkpoint
from seam.training.losses import class_loss
from seam.training.run import Batch, Batches, TrainingRun


def search(
    model: nn.Module,
    batches: Batches,
    selection: Iterable[Batch],
    source_accuracy: float,
    settings: SearchSettings,
    checkpoint: Checkpoint | None = None,
    layer_costs: Mapping[str, Any] | None = None,
    distillation: Distillation | None = None,
    *,
    class_weights: Sequence[float] | None = None,
    measure: Measure = evaluation.accuracy,
) -> SearchResult:
    """Search the masks and the head of `model`, which `with_head` made; return the result.

    model: is changed in place. It ends in eval mode with the masks, biases and head of the selected epoch, which the
        result has as well; its removed weights are zero.
    batches: the training batches of an epoch. selection: batches of the images on which epochs are compared.
    source_accuracy: that of the source model on the images of the selection. checkpoint: where to resume from.
    class_weights: how often an image of each class counts in the loss. measure: the accuracy by which epochs are
    compared, plain or balanced.
    layer_costs: what weights cost in an engine, if the settings count latency (see `seam.masks.costs.latency_cost`).
    distillation: from the source model, in a search that meets a budget.

    Random numbers come from torch's own generator: call `torch.manual_seed` before. Raises UserError if the settings
    are of a search of channels, if images, labels and model do not fit together, if the loss is not finite or if no
    weight is left. A search that fails or is interrupted leaves the network as it was, and the head trained.
    """
    if settings.granularity == "channel":
        raise UserError("These settings are of a search of channels: call seam.search.by_channel.search_channels.")
    network, head = model.get_submodule("source"), model.get_submodule("head")
    network.requires_grad_(False)
    images = first_images(model, selection)
    exclude = unused_parameters(network, images)
    with own_mappings():
        masks = Masks(network, exclude)
    loss = class_loss(class_weights, next(head.parameters()).device)
    if settings.budget is not None:
        budget = prepare_budget(masks, network, images, settings, len(batches), layer_costs)
        biases = Biases(network, masks) if bias_rate(settings, budget.steps) else None
        training = prepare_budget_training(model, head, masks, budget, settings, distillation, biases=biases, loss=loss)
        run = TrainingRun(batches, training.parts, checkpoint, BUDGET_ADVICE)
        with _unchanged_on_failure(model, masks, biases), run:
            mask_search = BudgetSearch(run, settings, source_accuracy, budget, measure=measure, biases=biases)
            mask_search.search(training, selection)
        return _restore(mask_search.result(network), model, masks, biases)
    cost = None if settings.price == "weights" else make_cost(settings.price, masks, network, images, layer_costs)
    masks.prices = None if cost is None else relative_prices(cost, masks)
    training = prepare_training(model, head, masks, settings, len(batches), loss=loss)
    run = TrainingRun(batches, training.parts, checkpoint, ADVICE)
    with _unchanged_on_failure(model, masks), run:
        mask_search = MaskSearch(run, settings, source_accuracy, measure=measure)
        if cost is not None:
            mask_search.penalty_share = lambda: penalty_share(cost, masks)
        mask_search.search(training, selection)
    return _restore(mask_search.result(network), model, masks)


@contextlib.contextmanager
def _unchanged_on_failure(model: nn.Module, masks: Masks, biases: Biases | None = None) -> Iterator[None]:
    """Give the source network its own weights and biases if what runs in this context fails or is interrupted."""
    try:
        yield
    except BaseException:  # also Ctrl-C in a notebook, after which a search may begin on the same network
        masks.train(False)
        if biases is not None:
            biases.add({name: torch.zeros_like(value) for name, value in biases.initial.items()})
            biases.train(False)
        masks.load_state_dict({name: torch.ones_like(value) for name, value in masks.values.items()})
        model.eval()
        raise


def _restore(result: SearchResult, model: nn.Module, masks: Masks, biases: Biases | None = None) -> SearchResult:
    """Put the model into the state of the selected epoch; return the result."""
    masks.train(False)
    if biases is not None:
        biases.add(result.shifts or {})
        biases.train(False)
    masks.load_state_dict({name: bits.float() for name, bits in result.bits.items()})
    model.get_submodule("head").load_state_dict(result.head)
    model.eval()
    return result

"""A search that meets a budget: any model, any budget, exactly repeatable."""

import itertools
import random

import numpy as np
import pytest
import torch
from networks import Residual, vgg
from torch import nn

from seam import evaluation
from seam.data.problems import Subset, TargetProblem
from seam.errors import UserError
from seam.masks.biases import add_shifts
from seam.masks.bits import bake
from seam.masks.costs import make_cost, relative_prices
from seam.masks.masks import Masks
from seam.models.cifar import resnet20
from seam.models.surgery import with_head
from seam.models.uses import count_uses
from seam.search.budget import WITHIN, Budget, rank_within_budget
from seam.search.distillation import Distillation, source_outputs
from seam.search.plain import search
from seam.settings import SearchSettings, choose_batch_size, search_settings
from seam.training.checkpoint import Checkpoint

IMAGES = torch.zeros(2, 3, 16, 16)


def batches(count=96, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.randn(count, 3, 16, 16, generator=generator) + (2.0 * labels[:, None, None, None] - 1)
    return list(zip(images.split(size), labels.split(size), strict=True))


def model(kind):
    torch.manual_seed(0)
    network = {"residual": Residual, "vgg": lambda: vgg()}[kind]().to(memory_format=torch.channels_last)
    return with_head(network, {"residual": 5, "vgg": 2}[kind], 2)


def run(kind="residual", checkpoint=None, train=None, **budget):
    settings = SearchSettings(**search_settings({"budget": {"epochs": 5, "batch_size": 16} | budget}))
    network = model(kind)
    torch.manual_seed(1)
    return search(network, train or batches(), batches(48, seed=1), 0.9, settings, checkpoint)


@pytest.mark.parametrize("unit", ["weights", "macs"])
@pytest.mark.parametrize("kind", ["residual", "vgg"])
def test_any_budget_is_met_within_five_per_cent(kind, unit):
    for share in random.Random(f"{kind} {unit}").choices(range(5, 61), k=3):
        result = run(kind, **{unit: share / 100})
        row = result.history[result.selected_epoch - 1]
        assert result.budget["met"] and result.budget["limit"] == share / 100
        assert 0.95 * share / 100 < row["cost"] <= share / 100, (kind, unit, share)
        costs = [row["cost"] for row in result.history]
        assert all(after < 1.02 * before for before, after in itertools.pairwise(costs)) and costs[0] == 1
        assert costs[-1] == pytest.approx(costs[-2], rel=0.05)  # the rest of the epochs is at the budget


def test_the_cost_is_that_of_the_kept_weights():
    result = run(macs=0.3)
    network = model("residual").source
    uses, parameters = count_uses(network, IMAGES), dict(network.named_parameters())
    whole = sum(times * parameters[name].numel() for name, times in uses.items())
    kept = sum(times * int(result.bits[name].sum()) for name, times in uses.items())
    assert result.budget["whole"] == pytest.approx(whole)
    assert result.budget["cost"] == pytest.approx(kept / whole)


def test_macs_can_be_given_as_a_number():
    whole = run(macs=0.3).budget["whole"]
    assert run(macs=0.3 * whole).budget["limit"] == pytest.approx(0.3)


def test_uses_are_the_macs_that_fvcore_counts():
    from seam.cost.macs import count_macs

    for network in (model("residual").source, model("vgg").source, resnet20(10)):
        uses, parameters = count_uses(network, IMAGES), dict(network.named_parameters())
        macs = count_macs(network, (3, 16, 16))["dense"]
        total = sum(times * parameters[name].numel() for name, times in uses.items())
        assert total == pytest.approx(macs["convolution"] + macs["linear"])


def test_a_penalty_by_macs_lets_weights_of_large_maps_leave_first():
    network = model("residual").source
    masks = Masks(network)
    weights, macs = (make_cost(unit, masks, network, IMAGES) for unit in ("weights", "macs"))
    budget = Budget(masks, weights, 0.3, 1, relative_prices(macs, masks))
    for saliency in budget.saliency.values():
        saliency.fill_(1.0)
    budget.order()
    mean = {name: value.mean().item() for name, value in masks.values.items()}
    assert mean["stem.weight"] < mean["grouped.weight"] < mean["head.weight"] < mean["head.bias"]
    settings = {"penalty": "macs", "budget": {"epochs": 5, "batch_size": 16, "weights": 0.3}}
    result = search(model("residual"), batches(), batches(48), 0.9, SearchSettings(**search_settings(settings)))
    assert result.budget["met"]


def test_without_a_budget_the_penalty_is_the_share_of_macs():
    settings = SearchSettings(epochs=3, batch_size=16, lr_mask=0.1, alpha=2.0, penalty="macs", schedule="fast")
    torch.manual_seed(1)
    result = search(model("residual"), batches(), batches(48, seed=1), 0.9, settings)
    network = model("residual").source
    masks = Masks(network)
    for name, value in masks.values.items():
        value.copy_(result.bits[name].float())
    prices = relative_prices(make_cost("macs", masks, network, IMAGES), masks)
    share = sum(prices[name] * bits.sum().item() for name, bits in result.bits.items()) / masks.count
    row = result.history[result.selected_epoch - 1]
    assert row["penalty"] == pytest.approx(2.0 * share)
    assert abs(row["penalty"] - 2.0 * row["retention"]) > 1e-3


def test_masks_are_shifted_onto_the_ramp_and_keep_their_order():
    masks = Masks(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)))
    masks.order_by_magnitude()
    before = {name: value.clone() for name, value in masks.values.items()}
    budget = Budget(masks, make_cost("weights", masks, nn.Identity(), IMAGES), 0.2, steps=9)
    for step in range(1, 10):
        budget.step()
        assert budget.cost_share() <= float(budget.target())
        assert budget.cost_share() > float(budget.target()) - 2 / masks.count, step
    assert budget.cost_share() == pytest.approx(0.2, abs=2 / masks.count)
    for name, value in masks.values.items():
        assert torch.equal(value.flatten().argsort(stable=True), before[name].flatten().argsort(stable=True))


def test_no_parameter_loses_all_its_masks():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False))
    masks = Masks(network)
    masks.order_by_magnitude()
    masks.values["0.weight"].sub_(10)
    budget = Budget(masks, make_cost("weights", masks, network, IMAGES), 0.1, steps=1)
    budget.step()
    assert int((masks.values["0.weight"] > 0).sum()) == 1


def test_a_budget_below_the_fixed_cost_ends_in_a_sentence():
    sentence = r"A budget of 0.01 % of the MACs cannot be met: .* leaves [0-9.]+ % of the MACs\. Raise the budget"
    with pytest.raises(UserError, match=sentence):
        run(macs=0.0001)
    with pytest.raises(UserError, match=r"A budget of 2 MACs cannot be met: .* leaves [0-9,]+ MACs\. Raise"):
        run(macs=2)


def test_masks_begin_in_the_order_of_their_saliency_over_all_layers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    masks = Masks(network)
    budget = Budget(masks, make_cost("weights", masks, network, IMAGES), 0.5, steps=1)
    network(torch.ones(1, 3, 8, 8)).square().sum().backward()
    expected = {
        name: (parameter.grad * parameter).abs().clamp(max=1).detach() for name, parameter in masks.parameters.items()
    }
    budget.observe()
    for name, saliency in budget.saliency.items():
        torch.testing.assert_close(saliency, expected[name])
    budget.order()
    values = torch.cat([value.flatten() for value in masks.values.values()])
    expected = torch.cat([value.flatten() for value in expected.values()])
    order = values.argsort()
    assert torch.equal(expected[order], expected.sort().values)
    assert (values.min().item(), values.max().item()) == (0.25, 1.75)


def test_the_batch_size_leaves_enough_steps():
    assert [choose_batch_size(images, 30) for images in (8000, 1600, 2000, 800, 50)] == [64, 32, 32, 16, 16]


def test_the_last_of_the_most_accurate_epochs_within_the_budget_is_selected():
    ranks = [rank_within_budget(*values, 0.1) for values in ((0.99, 0.3), (0.8, 0.104), (0.9, 0.1), (0.7, 0.11))]
    assert max(ranks) == ranks[2] and ranks[1] > ranks[3] > ranks[0]
    result = run(weights=0.3)
    within = [row for row in result.history if row["cost"] <= WITHIN * 0.3]
    best = max(row["accuracy"] for row in within)
    assert result.selected_epoch == max(row["epoch"] for row in within if row["accuracy"] == best)


def without_time(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def test_a_search_is_repeatable_and_resumes_exactly(tmp_path):
    whole, again = run(weights=0.2), run(weights=0.2)
    assert without_time(whole.history) == without_time(again.history)

    class Interrupted(list):
        epochs = 0

        def __iter__(self):
            self.epochs += 1
            for number, batch in enumerate(super().__iter__()):
                if self.epochs == 3 and number == 2:
                    raise KeyboardInterrupt
                yield batch

    checkpoint = Checkpoint(tmp_path / "state.pt", {}, __file__)
    with pytest.raises(KeyboardInterrupt):
        run(weights=0.2, checkpoint=checkpoint, train=Interrupted(batches()))
    resumed = run(weights=0.2, checkpoint=checkpoint)
    assert len(resumed.history) == 5
    assert without_time(resumed.history) == without_time(whole.history)
    assert all(torch.equal(resumed.bits[name], whole.bits[name]) for name in whole.bits)


def test_a_latency_budget_follows_the_measured_costs_of_layers():
    network = model("vgg").source
    table = {"fixed_ms": 0.5, "weight_ms": {f"{name}.weight": 1e-3 * (5 - place) for place, name in enumerate("049")}}
    parameters = dict(network.named_parameters())
    table["weight_ms"] = {name: time for name, time in table["weight_ms"].items() if name in parameters}
    settings = SearchSettings(**search_settings({"budget": {"latency_ms": 1.5, "epochs": 4, "batch_size": 16}}))
    torch.manual_seed(1)
    result = search(model("vgg"), batches(), batches(48), 0.9, settings, layer_costs=table)
    kept = {name: int(bits.sum()) for name, bits in result.bits.items()}
    expected = 0.5 + sum(time * kept[name] for name, time in table["weight_ms"].items())
    assert result.budget["cost"] * result.budget["whole"] == pytest.approx(expected)
    assert 0.95 * 1.5 < expected <= 1.5
    with pytest.raises(UserError, match="needs a table"):
        search(model("vgg"), batches(), batches(48), 0.9, settings)


def test_distillation_teaches_the_probabilities_of_the_source_model():
    source = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    images, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 1, 0, 1])
    distillation = Distillation(source, [[2], [0, 1, 3]], [2, 3], 0.7)
    odds = source(images).softmax(1)
    target = odds[:, 2] * 0.4 / (odds[:, 2] * 0.4 + (1 - odds[:, 2]) / 3 * 0.6)  # each class 1 / 4 of the source's
    torch.testing.assert_close(distillation.probabilities(images)[:, 0], target.detach())
    distillation.observe(images)
    logits = torch.randn(5, 2)
    soft = nn.functional.cross_entropy(logits, torch.stack([target, 1 - target], 1).detach())
    expected = 0.3 * nn.functional.cross_entropy(logits, labels) + 0.7 * soft
    torch.testing.assert_close(distillation.loss(logits, labels), expected)


def test_a_weight_that_another_module_owns_has_the_name_of_its_mask():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(3, 3, 1, 1))
            self.first, self.second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
            self.first.weight = self.second.weight = self.kernel

        def forward(self, images):
            return self.second(self.first(images)).mean((2, 3))

    network, images = Tied(), torch.zeros(2, 3, 4, 4)
    assert count_uses(network, images) == {"first.weight": 32.0}
    masks = Masks(network)
    cost = make_cost("macs", masks, network, images)
    assert list(masks.values) == ["first.weight"]
    assert cost.share({"first.weight": torch.zeros(3, 3, 1, 1, dtype=torch.bool)}) == 0  # nothing is fixed


def test_the_rest_is_what_the_data_set_has():
    none = Subset(np.zeros(0, np.int64), np.zeros(0, np.int64))
    source = ("owl", "cat", "dog", "fox", "cow")
    for kind, classes, members, expected in (
        ("binary", ("cat", "rest"), ("cat",), [[1], [0, 2, 4]]),
        ("group", ("pets", "rest"), ("dog", "cat"), [[2, 1], [0, 4]]),
        ("multiclass_rest", ("dog", "cat", "rest"), ("dog", "cat"), [[2], [1], [0, 4]]),
        ("multiclass", ("dog", "cat"), ("dog", "cat"), [[2], [1]]),
    ):
        problem = TargetProblem(kind, classes, members, none, none, none)
        assert source_outputs(problem, source, ["cat", "cow", "dog", "owl"]) == expected


def test_a_search_learns_from_the_source_model_alone():
    torch.manual_seed(0)
    network = model("vgg")
    settings = SearchSettings(**search_settings({"budget": {"weights": 0.3, "epochs": 4, "batch_size": 16}}))
    unlabelled = [(images, torch.zeros_like(labels)) for images, labels in batches()]
    teacher = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    teacher[2].weight.data = torch.tensor([[-9.0, -9, -9], [9.0, 9, 9]])
    distillation = Distillation(teacher, [[0], [1]], [1, 1], 1.0)
    result = search(network, unlabelled, batches(48, seed=1), 0.9, settings, None, None, distillation)
    assert result.history[result.selected_epoch - 1]["accuracy"] > 0.9


@pytest.mark.parametrize("lr_bias", [0.0, 0.05])
@pytest.mark.parametrize("kind", ["residual", "vgg"])
def test_a_search_leaves_the_model_as_in_the_selected_epoch(kind, lr_bias):
    settings = SearchSettings(**search_settings({"budget": {"weights": 0.3, "epochs": 6, "lr_bias": lr_bias}}))
    found, source = model(kind), model(kind).source.eval()
    torch.manual_seed(1)
    result = search(found, batches(), batches(48, seed=1), 0.9, settings)
    assert result.selected_epoch > 1 and not found.training
    bake(source, result.bits)
    add_shifts(source, result.shifts)
    images = batches(16)[0][0]
    torch.testing.assert_close(found.source(images), source(images))
    accuracy = evaluation.accuracy(*evaluation.predict(found, batches(48, seed=1)))
    assert accuracy == result.history[result.selected_epoch - 1]["accuracy"]
    assert bool(result.shifts) is (lr_bias > 0)

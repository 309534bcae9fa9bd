"""What a weight of each layer costs in the engine for zeros."""

import pytest
import torch
from networks import Residual
from torch import nn

from seam.cost.layer_costs import measure_layer_costs
from seam.errors import UserError
from seam.models.cifar import resnet20
from seam.models.uses import calls_of


def test_a_weight_of_a_larger_map_costs_more_and_the_table_adds_up():
    torch.manual_seed(0)
    module = resnet20(10).eval()
    table = measure_layer_costs(module, (3, 32, 32), 1)
    weights = table["weight_ms"]
    parameters = dict(module.named_parameters())
    assert list(weights) == calls_of(module, torch.zeros(1, 3, 32, 32))
    assert (
        weights["layer1.1.conv1.weight"] > 2 * weights["layer2.1.conv1.weight"] > 4 * weights["layer3.1.conv1.weight"]
    )
    for density, measured in zip(table["densities"], table["measured_ms"], strict=True):
        modelled = table["fixed_ms"] + sum(time * density * parameters[name].numel() for name, time in weights.items())
        assert modelled == pytest.approx(measured, rel=0.5)  # other programs may disturb the measurement


def test_a_model_that_the_engine_does_not_run_ends_in_a_sentence():
    with pytest.raises(UserError, match="latency budget needs"):
        measure_layer_costs(nn.Sequential(Residual().eval(), nn.Softplus()), (3, 16, 16), 1)

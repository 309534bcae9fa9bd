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


def test_a_weight_that_layers_share_costs_in_each_of_them():
    torch.manual_seed(0)
    alone, shared = (nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1) for _ in range(6))) for _ in range(2))
    shared[5].weight = shared[0].weight
    tables = [measure_layer_costs(module.eval(), (32, 32, 32), 1)["weight_ms"] for module in (alone, shared)]
    assert list(tables[1]) == [f"{number}.weight" for number in range(5)]
    one, both = tables
    alone_and_last = (one["0.weight"] + one["5.weight"]) / one["3.weight"]
    assert both["0.weight"] / both["3.weight"] == pytest.approx(alone_and_last, rel=0.2)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_attention_ends_in_a_sentence():
    from torchvision.models import VisionTransformer

    module = VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=3).eval()
    with pytest.raises(UserError, match="latency budget needs"):
        measure_layer_costs(module, (3, 16, 16), 1)

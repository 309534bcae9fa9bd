"""What layers take with fewer channels, and searches of channels with a budget of time."""

import copy

import numpy as np
import pytest
import torch
from test_by_channel import network, run
from torch import nn

from seam.cost.budget import time_budget
from seam.cost.channel_costs import measure_channel_costs
from seam.cost.export import export
from seam.cost.runners.onnx_runtime import open_engine
from seam.errors import UserError
from seam.files import write_json
from seam.masks.channel_costs import ChannelTime, fewest, keep_best
from seam.masks.channels import find_groups
from seam.models.cifar import resnet20
from seam.report.budgets import budgets, sentences, write_budgets
from seam.report.tables import read_table

IMAGES = torch.zeros(1, 3, 8, 8)


def made(scale=1.0, fixed=0.0, block=1):
    """A table for `network`, in which a layer takes as long as its inputs x outputs, in blocks of outputs."""
    module = network()
    groups = find_groups(module, IMAGES)
    layers = {}
    for name, (inputs, outputs) in {"0": ([3], [4, 8, 12, 16]), "3": ([4, 8, 12, 16], [8, 16, 24])}.items():
        times = [[a * -(-b // block) * block for b in outputs] for a in inputs]
        layers[name] = {"inputs": inputs, "outputs": outputs, "ms": times}
    return module, groups, {"layers": layers, "scale": scale, "fixed_ms": fixed}


def kept(groups, *widths):
    return torch.cat([torch.arange(size) < width for size, width in zip(groups.sizes.values(), widths, strict=True)])


def test_times_are_interpolated_in_both_widths():
    _, groups, table = made(scale=2.0, fixed=5.0)
    cost = ChannelTime(groups, table)
    assert cost.total == 5 + 2 * (3 * 16 + 16 * 24)
    assert cost.milliseconds(kept(groups, 10, 20)) == pytest.approx(5 + 2 * (3 * 10 + 10 * 20))
    assert cost.share(kept(groups, 8, 8)) == pytest.approx((5 + 2 * (24 + 64)) / cost.total)


def test_a_layer_with_fewer_channels_counts_at_most_what_it_takes_with_more():
    _, groups, table = made()
    table["layers"]["3"]["ms"][1][1] *= 100  # 8 x 16 channels
    cost = ChannelTime(groups, table)
    shares = [cost.share(kept(groups, first, second)) for first in (4, 8, 12, 16) for second in (8, 16, 24)]
    grid = np.array(shares).reshape(4, 3)
    assert (np.diff(grid, axis=0) >= 0).all() and (np.diff(grid, axis=1) >= 0).all()


def test_only_widths_that_pay_are_chosen_and_others_if_the_budget_needs_them():
    _, groups, table = made(block=16)  # 8 channels take as long as 16, and 24 as long as 32
    cost = ChannelTime(groups, table)
    assert list(cost.widths(8, 0.9).values()) == [[8, 16], [16, 24]]  # 8 of 24 outputs save nothing over 16
    assert all(width % 4 == 0 for widths in cost.widths(4, 0.9).values() for width in widths)
    for row in table["layers"]["3"]["ms"]:
        row[0] *= 0.95  # 8 outputs save a little over 16
    cost = ChannelTime(groups, table)
    assert list(cost.widths(8, 0.9).values())[1] == [16, 24]
    assert list(cost.widths(8, 0.01).values())[1] == [8, 16, 24]
    assert cost.share(fewest(groups, cost.widths(8, 0.01))) < cost.share(fewest(groups, cost.widths(8, 0.9)))


def test_prices_look_beyond_an_incomplete_block():
    _, groups, table = made()
    table["layers"]["3"]["ms"] = [[a * (8 if b == 8 else 24) for b in (8, 16, 24)] for a in (4, 8, 12, 16)]
    cost = ChannelTime(groups, table)
    everything = torch.ones(groups.count, dtype=torch.bool)
    prices = groups.split(cost.prices(everything))
    second = list(prices.values())[1]
    assert second.unique().numel() == 1  # 16 save nothing, 8 do
    assert second[0].item() == pytest.approx((cost.share(everything) - cost.share(kept(groups, 16, 8))) / 16, rel=1e-5)
    assert not cost.prices(kept(groups, 1, 1)).any()


def test_what_is_kept_meets_the_budget_with_these_widths():
    _, groups, table = made(block=8)
    cost = ChannelTime(groups, table)
    worth = torch.rand(groups.count, generator=torch.Generator().manual_seed(0))
    widths = cost.widths(4, 0.5)
    chosen = keep_best(worth, groups, cost.share, 0.5, widths)
    assert cost.share(chosen) <= 0.5
    assert all(int(bits.sum()) in widths[name] for name, bits in groups.split(chosen).items())


@pytest.mark.parametrize("unit", ["latency", "latency_ms"])
def test_the_search_meets_a_budget_of_time(unit):
    _, groups, table = made(fixed=10.0)
    total = ChannelTime(groups, table).total
    limit = 0.4 * total if unit == "latency_ms" else 0.4
    found, _, result = run(budget={unit: limit, "epochs": 8}, layer_costs=table)
    cost = ChannelTime(groups, table)
    share = cost.share(groups.joined(result.bits))
    assert result.budget["met"] and share == pytest.approx(result.budget["cost"]) and share <= 0.4
    assert result.budget["whole"] == total and result.budget["name"].startswith(f"{unit}: ")
    for name, bits in result.bits.items():
        assert int(bits.sum()) in cost.widths(4, 0.4)[name]


def test_a_search_without_its_table_or_with_another_one_is_one_sentence():
    _, _, table = made()
    with pytest.raises(UserError, match="needs a table of what layers take"):
        run(budget={"latency_ms": 1.0})
    with pytest.raises(UserError, match="has no layer conv9"):
        run(budget={"latency_ms": 1.0}, layer_costs={**table, "layers": {"conv9": table["layers"]["0"]}})
    with pytest.raises(UserError, match=r"of 0.001 ms cannot be met .* at least [0-9.]+ ms\. Raise the budget above"):
        run(budget={"latency_ms": 0.001}, layer_costs=table)


class Mixed(nn.Module):
    """A depthwise convolution, a layer that is called twice, and a linear layer behind 2x2 pixels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding="same")
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.twice = nn.Conv2d(16, 16, 1)
        self.last = nn.Linear(16 * 4, 5)

    def forward(self, images):
        features = torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.depthwise(self.first(images)))))))
        return self.last(nn.functional.adaptive_avg_pool2d(features, 2).flatten(1))


def test_the_table_of_a_real_engine_holds_for_networks_that_it_has_not_seen():
    torch.manual_seed(0)
    module = resnet20(10).eval()
    before = copy.deepcopy(module.state_dict())
    table = measure_channel_costs(module, (3, 32, 32), 2, 16, "onnxruntime", open_engine)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert table["layers"].keys() == find_groups(module, torch.zeros(1, 3, 32, 32)).layers.keys() - {
        name for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)
    }
    layer = table["layers"]["layer3.1.conv1"]
    assert layer["inputs"] == layer["outputs"] == [16, 32, 48, 64]
    assert layer["ms"][3][3] > 2 * layer["ms"][0][0] > 0
    assert table["error"] < 0.5 and table["multiple"] == 16 and len(table["networks"]) == 12  # some 2 % undisturbed
    assert [network["fitted"] for network in table["networks"]] == [True] * 8 + [False] * 4


def test_depthwise_and_shared_layers_have_times():
    table = measure_channel_costs(Mixed().eval(), (3, 8, 8), 1, 8, "onnxruntime", open_engine)
    assert set(table["layers"]) == {"first", "depthwise", "twice", "last"}
    assert all(np.isfinite(layer["ms"]).all() and np.min(layer["ms"]) > 0 for layer in table["layers"].values())


def test_an_engine_that_cannot_load_a_layer_ends_in_a_sentence():
    def broken(threads, batch):
        def load(path):
            raise RuntimeError("no such operation.\nmore")

        return {"version": "1", "instruction_set": ""}, load

    with pytest.raises(UserError, match=r"cannot time a layer of the kind Conv2d alone \(no such operation\): set"):
        measure_channel_costs(network().eval(), (3, 8, 8), 1, 8, "other", broken)


def test_the_measured_time_says_whether_the_budget_is_missed(tmp_path):
    torch.manual_seed(0)
    for name in ("source", "reengineered"):
        export(network(), tmp_path / f"{name}.onnx", (3, 8, 8))
    models = {name: tmp_path / f"{name}.onnx" for name in ("source", "reengineered")}
    metrics = {"model": "net", "dataset": "pets", "problem": "binary", "budget": {"cost": 0.5, "whole": 0.25}}
    paths = []
    for target, limit in (("cat", 1e-6), ("dog", 1e6)):
        budget = {"latency_ms": limit, "engine": "onnxruntime", "batch": 2}
        result = time_budget(budget, metrics | {"target": target}, models, open_engine)
        assert result["missed"] == (target == "cat") and result["predicted_ms"] == 0.125
        assert result["measured_ms"] > 0 and result["source_measured_ms"] > 0
        paths.append(tmp_path / target / "budget_latency.json")
        write_json(paths[-1], result)
    write_budgets(tmp_path / "table.csv", paths)
    table = read_table(tmp_path / "table.csv")
    assert list(table["missed"]) == [True, False] and len(budgets(paths)) == 2
    for limit, is_missed in ((1e-6, True), (1.0, False)):
        times = {"latency": limit, "engine": "onnxruntime", "batch": 2}
        result = time_budget(
            times, metrics | {"target": "cow"}, {**models, "source": models["reengineered"]}, open_engine
        )
        assert result["budget_ms"] == limit * result["source_measured_ms"]
        assert result["missed"] == (result["measured_ms"] > 1.05 * result["budget_ms"])
        assert is_missed == result["missed"] or limit == 1.0
    missed, met = sentences(table)
    assert missed.startswith("Budget missed: net, cat takes") and "1 of 2 met" in met

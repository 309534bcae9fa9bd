"""Residual branches that are removed as a whole: which they are, that removal is exact, and what it saves."""

import copy
import json
import shutil
from dataclasses import asdict

import onnx
import pytest
import torch
from colours import ARCHITECTURE, trained_model
from test_channel_baselines import TRAINING
from test_channels import randomise
from test_search import batches
from torch import nn

from seam.cost.export import export
from seam.cost.macs import count_macs
from seam.errors import UserError
from seam.files import load_tensors, save_tensors
from seam.masks.channel_costs import ChannelTime, keep_best, macs_cost, weights_cost
from seam.masks.channels import ChannelGroups, find_groups, mask_channels, require_channels
from seam.masks.layers import unused_parameters
from seam.masks.shrink import removal_error, require_exact_removal, resize, shrink
from seam.models.architectures import build_model
from seam.models.removed import Removed
from seam.models.surgery import with_head
from seam.models.uses import count_uses
from seam.reuse.channel_baselines import train_channel_baseline
from seam.reuse.direct import reengineer
from seam.reuse.load import load_reengineered
from seam.reuse.recovery import recover
from seam.search.by_channel import search_channels
from seam.search.channel_training import ChannelMasks
from seam.settings import RecoverySettings, SearchSettings, search_settings

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Excited(nn.Module):
    """Squeeze and excitation within a branch."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Scaled(nn.Module):
    """ConvNeXt's branch: a layer norm, linear layers and a scale, with channels last."""

    def __init__(self):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.wide, self.narrow, self.scale = nn.Linear(8, 20), nn.Linear(20, 8), nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        x = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return self.scale * self.narrow(nn.functional.gelu(self.wide(x))).permute(0, 3, 1, 2)


class Branches(nn.Module):
    """Four branches that can be removed, the last one before its activation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(12, 8, 1))
        self.second, self.third = Excited(), Scaled()
        self.fourth = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1))
        self.fc = nn.Linear(8, 4)

    def forward(self, images):
        x = self.stem(images)
        for branch in (self.first, self.second, self.third, self.fourth):
            x = branch(x) + x
        return self.fc(x.relu().mean((2, 3)))


NAMES = ["first", "second", "third", "fourth"]


class Other(nn.Module):
    """Sums of which no operand is a branch that can be removed."""

    def __init__(self):
        super().__init__()
        self.stem, self.read, self.strided = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, stride=2)
        self.shortcut, self.shared, self.plain = nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.soft, self.fc = nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 8, 1), nn.Linear(16, 4)
        self.before, self.after, self.tied = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.grouped = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8))  # no mask multiplies this norm

    def forward(self, images):
        x = self.stem(images)
        read = self.read(x)
        x = x + read
        x = self.strided(x) + self.shortcut(x)
        x = x + self.shared(x)
        x = x + self.shared(x)
        x = x + self.norm(self.plain(x))
        x = x + self.soft(x).softmax(1)
        x = x + self.after(self.before(x).view(-1, 8, 8, 8))
        x = x + self.grouped(x)
        x = (x + self.tied(x)) * self.tied.weight.sum()
        return self.fc(torch.cat([x, read[:, :, ::2, ::2]], 1).mean((2, 3)))


def operations(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def without(groups, *names):
    kept = torch.ones(groups.count, dtype=torch.bool)
    for name in names:
        groups.split(kept)[name][:] = False
    return kept


@pytest.mark.parametrize("gone", [*[(name,) for name in NAMES], tuple(NAMES)])
def test_the_removal_of_branches_is_exact(gone, tmp_path):
    module = randomise(Branches())
    groups = find_groups(module, IMAGES)
    assert list(groups.branches) == NAMES
    kept = without(groups, *gone)
    assert removal_error(module, groups, kept, IMAGES) < 1e-6
    masked = mask_channels(copy.deepcopy(module), groups, kept)
    assert not torch.allclose(masked(IMAGES), module(IMAGES))
    require_exact_removal(module, groups, kept, IMAGES)

    small = shrink(copy.deepcopy(module), groups, kept)
    export(small, tmp_path / "model.onnx", (3, 16, 16), 2)  # compares the outputs
    export(module, tmp_path / "whole.onnx", (3, 16, 16), 2)
    nodes, whole = (operations(tmp_path / name) for name in ("model.onnx", "whole.onnx"))
    assert not {"ConstantOfShape", "Shape"}.intersection(nodes)
    assert whole.count("Add") - nodes.count("Add") >= len(gone)
    if len(gone) == 4:
        assert nodes == ["Conv", "Relu", "ReduceMean", "Gemm"]


def test_channels_and_branches_are_removed_together():
    module = randomise(Branches())
    groups = find_groups(module, IMAGES)
    kept = without(groups, "second", "fourth")
    for name, bits in groups.split(kept).items():
        if name not in groups.branches:
            bits[::2] = False
    assert removal_error(module, groups, kept, IMAGES) < 1e-6


def test_sums_of_other_kinds_keep_their_operands():
    groups = find_groups(Other().eval(), IMAGES)
    assert not groups.branches
    assert all(not units.branches and not units.ends for units in groups.layers.values())


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [("resnet20", 32, 7), ("torchvision:resnet18", 32, 5), ("torchvision:mobilenet_v3_small", 32, 6),
     ("torchvision:efficientnet_b0", 32, 9), ("torchvision:regnet_y_400mf", 32, 12), ("torchvision:swin_t", 32, 12),
     ("torchvision:densenet121", 32, 0), ("vgg16_bn", 32, 0)],
)  # fmt: skip
def test_branches_of_public_architectures(name, size, count):
    module = randomise(build_model(name, 5))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    groups = find_groups(module, images)
    assert len(groups.branches) == count
    kept = without(groups, *groups.branches)
    assert removal_error(module, groups, kept, images) < 1e-5
    small = shrink(copy.deepcopy(module), groups, kept)
    rebuilt = resize(build_model(name, 5), small.state_dict()).eval()
    rebuilt.load_state_dict(small.state_dict())
    torch.testing.assert_close(rebuilt(images), small(images))
    assert sum(isinstance(layer, Removed) for layer in rebuilt.modules()) == sum(map(len, groups.branches.values()))


class Deep(nn.Module):
    """More operations in a row than Python's functions can be nested."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 2, 1), nn.Linear(2, 4)
        self.convolutions = nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(300))

    def forward(self, x):
        x = self.stem(x)
        for convolution in self.convolutions:
            x = (x + 0.01 * convolution(x).relu()).relu().neg().neg()
        return self.fc(x.mean((2, 3)))


def test_branches_of_a_deep_network_are_found():
    assert len(find_groups(Deep(), IMAGES).branches) == 300


def test_a_branch_costs_what_its_layers_do():
    module = randomise(build_model("resnet20", 10))
    images = torch.zeros(1, 3, 32, 32)
    groups = find_groups(module, images)
    kept = without(groups, "layer1.1", "layer3.2")
    for name in ("layer2.1.conv1", "conv1"):
        groups.split(kept)[name][::2] = False
    small = shrink(copy.deepcopy(module), groups, kept)
    macs = macs_cost(module, groups, count_uses(module, images))
    counts = [count_macs(each, (3, 32, 32))["dense"] for each in (small, module)]
    dense = [count["convolution"] + count["linear"] for count in counts]
    assert macs.share(kept) == pytest.approx(dense[0] / dense[1])
    weights = [sum(p.numel() for n, p in each.named_parameters() if "bn" not in n and "downsample.1" not in n)
               for each in (small, module)]  # fmt: skip
    assert weights_cost(module, groups).share(kept) == pytest.approx(weights[0] / weights[1])
    price = macs.prices(without(groups))
    unit = groups.split(price)["layer2.1"].item()
    assert unit == pytest.approx(1 - macs.share(without(groups, "layer2.1")))
    assert (groups.split(macs.prices(kept))["layer1.1.conv1"] == 0).all()  # it saves nothing where the branch is gone


def times(groups, block=1):
    """A table in which a layer takes a millisecond for each output channel."""
    layers = {}
    for name, units in groups.layers.items():
        if "conv" not in name:
            continue
        inputs, outputs = ([1, len(channels)] for channels in (units.inputs, units.outputs))
        layers[name] = {"inputs": inputs, "outputs": outputs, "ms": [[float(n) for n in outputs]] * 2}
    return {"layers": layers, "scale": 1.0, "fixed_ms": 2.0}


def test_a_branch_takes_the_time_of_its_layers():
    groups = find_groups(build_model("resnet20", 10), torch.zeros(1, 3, 32, 32))
    cost = ChannelTime(groups, times(groups))
    whole = cost.milliseconds(without(groups))
    assert whole == 2 + 16 + 6 * 16 + 6 * 32 + 6 * 64
    assert cost.milliseconds(without(groups, "layer1.1", "layer3.2")) == whole - 2 * 16 - 2 * 64
    prices = groups.split(cost.prices(without(groups)))
    assert prices["layer2.2"].item() == pytest.approx(64 / whole)
    widths = cost.widths(8, 0.0, branches=True)
    assert widths["layer2.2"] == (0, 1) and widths["conv1"] == [8, 16]
    assert cost.widths(8, 0.0)["layer2.2"] == (1,)


class WithTrainingHead(Branches):
    """The network with a head that only training needs."""

    def __init__(self):
        super().__init__()
        self.auxiliary = torch.nn.Linear(16, 1000)


def test_weights_on_which_no_output_depends_do_not_count(caplog):
    network = randomise(WithTrainingHead())
    groups = find_groups(network, IMAGES)
    unused = unused_parameters(network, IMAGES)
    assert unused == {"auxiliary.weight", "auxiliary.bias"}
    expected = weights_cost(Branches(), find_groups(randomise(Branches()), IMAGES)).total
    assert weights_cost(network, groups, unused).total == expected == weights_cost(network, groups).total - 17_000
    caplog.clear()
    result = searched({"weights": 0.9, "epochs": 2}, WithTrainingHead)[1]
    assert result.budget["whole"] == expected
    assert caplog.text.count("auxiliary.bias") == 1


def test_a_branch_stays_or_leaves_by_its_worth():
    groups = find_groups(randomise(Branches()), IMAGES)
    cost = weights_cost(Branches(), groups)
    worth = torch.ones(groups.count)
    groups.split(worth)["third"][:] = 0.1
    kept = groups.split(keep_best(worth, groups, cost.share, 0.9, cost.widths(100, branches=True)))
    assert {name: bool(kept[name]) for name in NAMES} == {"first": True, "second": True, "third": False, "fourth": True}
    assert groups.split(keep_best(worth, groups, cost.share, 0.9, cost.widths(100)))["third"].all()


def test_a_branch_counts_as_the_channels_that_it_writes():
    groups = find_groups(build_model("resnet20", 10), torch.zeros(1, 3, 32, 32))
    sizes = {name: units.tolist() for name, units in groups.split(groups.unit_sizes()).items()}
    branches = {name: sizes.pop(name) for name in groups.branches}
    assert [size for (size,) in branches.values()] == [16, 16, 16, 32, 32, 64, 64]
    assert all(set(each) == {1} for each in sizes.values())


def test_the_gradient_of_a_branch_is_that_of_a_factor_on_it():
    torch.manual_seed(0)  # of the convolutions
    module = randomise(Branches())
    groups = find_groups(module, IMAGES)
    precise, images = copy.deepcopy(module).double(), IMAGES.double()
    masks = ChannelMasks(module, groups)
    module(IMAGES).square().sum().backward()
    masks.restore()
    for name in NAMES:
        unit = groups.split(torch.arange(groups.count))[name]
        changed = []
        for gate in (1 + 1e-6, 1 - 1e-6):
            factors = torch.ones(groups.count, dtype=torch.float64)
            factors[unit] = gate
            changed.append(mask_channels(copy.deepcopy(precise), groups, factors)(images).square().sum().item())
        slope = (changed[0] - changed[1]) / 2e-6
        assert masks.worth[unit].sqrt().item() == pytest.approx(abs(slope) * 0.1, rel=1e-4)  # 1 - DECAY under the root


def searched(budget=None, network=Branches, **channels):
    torch.manual_seed(0)
    model = with_head(randomise(network()), 4, 2)
    groups = find_groups(model.source, torch.zeros(1, 3, 8, 8))
    given = {"budget": budget or {"macs": 0.4, "epochs": 8}, "granularity": "channel"}
    given["channels"] = {"multiple": 4, **channels}
    torch.manual_seed(1)
    settings = SearchSettings(**search_settings(given))
    return groups, search_channels(model, groups, batches(), batches(48, seed=1), 0.9, settings)


def test_branches_leave_only_if_the_config_says_so():
    groups, result = searched(branches=True)
    assert not all(result.bits[name].all() for name in NAMES)
    assert result.budget["met"] and result.history[-1]["cost"] <= 0.4
    with pytest.raises(UserError, match="cannot be met"):
        searched(branches=False)


def worthless_branches(groups, size=0.0):
    sizes = torch.ones(groups.count)
    sizes[-len(groups.branches) :] = size
    return sizes


def test_a_branch_that_is_larger_than_what_must_leave_stays(monkeypatch):
    monkeypatch.setattr(ChannelGroups, "unit_sizes", worthless_branches)
    groups, result = searched(branches=True, budget={"macs": 0.9, "epochs": 8})
    least = 0.95 * 0.9
    cost = macs_cost(Branches(), groups, count_uses(Branches(), torch.zeros(1, 3, 8, 8)))
    saved = groups.split(cost.prices(without(groups)))
    assert any(saved[name].item() > 1 - least for name in NAMES)
    assert least <= result.budget["cost"] <= 0.9
    assert all(result.bits[name].all() for name in NAMES if saved[name].item() > 1 - least)


@pytest.mark.parametrize(("size", "stays"), [(1e12, True), (0.0, False)])
def test_the_size_of_a_branch_counts_in_its_worth(size, stays, monkeypatch):
    def unit_sizes(groups):
        return torch.tensor(
            [size if name in groups.branches else 1.0 for name, n in groups.sizes.items() for _ in range(n)]
        )

    monkeypatch.setattr(ChannelGroups, "unit_sizes", unit_sizes)
    _, result = searched(branches=True, budget={"macs": 0.8, "epochs": 8})
    assert all(result.bits[name].all() for name in NAMES) == stays


# Results in folders.

RESIDUAL = ARCHITECTURE.rpartition(":")[0] + ":build_residual"
SETTINGS = search_settings({
    "batch_size": 16, "granularity": "channel", "channels": {"branches": True, "multiple": 16, "lr": 0.01},
    "budget": {"macs": 0.4, "epochs": 20},
})  # fmt: skip
PROBLEM = {"model": "deep", "dataset": "colours", "problem": "binary", "target": "red", "members": ["red"], "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, dataset_folder):
    """The results of a search that removes branches, and of its recovery."""
    root = tmp_path_factory.mktemp("results")
    model = trained_model(root / "models/deep", RESIDUAL, dataset_folder)
    folder = root / "direct/deep/binary/red"
    common = {"model_folder": model, "dataset_folder": dataset_folder, "device": "cpu", "architecture": RESIDUAL}
    reengineer(folder=folder, settings=SETTINGS, checkpoint=root / "search.pt", **common, **PROBLEM)
    recover(
        folder=folder, masks_folder=folder, settings={"epochs": 2, "batch_size": 16},
        checkpoint=root / "recovery.pt", **common, **PROBLEM,
    )  # fmt: skip
    return folder


def gone(module):
    return [name for name, layer in module.named_modules() if isinstance(layer, Removed)]


def test_a_model_without_branches_is_loaded_as_it_was_saved(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    recovery = json.loads((folder / "recovery.json").read_text())
    model, before = (load_reengineered(folder, architecture=RESIDUAL, recovered=each) for each in (None, False))
    assert metrics["budget"]["met"] and recovery["accuracy"]["before"] == metrics["accuracy"]["reengineered"] > 0.8
    assert gone(model) == gone(before) != [] and len(gone(model)) % 4 == 0
    layers = [layer for layer in before.source.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert sum(parameter.numel() for layer in layers for parameter in layer.parameters()) == metrics["kept"]
    removed = list(dict.fromkeys(name.split(".")[1] for name in gone(model)))
    assert metrics["branches_removed"] == removed
    tensors, _ = load_tensors(folder / "masks.safetensors")
    named = {name for name in ("3", "4", "5") if f"channels/{name}" in tensors}
    assert named == set(removed) and all(tensors[f"channels/{name}"].tolist() == [0] for name in named)


@pytest.mark.parametrize("name", ["widths-magnitude", "uniform-scratch-distilled", "finetuned"])
def test_baselines_have_the_branches_of_the_search(folder, name, dataset_folder, tmp_path):
    shutil.copytree(folder.parents[3], tmp_path / "results")
    searched = tmp_path / "results" / folder.relative_to(folder.parents[3])
    recovery = asdict(RecoverySettings(epochs=1, batch_size=16))
    metrics = train_channel_baseline(
        name, searched, tmp_path / "c.pt", recovery, TRAINING, device="cpu", settings=SETTINGS,
        folder=searched / "baselines" / name, model_folder=tmp_path / "results/models/deep",
        dataset_folder=dataset_folder, architecture=RESIDUAL, **PROBLEM,
    )  # fmt: skip
    model = load_reengineered(searched / "baselines" / name, architecture=RESIDUAL)
    assert gone(model) == (gone(load_reengineered(folder, architecture=RESIDUAL)) if name.startswith("widths") else [])
    if name.startswith("widths"):
        assert metrics["macs"]["baseline"] == metrics["macs"]["search"]


def test_the_file_for_engines_has_no_trace_of_a_branch(folder, tmp_path):
    model = load_reengineered(folder, architecture=RESIDUAL)
    export(model, tmp_path / "model.onnx", (3, 16, 16), 2)
    nodes, blocks = operations(tmp_path / "model.onnx"), 3 - len(gone(model)) // 4
    assert nodes.count("Conv") == 1 + 2 * blocks
    assert nodes.count("Relu") == 2 + 2 * blocks  # and no ReLU of a ReLU
    assert not {"ConstantOfShape", "Shape"}.intersection(nodes)


def test_a_model_without_channels_to_remove_is_loaded_with_all_its_branches(dataset_folder, tmp_path):
    grouped = RESIDUAL.replace("build_residual", "build_grouped")
    model = trained_model(tmp_path / "models/deep", grouped, dataset_folder)
    folder = tmp_path / "direct/deep/binary/red"
    settings = {**SETTINGS, "budget": {**SETTINGS["budget"], "macs": 1.0}, "epochs": 2}
    reengineer(
        folder=folder, settings=settings, checkpoint=tmp_path / "search.pt", model_folder=model,
        dataset_folder=dataset_folder, device="cpu", architecture=grouped, **PROBLEM,
    )  # fmt: skip
    assert not any(name.startswith("channels/") for name in load_tensors(folder / "masks.safetensors")[0])
    assert gone(load_reengineered(folder, architecture=grouped)) == []


def test_malformed_masks_of_branches_are_one_sentence(folder, tmp_path):
    shutil.copytree(folder.parents[3], tmp_path / "results")
    path = tmp_path / "results" / folder.relative_to(folder.parents[3]) / "masks.safetensors"
    tensors, metadata = load_tensors(path)
    name = next(name for name in tensors if name.startswith("channels/") and tensors[name].tolist() == [0])
    for wrong in (torch.zeros(2, dtype=torch.uint8), torch.full((1,), 128, dtype=torch.uint8)):
        save_tensors(path, tensors | {name: wrong}, metadata)
        with pytest.raises(UserError):
            load_reengineered(path.parent, architecture=RESIDUAL, recovered=False)


def test_masks_without_a_word_of_branches_keep_them_all():
    groups = find_groups(Branches(), IMAGES)
    kept = {name: bits for name, bits in groups.split(without(groups)).items() if name not in groups.branches}
    with pytest.raises(ValueError, match="first is missing"):
        require_channels(groups, kept)
    require_channels(groups, groups.completed(kept))
    assert groups.joined(groups.completed(kept)).all()
    require_channels(groups, groups.split(without(groups, "first")))

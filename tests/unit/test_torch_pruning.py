"""Our groups of channels against those of Torch-Pruning, where it is installed (pip install torch-pruning)."""

import copy

import pytest
import torch
from torch import nn

from seam.masks.channel_scores import magnitude_scores
from seam.masks.channels import find_groups
from seam.masks.shrink import shrink
from seam.models.architectures import build_model
from seam.models.cifar import resnet20

pruning = pytest.importorskip("torch_pruning", reason="Torch-Pruning is optional")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def without(module, groups, number):
    """The module without one unit, by our removal and by that of Torch-Pruning."""
    kept = torch.ones(groups.count, dtype=torch.bool)
    kept[number] = False
    ours = shrink(copy.deepcopy(module), groups, kept)
    theirs = copy.deepcopy(module)
    name, channel = next(
        (name, int((units.outputs == number).nonzero()[0]))
        for name, units in groups.layers.items()
        if (units.outputs == number).any() and isinstance(module.get_submodule(name), nn.Conv2d)
    )
    graph = pruning.DependencyGraph().build_dependency(theirs, IMAGES)
    graph.get_pruning_group(theirs.get_submodule(name), pruning.prune_conv_out_channels, [channel]).prune()
    return ours, theirs


@pytest.mark.parametrize("build", [lambda: resnet20(10), lambda: build_model("torchvision:mobilenet_v2", 10)])
def test_both_remove_the_same_channels(build):
    torch.manual_seed(0)
    module = build().eval()
    groups = find_groups(module, IMAGES)
    first = 0
    for size in list(groups.sizes.values())[:6]:
        ours, theirs = without(module, groups, first + size // 2)
        with torch.no_grad():
            assert torch.allclose(ours(IMAGES), theirs(IMAGES), atol=1e-5)
        first += size


def test_the_channels_of_the_lowest_magnitude_are_the_same_within_a_group_without_others():
    """Theirs without normalisation is ours: the norms of what writes and of what reads an inner channel."""
    torch.manual_seed(0)
    module = resnet20(10).eval()
    groups = find_groups(module, IMAGES)
    graph = pruning.DependencyGraph().build_dependency(module, IMAGES)
    layer = module.get_submodule("layer2.1.conv1")
    importance = pruning.importance.GroupMagnitudeImportance(p=2, normalizer=None, group_reduction="sum")
    group = graph.get_pruning_group(layer, pruning.prune_conv_out_channels, list(range(layer.out_channels)))
    theirs, ours = importance(group), groups.split(magnitude_scores(module, groups))["layer2.1.conv1"]
    lowest = [set(scores.topk(8, largest=False).indices.tolist()) for scores in (theirs, ours)]
    assert len(lowest[0] & lowest[1]) >= 6

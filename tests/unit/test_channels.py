"""Groups of channels, and their exact removal."""

import copy
import warnings

import pytest
import torch
from networks import Residual, vgg
from torch import nn

from seam.errors import UserError
from seam.masks.channels import find_groups, mask_channels, require_channels
from seam.masks.shrink import removal_error, require_exact_removal, resize, shrink
from seam.models.architectures import build_model

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def randomise(module, seed=0):
    """Give all batch norms statistics and weights as training leaves them, so that removed channels would show."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for tensor in (layer.running_mean, layer.bias.data):
                tensor.normal_(generator=generator)
            for tensor in (layer.running_var, layer.weight.data):
                tensor.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def random_kept(groups, share=0.5, seed=0):
    kept = torch.rand(groups.count, generator=torch.Generator().manual_seed(seed)) < share
    for units in groups.split(kept).values():
        units[0] = True
    return kept


class Concatenated(nn.Module):
    """A batch norm and an activation over a concatenation, padded convolutions, squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 5, padding=2, bias=False)
        self.norm, self.conv = nn.BatchNorm2d(20), nn.Conv2d(20, 16, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.fc = nn.Linear(16 * 4, 5)

    def forward(self, images):
        x = torch.cat([self.stem(images), self.branch(images)], 1)
        x = self.conv(self.norm(x).relu()).relu()
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Mixing(nn.Module):
    """Operations that need all channels: a reshape that mixes them, a sigmoid before a convolution, a layer norm."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.third, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.free, self.fc = nn.Conv2d(6, 10, 1), nn.Linear(10, 2)

    def forward(self, images):
        x = self.first(images)
        x = x.view(-1, 2, 4, 16, 16).transpose(1, 2).reshape(-1, 8, 16, 16)
        x = self.third(self.second(x).sigmoid())
        x = nn.functional.layer_norm(self.last(x), (6, 16, 16))
        return self.fc(self.free(x).relu().mean((2, 3)))


class NormAndActivation(nn.BatchNorm2d):
    """Does more than its base class, so that a trace enters it."""

    def forward(self, images):
        statistics = self.running_mean, self.running_var
        return torch.relu(nn.functional.batch_norm(images, *statistics, self.weight, self.bias, self.training))


class PaddedConvolution(nn.Conv2d):
    def forward(self, images):
        padded = nn.functional.pad(images, (0, 1, 0, 1))
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


class StandardisedConvolution(nn.Conv2d):
    def forward(self, images):
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(images, weight, self.bias)


class TypedLinear(nn.Linear):
    def forward(self, values):
        return nn.functional.linear(values, self.weight, bias=self.bias)


class OwnLayers(nn.Module):
    """Layers of the model's own classes, as timm has them, and a sum that begins with 0."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = PaddedConvolution(3, 8, 2), NormAndActivation(8)
        self.branches = nn.ModuleList([PaddedConvolution(8, 8, 2, groups=8, bias=False), NormAndActivation(8)])
        self.last, self.last_norm = nn.Conv2d(8, 12, 3, bias=False), NormAndActivation(12)
        self.hidden, self.fc = TypedLinear(12, 6), TypedLinear(6, 4)

    def forward(self, images):
        x, total = self.norm(self.stem(images)), 0
        for branch in self.branches:
            total = total + branch(x)
        x = self.last_norm(self.last(total)).mean((2, 3))
        return self.fc(self.hidden(x).relu())


class ChannelsLast(nn.Module):
    """A norm over all channels, in another order of dimensions, before convolutions whose channels can go."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.narrow = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 20, 1), nn.Conv2d(20, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, images):
        x = self.stem(images)
        normed = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2)
        return self.fc((x + self.narrow(nn.functional.gelu(self.wide(normed)))).mean((2, 3)))


NETWORKS = {"residual": Residual, "vgg": vgg, "concatenated": Concatenated, "mixing": Mixing}
NETWORKS |= {"own layers": OwnLayers, "channels last": ChannelsLast}
PUBLIC = {
    **dict.fromkeys(("resnet20", "vgg16_bn"), 32),
    **dict.fromkeys(("torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:densenet121"), 32),
    **dict.fromkeys(("torchvision:googlenet", "torchvision:efficientnet_b0", "torchvision:squeezenet1_1"), 40),
    **dict.fromkeys(("torchvision:resnext50_32x4d", "torchvision:regnet_y_400mf", "torchvision:swin_t"), 32),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_removal_is_exact_on_small_networks(name, seed):
    module = randomise(NETWORKS[name](), seed)
    groups = find_groups(module, IMAGES)
    kept = random_kept(groups, seed=seed)
    assert removal_error(module, groups, kept, IMAGES) < 1e-6
    small = shrink(copy.deepcopy(module), groups, kept)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PUBLIC)
def test_removal_is_exact_on_public_architectures(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torchvision, about its initialisation
        module = randomise(build_model(name, 5))
    images = torch.randn(2, 3, PUBLIC[name], PUBLIC[name], generator=torch.Generator().manual_seed(0))
    groups = find_groups(module, images)
    assert removal_error(module, groups, random_kept(groups), images) < 1e-5
    small = shrink(copy.deepcopy(module), groups, random_kept(groups))
    share = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in module.parameters())
    assert share < (0.8 if name.endswith("swin_t") else 0.35)  # attention stays


@pytest.mark.parametrize("name", ["resnet20", "torchvision:mobilenet_v2", "torchvision:resnext50_32x4d"])
def test_a_smaller_module_can_be_built_from_its_weights(name):
    module, images = randomise(build_model(name, 5)), torch.randn(2, 3, 32, 32)
    groups = find_groups(module, images)
    small = shrink(module, groups, random_kept(groups))
    rebuilt = resize(build_model(name, 5), small.state_dict()).eval()
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt(images), small(images))
    assert str(rebuilt) == str(small)


def test_the_residual_stream_is_a_group():
    module = build_model("resnet20", 10)
    groups = find_groups(module, torch.zeros(1, 3, 32, 32))
    channels = [size for name, size in groups.sizes.items() if name not in groups.branches]
    assert channels == [16] * 4 + [32] * 4 + [64] * 4
    stream = groups.layers["conv1"].outputs
    for name in ("bn1", "layer1.0.conv2", "layer1.2.conv2", "layer1.2.bn2"):
        assert torch.equal(groups.layers[name].outputs, stream)
    assert torch.equal(groups.layers["layer2.0.downsample.0"].inputs, stream)
    assert (groups.layers["conv1"].inputs == -1).all() and (groups.layers["fc"].outputs == -1).all()


def test_the_groups_of_a_grouped_convolution_go_whole():
    groups = find_groups(Residual(), IMAGES)
    grouped = groups.layers["grouped"]
    assert grouped.inputs.tolist() == [unit for unit in grouped.inputs[::2].tolist() for _ in range(2)]
    assert grouped.outputs.tolist() == [unit for unit in grouped.inputs[::2].tolist() for _ in range(4)]


def test_what_cannot_be_removed_stays_and_a_sentence_says_why():
    groups = find_groups(Mixing(), IMAGES)
    assert (groups.layers["first"].outputs == -1).all()  # a reshape mixes them
    assert (groups.layers["second"].outputs == -1).all()  # 0.5 after the sigmoid
    assert (groups.layers["last"].outputs == -1).all()  # the layer norm would have other statistics
    assert groups.sizes.keys() == {"third", "free"}
    assert len(groups.sentences()) == len(groups.reasons) >= 3
    assert any("view" in sentence for sentence in groups.sentences())


def test_channels_are_followed_through_layers_of_other_classes():
    groups = find_groups(OwnLayers(), IMAGES)
    assert groups.sizes == {"stem": 8, "last": 12, "hidden": 6} and not groups.reasons
    assert not groups.layers["stem"].gated and not groups.layers["last"].gated  # the norm after them sets the zeros
    assert find_groups(ChannelsLast(), IMAGES).sizes == {"wide": 20}


def test_channels_of_computed_weights_stay():
    module = nn.Sequential(
        StandardisedConvolution(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 2),
    )  # fmt: skip
    groups = find_groups(module, IMAGES)
    assert groups.sizes == {"2": 6} and (groups.layers["2"].inputs == -1).all()
    assert removal_error(randomise(module), groups, random_kept(groups), IMAGES) < 1e-6


def test_following_channels_changes_nothing():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten()).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    find_groups(module, torch.randn(2, 3, 3, 3))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(layer.training for layer in module.modules())


def test_masked_channels_are_zero_after_batch_norm_and_activation():
    module = randomise(build_model("resnet20", 10))
    groups = find_groups(module, torch.zeros(1, 3, 32, 32))
    kept = random_kept(groups)
    seen = {}
    module.layer1.register_forward_hook(lambda layer, inputs, output: seen.update(output=output))
    mask_channels(module, groups, kept)(torch.randn(1, 3, 32, 32))
    zero = (seen["output"] == 0).all(dim=(0, 2, 3))
    assert zero[~groups.split(kept)["conv1"]].all() and not zero.all()


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        x = self.conv(images).mean((2, 3))
        return x if x.sum() > 0 else -x


class CountsChannels(nn.Module):
    """Divides by the number of its channels, which removal changes."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 2)

    def forward(self, images):
        x = self.conv(images).mean((2, 3))
        return self.fc(x / x.size(1))


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Branching(), "cannot be traced.*set granularity to weight"),
        (nn.Sequential(nn.Conv2d(3, 2, 16), nn.Flatten()), "No channel of the model can be removed.*it has one layer"),
    ],
)
def test_networks_without_channels_to_remove_end_in_a_sentence(module, sentence):
    with pytest.raises(UserError, match=sentence):
        find_groups(module, IMAGES)


def test_removal_that_changes_outputs_ends_in_a_sentence():
    module = CountsChannels()
    groups = find_groups(module, IMAGES)
    with pytest.raises(UserError, match="outputs differ by .* set granularity to weight|Set granularity to weight"):
        require_exact_removal(module, groups, random_kept(groups), IMAGES)


def test_masks_of_other_groups_are_refused():
    groups = find_groups(vgg(), IMAGES)
    kept = groups.split(random_kept(groups))
    require_channels(groups, kept)
    name = next(iter(kept))
    for wrong, sentence in (
        ({**kept, name: kept[name][1:]}, "has another size"),
        ({**kept, name: torch.zeros_like(kept[name])}, "no channel of 0 is left"),
        ({**kept, "other": kept[name]}, "has no channels other"),
        ({key: value for key, value in kept.items() if key != name}, "is missing"),
    ):
        with pytest.raises(ValueError, match=sentence):
            require_channels(groups, wrong)


@pytest.mark.parametrize("divide", [False, True])
def test_channels_that_a_vector_scales_stay(divide):
    """Its code would multiply fewer channels by as many numbers as before."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale, self.head = nn.Conv2d(3, 8, 3), nn.Parameter(torch.ones(16)), nn.Linear(16, 4)
            self.hidden = nn.Linear(8, 16)

        def forward(self, images):
            hidden = self.hidden(self.layer(images).relu().mean((2, 3)))
            hidden = hidden / self.scale if divide else hidden * self.scale
            return self.head((2.0 * hidden).relu())

    groups = find_groups(Scaled().eval(), IMAGES)
    assert groups.sizes == {"layer": 8}

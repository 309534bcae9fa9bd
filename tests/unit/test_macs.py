import hashlib
import json
import logging
from collections import Counter

import pytest
import torch
import torchvision
from networks import Residual, prune, vgg
from torch import nn
from torch.nn import functional

from seam.cost.macs import count_macs, write_macs
from seam.errors import UserError
from seam.masks.bits import bake
from seam.masks.costs import macs_cost, make_cost
from seam.masks.masks import Masks
from seam.models.uses import count_uses


class Tokens(nn.Module):
    """Linear layers on inputs of two, three and four dimensions, one of them shared under two names."""

    def __init__(self):
        super().__init__()
        self.pixels = nn.Linear(3, 6)
        self.rows = self.again = nn.Linear(6, 6)
        self.classes = nn.Linear(6, 4, bias=False)

    def forward(self, images):
        x = self.pixels(images.permute(0, 2, 3, 1)).relu()
        return self.classes(self.again(self.rows(x.mean(1)).relu()).mean(1))


class Attention(nn.Module):
    """Attention with one matrix of projections, on the fused path of torch if there are no gradients."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.classes = nn.Linear(8, 4)

    def forward(self, images):
        return self.classes(self.block(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


class ByName(nn.Module):
    """Layers that are called with keywords."""

    def __init__(self):
        super().__init__()
        self.wider, self.attention = nn.ConvTranspose2d(3, 8, 2, 2), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images):
        tokens = self.wider(input=images).flatten(2).transpose(1, 2)
        return self.attention(query=tokens, key=tokens, value=tokens, need_weights=False)[0].mean(1)


class Tied(nn.Module):
    """Convolutions and linear layers that share their weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding="same"), nn.Conv2d(3, 3, 3, stride=2)
        self.second.weight = self.first.weight
        self.rows, self.again = nn.Linear(3, 3), nn.Linear(3, 3)
        self.again.weight = self.rows.weight

    def forward(self, images):
        return self.again(self.rows(self.second(self.first(input=images)).permute(0, 2, 3, 1)).mean((1, 2)))


class Cross(nn.Module):
    """Attention of 16 tokens to 10 others, called by keyword, with one matrix of projections and with three."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.narrow = nn.Linear(8, 6)
        self.one = nn.MultiheadAttention(8, 2, batch_first=True)
        self.three = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=6, add_bias_kv=True)
        self.classes = nn.Linear(8, 4)

    def forward(self, images):
        tokens = self.patches(input=images).flatten(2).transpose(1, 2)
        others = tokens[:, :10]
        tokens, _ = self.one(query=tokens, key=others, value=others)
        others = self.narrow(input=others)
        tokens, _ = self.three(query=tokens, key=others, value=others, need_weights=False)
        return self.classes(tokens.mean(1))


class Functions(nn.Module):
    """Functions that use the weights of layers, one weight in parts, and weights that belong to no layer."""

    def __init__(self):
        super().__init__()
        self.filters, self.up = nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.free = nn.Parameter(torch.randn(6, 6, 1, 1))
        self.rows, self.classes = nn.Linear(6, 12), nn.Linear(6, 4)

    def forward(self, images):
        places = functional.conv2d(images, weight=self.filters.weight, bias=self.filters.bias)
        tokens = functional.conv2d(self.up(input=places), self.free).flatten(2).transpose(1, 2)
        first, second = self.rows.weight.chunk(2)
        tokens = functional.linear(input=tokens, weight=first) + functional.linear(tokens[:, :1], second)
        return functional.linear(tokens.mean(1), self.classes.weight)


class Blur(nn.Module):
    """A convolution with a fixed filter, before a layer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("filter", torch.ones(3, 1, 2, 2) / 4)
        self.classes = nn.Linear(3, 4)

    def forward(self, images):
        return self.classes(functional.conv2d(images, self.filter, groups=3).mean((2, 3)))


class Computed(nn.Module):
    """A layer whose operation has another weight than the layer, computed from it."""

    def __init__(self):
        super().__init__()
        self.standard, self.classes = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, images):
        return self.classes(functional.conv2d(images, 2 * self.standard.weight).mean((2, 3)))


class Hidden(nn.Module):
    """A layer whose operation fvcore does not see."""

    class Operation(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images, weight):
            return images.mean((2, 3)) @ weight.T

    def __init__(self):
        super().__init__()
        self.classes = nn.Linear(3, 4)

    def forward(self, images):
        return self.Operation.apply(images, self.classes.weight)


def by_hand(module, image_shape):
    """{"convolution", "linear"}: MACs of the non-zero weights, counted while the module runs."""
    macs = {"convolution": 0, "linear": 0}

    def add(layer, inputs, output):
        weights = int(layer.weight.count_nonzero())
        if isinstance(layer, nn.Linear):
            macs["linear"] += weights * inputs[0].shape[:-1].numel()
        else:
            places = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
            macs["convolution"] += weights * places.shape[2:].numel()

    layers = {layer for layer in module.modules() if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))}
    hooks = [layer.register_forward_hook(add) for layer in layers]
    module.eval()(torch.zeros(1, *image_shape))
    for hook in hooks:
        hook.remove()
    return macs


NETWORKS = {
    "residual": (Residual, (3, 17, 16)),
    "tokens": (Tokens, (3, 5, 7)),
    "vgg": (vgg, (3, 32, 32)),
    "resnet18": (torchvision.models.resnet18, (3, 64, 64)),
    "mobilenet": (torchvision.models.mobilenet_v3_small, (3, 32, 32)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_dense_is_fvcores_and_sparse_is_the_count_by_hand(name):
    from fvcore.nn import FlopCountAnalysis

    build, shape = NETWORKS[name]
    module = build().eval()
    for parameter in module.parameters():
        nn.init.ones_(parameter)  # random weights may be zero
    reference = FlopCountAnalysis(module, torch.zeros(1, *shape)).unsupported_ops_warnings(False).total()
    untouched = count_macs(module, shape)
    assert untouched["dense"]["total"] == reference
    assert untouched["sparse"] == untouched["dense"]
    assert by_hand(module, shape).items() <= untouched["dense"].items()

    pruned = count_macs(prune(module, 0.7), shape)
    assert pruned["dense"] == untouched["dense"]
    assert by_hand(module, shape).items() <= pruned["sparse"].items()
    assert pruned["sparse"]["other"] == untouched["dense"]["other"]
    for macs in pruned.values():
        assert all(type(number) is int for number in macs.values())
        assert macs["total"] == macs["convolution"] + macs["linear"] + macs["other"]


OTHERS = {
    "attention": Attention,
    "cross-attention": Cross,
    "functions": Functions,
    "tied": Tied,
    "padded by name": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, dilation=2, padding="same", groups=3), nn.Conv2d(6, 4, 3, padding="valid"),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular"), nn.Flatten(), nn.LazyLinear(4),
    ),
    "called by name": ByName,
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3), nn.Conv2d(6, 4, 3, dilation=2), nn.Flatten(), nn.LazyLinear(4)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_a_budget_of_macs_counts_as_the_results_do(name, with_gradients, caplog):
    module, images = OTHERS[name]().eval(), torch.zeros(1, 3, 16, 16)
    module(images)
    module.requires_grad_(with_gradients)
    masks = Masks(module)
    cost = macs_cost(masks, count_uses(module, images), dict(module.named_parameters()))
    before = count_macs(module, (3, 16, 16))["dense"]
    generator = torch.Generator().manual_seed(0)
    bits = {name: torch.rand(value.shape, generator=generator) < 0.4 for name, value in masks.values.items()}
    share = cost.share(bits).item()
    bake(module, bits)
    after = count_macs(module, (3, 16, 16))
    assert after["dense"] == before and not caplog.records
    assert cost.total == before["convolution"] + before["linear"]
    assert after["sparse"]["other"] == before["other"]
    assert share * cost.total == pytest.approx(after["sparse"]["convolution"] + after["sparse"]["linear"])


def test_layers_that_fvcore_does_not_count_are_a_warning(caplog, monkeypatch):
    monkeypatch.setattr("seam.cost.macs._padded_by_name", lambda inputs, outputs: Counter())
    count_macs(nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Flatten(), nn.Linear(256, 4)), (3, 8, 8))
    assert "fvcore finds 0 multiply-accumulates of the kind convolution for an image, but the layers have 6912" in (
        caplog.text
    )


def test_fixed_filters_are_counted_without_a_warning(caplog):
    macs = count_macs(prune(Blur(), 0.7), (3, 8, 8))
    assert macs["dense"]["convolution"] == macs["sparse"]["convolution"] == 7 * 7 * 12
    assert not caplog.records


def test_weights_from_which_others_are_computed_are_a_warning(caplog):
    module = Computed()
    count_macs(module, (3, 8, 8))
    macs_cost(Masks(module, ["standard"]), count_uses(module, torch.zeros(1, 3, 8, 8)), dict(module.named_parameters()))
    assert not caplog.records
    macs_cost(Masks(module), count_uses(module, torch.zeros(1, 3, 8, 8)), dict(module.named_parameters()))
    assert "no MACs are counted for standard.weight (parameters: 1)" in caplog.text
    macs = count_macs(prune(module, 0.7), (3, 8, 8))
    assert macs["dense"]["convolution"] == macs["sparse"]["convolution"] == 36 * 108
    assert "standard.weight has weights that are zero, but" in caplog.text


def test_a_model_without_any_counted_operation_is_one_sentence(caplog):
    module = Hidden()
    assert count_macs(module, (3, 8, 8))["dense"]["total"] == 0
    assert "fvcore finds no multiply-accumulates in the model" in caplog.text
    with pytest.raises(UserError, match="No multiply-accumulates are found in the model: set a budget or penalty of"):
        make_cost("macs", Masks(module), module, torch.zeros(1, 3, 8, 8))


def test_cross_attention_has_the_mean_of_its_uses():
    uses = count_uses(Cross(), torch.zeros(2, 3, 16, 16))
    assert uses["one.in_proj_weight"] == (16 + 10 + 10) / 3
    projections = [uses[f"three.{name}_proj_weight"] for name in ("q", "k", "v")]
    assert projections == [16, 10, 10] and uses["three.out_proj.weight"] == 16


def test_torchvisions_swin_counts_whole():
    from torchvision.models import SwinTransformer

    module = SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=4).eval()
    parameters, dense = dict(module.named_parameters()), count_macs(module, (3, 32, 32))["dense"]
    uses = count_uses(module, torch.zeros(1, 3, 32, 32))
    assert uses["features.1.0.attn.qkv.weight"] == 64
    assert sum(uses[name] * parameters[name].numel() for name in uses) == dense["convolution"] + dense["linear"]


def test_a_network_without_weights_left_keeps_what_is_not_weights():
    macs = count_macs(prune(vgg(), 1.1), (3, 32, 32))["sparse"]
    assert (macs["convolution"], macs["linear"]) == (0, 0)
    assert macs["total"] == macs["other"] > 0


def test_masked_layers_count_by_their_effective_weight():
    class Mask(nn.Module):
        def forward(self, weight):
            return weight * (torch.arange(weight.numel()).reshape(weight.shape) % 4 == 0)

    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 4))
    for index in (0, 2):
        nn.utils.parametrize.register_parametrization(module[index], "weight", Mask())
    macs = count_macs(module, (3, 4, 4))
    assert macs["dense"] == {"convolution": 24 * 16, "linear": 512, "other": 0, "total": 896}
    assert macs["sparse"] == {"convolution": 6 * 16, "linear": 128, "other": 0, "total": 224}


def test_the_module_is_left_as_it_is():
    module = vgg().train()
    module[1].eval()  # frozen batch norm in a network that trains
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [layer.training for layer in module.modules()]
    count_macs(module, (3, 32, 32))
    assert [layer.training for layer in module.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_parametrized_model_works_as_before():
    """torch's `remove_parametrizations` changes a class that the copy shares with the model."""
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    network, images = nn.Sequential(layer, nn.Flatten()).eval(), torch.ones(1, 3, 4, 4)
    expected = network(images)
    assert count_macs(network, (3, 4, 4))["sparse"]["convolution"] == 4 * 3 * 9 * 4
    assert torch.equal(network(images), expected)


class Attending(nn.Module):
    """An attention layer over 16 tokens of 8 numbers. With `averages` it computes its products one by one."""

    def __init__(self, averages):
        super().__init__()
        self.tokens, self.averages = nn.Conv2d(3, 8, 4, 4), averages
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images):
        tokens = self.tokens(images).flatten(2).mT
        return self.attention(tokens, tokens, tokens, need_weights=self.averages)[0].mean(1)


def test_fused_attention_counts_its_products():
    fused, plain = (count_macs(Attending(averages), (3, 16, 16))["dense"] for averages in (False, True))
    assert fused["other"] == 16 * 16 * (8 + 8) and fused["linear"] == plain["linear"] == 16 * 4 * 8 * 8
    assert plain["other"] - fused["other"] == plain["total"] - fused["total"] <= 0.05 * plain["total"]


def test_what_fvcore_cannot_count_is_said_once(caplog):
    with caplog.at_level(logging.INFO):
        count_macs(Residual(), (3, 16, 16))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "aten::add (1 times)" in messages[0]


def test_the_counts_of_both_models_are_written(tmp_path):
    source, reengineered = vgg()[:13], prune(vgg(), 0.9)
    (tmp_path / "masks").write_bytes(b"masks")
    write_macs(tmp_path / "macs.json", source, reengineered, (3, 32, 32), tmp_path / "masks")
    macs = json.loads((tmp_path / "macs.json").read_text())
    assert macs["source"] == count_macs(source, (3, 32, 32))["dense"]
    assert macs["reengineered_dense"]["total"] == macs["source"]["total"] + 20  # the head
    assert macs["reengineered"] == count_macs(reengineered, (3, 32, 32))["sparse"]
    assert macs["masks_digest"] == hashlib.sha256(b"masks").hexdigest()
    assert macs["reengineered"]["convolution"] < 0.15 * macs["source"]["convolution"]

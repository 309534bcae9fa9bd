"""Biases that a search trains beside the masks, and their shifts in the source model."""

import copy

import pytest
import torch
from networks import Block, Residual, lively, vgg
from torch import nn
from torch.nn.functional import cross_entropy

from seam.masks.biases import Biases, add_shifts
from seam.masks.bits import bake
from seam.masks.masks import Masks
from seam.models.folding import fold
from seam.models.surgery import with_head
from seam.search.training import mask_step
from seam.training.adam import Adam


class Transformer(nn.Module):
    """Layer norm, attention, and linear layers."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8)
        self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


NETWORKS = {"block": Block, "residual": Residual, "vgg": vgg, "transformer": Transformer}


def masked(name):
    """Return a source model, its folded copy with random masks, and the biases of the copy."""
    network = lively(NETWORKS[name]())
    folded = fold(copy.deepcopy(network)).requires_grad_(False)
    masks = Masks(folded)
    for value in masks.values.values():
        value.copy_(torch.randn(value.shape))
    masks.apply()
    return network, folded, masks, Biases(folded, masks)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_shifted_source_model_is_the_trained_one(name):
    network, folded, masks, biases = masked(name)
    for value in biases.values.values():
        value.add_(torch.randn(value.shape))
    masks.apply()
    bake(network, masks.bits())
    images = torch.randn(2, 3, 16, 16, dtype=torch.double)
    assert not torch.allclose(network(images), folded(images), rtol=0.01)
    add_shifts(network, biases.shifts())
    torch.testing.assert_close(network(images), folded(images))
    zeros = {name: parameter == 0 for name, parameter in network.named_parameters()}
    assert all(zeros[name][~bits].all() for name, bits in masks.bits().items())  # removed biases stay removed


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_moves_kept_biases_by_their_gradients_alone(name):
    network = fold(lively(NETWORKS[name]())).float().requires_grad_(False)
    model = with_head(network, network(torch.zeros(1, 3, 16, 16)).shape[1], 2).eval()
    masks = Masks(network)
    for value in masks.values.values():
        value.copy_(torch.randn(value.shape))
    masks.apply()
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 1, 0])
    free = copy.deepcopy(model)
    layers = dict(free.source.named_modules())
    for layer in layers.values():
        if isinstance(getattr(layer, "bias", None), torch.Tensor):
            layer.bias.requires_grad_(True)
    cross_entropy(free(images), labels).backward()
    biases = Biases(network, masks)
    optimizer = Adam([(masks.values.values(), 0.0), (model.head.parameters(), 0.0), (biases.values.values(), 0.1)])
    step = mask_step(model, model.head, masks, optimizer, 0.0, biases=biases)
    biases.train()
    masks.train()
    bits = masks.bits()
    step(images, labels)
    assert biases.values
    for layer, shift in biases.shifts().items():
        gradient = layers[getattr(layers[layer], "convolution", layer)].bias.grad
        expected = -0.1 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
        if layer in biases.masked:
            expected *= bits[f"{layer}.bias"]
        torch.testing.assert_close(shift, expected, rtol=1e-3, atol=1e-5, msg=layer)


def test_a_folded_bias_learns_what_its_batch_norm_needs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = with_head(fold(network.eval()).requires_grad_(False), 4, 2)
    masks = Masks(model.source)
    biases = Biases(model.source, masks)
    assert list(biases.values) == ["1"]  # the batch norm, whose biases lie in the convolution
    optimizer = Adam([(masks.values.values(), 0.0), (model.head.parameters(), 0.0), (biases.values.values(), 0.1)])
    step = mask_step(model.eval(), model.head, masks, optimizer, 0.0, biases=biases)
    images, labels = torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long)
    biases.train()
    masks.train()
    losses = [step(images, labels)[1].item() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0] and biases.shifts()["1"].abs().min() > 0


def test_biases_continue_from_a_state():
    _, folded, masks, biases = masked("block")
    state = copy.deepcopy(biases.state_dict())
    images = torch.randn(2, 3, 16, 16, dtype=torch.double)
    before = folded(images)
    for value in biases.values.values():
        value.add_(1.0)
    masks.apply()
    assert not torch.equal(folded(images), before)
    biases.load_state_dict(state)
    assert torch.equal(folded(images), before)
    assert not any(shift.any() for shift in biases.shifts().values())


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ({"nowhere": torch.zeros(8)}, "no layer with a bias"),
        ({"": torch.zeros(8)}, "no layer with a bias"),
        ({"shared": torch.zeros(8)}, "does not fit"),  # it has neither a bias nor a mean
        ({"twice_norm": torch.zeros(7)}, "does not fit"),
        ({"twice_norm": torch.full((8,), torch.nan)}, "does not fit"),
        ({"twice_norm": torch.zeros(8, dtype=torch.uint8)}, "does not fit"),
    ],
)
def test_shifts_that_do_not_fit_are_refused(shift, words):
    with pytest.raises(ValueError, match=words):
        add_shifts(Block(), shift)

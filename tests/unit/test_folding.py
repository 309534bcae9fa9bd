import copy

import pytest
import torch
from networks import Block, lively
from torch import nn
from torch.nn.functional import cross_entropy

from seam.masks.masks import Masks
from seam.models.architectures import build_model
from seam.models.folding import fold


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.layer(x))
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def norms(network):
    return [name for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)]


def loss_and_gradients(network, images, labels):
    """With masks that take away a third of the weights, biases among them."""
    masks = Masks(network)
    torch.manual_seed(1)
    for name, value in masks.values.items():
        masks.values[name] = torch.where(torch.rand(value.shape) < 0.3, -1.0, 1.0).double()
    masks.apply()
    masks.train()
    loss = cross_entropy(network(images), labels)
    loss.backward()
    masks.backward(1.0)
    return loss.item(), {name: value.grad for name, value in masks.values.items()}


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: build_model("resnet20", 10), []),
        (lambda: build_model("vgg16_bn", 10), []),
        (Block, ["twice_norm", "shared_norm", "tied_norm", "first_norm"]),
        (Untraceable, ["norm"]),
    ],
    ids=["resnet20", "vgg16_bn", "block", "untraceable"],
)
def test_masks_get_the_same_gradients_on_the_folded_model(make, left):
    network = lively(make())
    folded = fold(copy.deepcopy(network))
    assert norms(folded) == left
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.arange(2)
    assert torch.allclose(folded(images), network(images), rtol=1e-12, atol=1e-12)
    loss, gradients = loss_and_gradients(network, images, labels)
    folded_loss, folded_gradients = loss_and_gradients(folded, images, labels)
    assert folded_loss == pytest.approx(loss, rel=1e-12)
    assert list(folded_gradients) == list(gradients)
    for name, gradient in gradients.items():
        assert torch.allclose(folded_gradients[name], gradient, rtol=1e-9, atol=1e-12), name


class Read(nn.Module):
    """A convolution whose weight the model's own code uses as well."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.layer(x)) + nn.functional.conv2d(x, self.layer.weight)


def test_a_convolution_whose_weight_is_read_elsewhere_is_left_alone():
    network = lively(Read())
    images = torch.randn(2, 3, 8, 8, dtype=torch.double)
    before = network(images)
    torch.testing.assert_close(fold(network)(images), before)
    assert norms(network)


def test_a_mask_takes_a_bias_away_but_not_what_the_batch_norm_adds():
    network = lively(Block())
    folded = fold(copy.deepcopy(network))
    for one in (network, folded):
        masks = Masks(one)
        masks.values["biased.bias"].fill_(-1)
        masks.apply()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(folded(images), network(images), rtol=1e-12, atol=1e-12)
    assert folded.biased.bias.abs().sum() > 0 and network.biased.bias.abs().sum() == 0


def test_a_batch_norm_with_two_names_is_folded_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3), self.norm, nn.ReLU())

        def forward(self, images):
            return self.features(images).mean((2, 3))

    network, images = lively(Twice()), torch.randn(2, 3, 8, 8).double()
    expected = network(images)
    folded = fold(network)
    assert norms(folded) == [] and torch.allclose(folded(images), expected, atol=1e-5)


def test_batch_norms_that_share_their_weights_are_not_folded():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    network[3].weight, network[3].bias = network[1].weight, network[1].bias
    assert norms(fold(lively(network))) == ["1", "3"]

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from seam.errors import UserError
from seam.masks.bits import bake, pack_bits, unpack_bits
from seam.masks.layers import maskable, unused_parameters
from seam.masks.masks import Masks
from seam.models.architectures import build_model
from seam.models.folding import fold
from seam.training.adam import Adam


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model("resnet20", 10).eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def randomise(masks, share=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for value in masks.values.values():
        value.copy_(torch.rand(value.shape, generator=generator) - share)


def test_a_mask_of_ones_changes_nothing(network, images):
    before = network(images)
    masks = Masks(network)
    masks.apply()
    assert torch.equal(network(images), before)
    assert masks.retention(1) == 1


def test_convolutions_and_linear_layers_are_masked_with_their_biases_and_nothing_else():
    network = build_model("vgg16_bn", 10)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert len(convolutions) == 13 and len(linear) == 3
    expected = sum(p.numel() for layer in convolutions + linear for p in layer.parameters())
    assert Masks(network).count == expected == 15_245_130


def test_a_shared_weight_has_one_mask():
    layer = nn.Linear(5, 5)
    tied = nn.Sequential(layer, nn.ReLU(), layer)
    assert list(maskable(tied)) == ["0.weight", "0.bias"]


def test_a_layer_can_be_left_out():
    network = build_model("resnet20", 10)
    assert maskable(network).keys() - maskable(network, exclude=["fc"]).keys() == {"fc.weight", "fc.bias"}


class WithAuxiliary(nn.Module):
    """A network beside a head that only training needs."""

    def __init__(self, network):
        super().__init__()
        self.network, self.auxiliary = network, nn.Linear(64, 10)

    def forward(self, images):
        return self.network(images)


def test_weights_that_the_outputs_do_not_depend_on_get_no_mask(network, images, caplog):
    network = WithAuxiliary(network).train()
    names = unused_parameters(network, images)
    assert names == {"auxiliary.weight", "auxiliary.bias"}
    assert "no masks for auxiliary.bias, auxiliary.weight (parameters: 2, numbers: 650)" in caplog.text
    assert all(module.training for module in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert Masks(network, names).count == Masks(build_model("resnet20", 10)).count


def test_unused_layers_that_share_a_weight_get_no_mask_by_either_name(network, images):
    network = WithAuxiliary(network)
    network.second = nn.Linear(64, 10)
    network.second.weight = network.auxiliary.weight
    names = unused_parameters(network, images)
    assert not any(name.startswith(("auxiliary", "second")) for name in maskable(network, names))


@pytest.mark.parametrize("make", [lambda network: torch.relu, lambda network: torch.no_grad()(network.forward)])
def test_outputs_that_depend_on_no_weight_are_refused(network, images, make):
    network.forward = make(network)
    with pytest.raises(UserError, match="outputs depend on no weight"):
        unused_parameters(network, images)


class Caching(nn.Module):
    """Keeps a number that it computes, as some attention does with its positions."""

    def __init__(self):
        super().__init__()
        self.conv, self.cache = nn.Conv2d(3, 4, 1), None

    def forward(self, images):
        self.cache = self.conv.bias * 2 if self.cache is None else self.cache
        return self.conv(images).mean((2, 3)) + self.cache


def test_looking_for_unused_parameters_leaves_nothing_in_the_model():
    network = Caching()
    assert not unused_parameters(network, torch.randn(2, 3, 4, 4)) and network.cache is None and network.training
    copy.deepcopy(network)  # of a tensor with a history, torch makes no copy


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]
)
def test_a_weight_that_is_computed_from_others_is_refused(wrap):
    with pytest.raises(UserError, match="The weight of layer 1 is computed from other parameters"):
        maskable(nn.Sequential(nn.Conv2d(3, 4, 3), wrap(nn.Conv2d(4, 4, 3))))


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        Masks(nn.ReLU())


def test_baked_weights_equal_masked_ones(network, images):
    baked = copy.deepcopy(network)
    masks = Masks(network)
    randomise(masks)
    masks.apply()
    bake(baked, unpack_bits(pack_bits(masks.bits()), baked))
    assert torch.equal(network(images), baked(images))
    zeros = sum(int((p == 0).sum()) for p in maskable(baked).values())
    assert zeros >= round(masks.count * (1 - masks.retention(1))) > 0


def test_a_mask_above_zero_again_brings_the_weight_back(network, images):
    before = network(images)
    masks = Masks(network)
    randomise(masks)
    masks.apply()
    for value in masks.values.values():
        value.fill_(0.1)
    masks.apply()
    assert torch.equal(network(images), before)


def test_the_gradient_is_that_of_straight_through_masks(network, images):
    """Against autograd, with the masks written into the network as the published code has them."""

    class Binarise(torch.autograd.Function):
        @staticmethod
        def forward(context, mask):
            return (mask > 0).float()

        @staticmethod
        def backward(context, gradient):
            return gradient.clamp(-1, 1)

    alpha, labels = 1.5, torch.tensor([0, 1, 2, 3])
    masks = Masks(network)
    randomise(masks)
    reference = {name: value.clone().requires_grad_() for name, value in masks.values.items()}
    weights = {name: masks.weights[name] * Binarise.apply(mask) for name, mask in reference.items()}
    loss = 100 * cross_entropy(torch.func.functional_call(network, weights, images), labels)
    retention = sum(Binarise.apply(mask).sum() for mask in reference.values()) / masks.count
    (loss + alpha * retention).backward()

    masks.apply()
    (100 * cross_entropy(network(images), labels)).backward()
    masks.backward(alpha)
    largest = max(mask.grad.max() for mask in reference.values())
    assert largest == pytest.approx(1 + alpha / masks.count, rel=1e-6)  # some are clipped
    for name, mask in reference.items():
        torch.testing.assert_close(masks.values[name].grad, mask.grad, rtol=1e-4, atol=1e-9)


def test_the_penalty_alone_lowers_every_mask():
    layer = nn.Linear(3, 2)
    masks = Masks(layer)
    layer(torch.zeros(1, 3))  # no gradient reaches the weights
    masks.backward(alpha=2.0)
    assert all((value.grad == 2.0 / masks.count).all() for value in masks.values.values())


class Unused(nn.Module):
    """A layer whose weight is used twice, one that is not used, and one with batch norm behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.twice, self.idle, self.last = nn.Linear(8, 8), nn.Linear(4, 4), nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.first(x)).relu().mean((2, 3))
        return self.last(self.twice(self.twice(x).relu()).relu())


@pytest.mark.parametrize("update_bytes", [0, 300, 1 << 20])  # bytes: gradients one by one, some, all
@pytest.mark.parametrize("folded", [False, True])
def test_masks_updated_within_the_backward_pass_are_those_updated_after_it_to_the_bit(folded, update_bytes):
    def made():
        torch.manual_seed(0)
        network = Unused().eval().to(memory_format=torch.channels_last)
        network.norm.running_mean.normal_()
        network = (fold(network) if folded else network).requires_grad_(False)
        masks = Masks(network)
        masks.train()
        return network, masks, Adam([(masks.values.values(), 0.3)], lambda step: 0.9**step)

    (one, masks, adam), (other, reference, other_adam) = made(), made()
    masks.update_bytes = update_bytes  # as on a GPU
    images, labels = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
    for step in range(8):
        scale = 1 + 1000 * (step % 2)  # so that some gradients are clipped
        with masks.updated(adam, alpha=0.5):
            (scale * cross_entropy(one(images), labels)).backward()
        adam.step()
        (scale * cross_entropy(other(images), labels)).backward()
        reference.backward(alpha=0.5)
        other_adam.step()
        reference.apply()
        for name, value in reference.values.items():
            assert torch.equal(masks.values[name], value), name
            assert torch.equal(masks.parameters[name], reference.parameters[name]), name
    assert 0 < masks.retention(1) < 1 and (masks.values["idle.weight"] < 1).all()  # by the penalty alone


def test_a_pass_that_fails_leaves_nothing_for_the_next(network, images):
    def updated_once(module, fails):
        masks = Masks(module)
        masks.train()
        masks.update_bytes = 1 << 30  # all are updated after the pass
        adam = Adam([(masks.values.values(), 0.1)])
        if fails:
            with pytest.raises(RuntimeError, match="captured"), masks.updated(adam, alpha=1.0):
                (-100 * module(images).sum()).backward()
                raise RuntimeError("cannot be captured")
            assert all((value == 1).all() for value in masks.values.values())
        with masks.updated(adam, alpha=1.0):
            module(images).sum().backward()
        return masks.values

    expected = updated_once(copy.deepcopy(network), fails=False)
    found = updated_once(network, fails=True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_one_gradient_is_held_at_a_time(network, images):
    masks, held = Masks(network), []
    masks.train()

    class Watch:
        def update(self, values):
            everything = [*masks.parameters.values(), *masks.values.values()]
            held.append(sum(tensor.grad is not None for tensor in everything))
            values[0].grad = None

    with masks.updated(Watch(), alpha=1.0):
        network(images).sum().backward()
    assert held == [1] * len(masks.values)
    network(images).sum().backward()  # outside, gradients stay where they are
    assert all(parameter.grad is not None for parameter in masks.parameters.values())


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_packing_takes_a_bit_a_weight_and_loses_none(count):
    layer = nn.Linear(count, 1, bias=False)
    bits = {"weight": torch.rand(1, count, generator=torch.Generator().manual_seed(count)) > 0.5}
    packed = pack_bits(bits)
    assert packed["weight"].numel() == -(-count // 8)
    assert torch.equal(unpack_bits(packed, layer)["weight"], bits["weight"])


def test_masks_of_another_model_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        unpack_bits(pack_bits({"weight": torch.ones(4, 4, dtype=torch.bool)}), nn.Linear(9, 9))


def test_memory_format_does_not_change_the_masks(network, images):
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    both = [Masks(network), Masks(other)]
    for masks, module in zip(both, (network, other), strict=True):
        randomise(masks)
        masks.apply()
        module(images).sum().backward()
        masks.backward(1.0)
    for name in both[0].values:
        torch.testing.assert_close(both[0].values[name].grad, both[1].values[name].grad, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(both[0].bits().values(), both[1].bits().values(), strict=True))


def test_masks_can_begin_in_the_order_of_the_weights_magnitudes(network):
    masks = Masks(network)
    masks.order_by_magnitude()
    for name, value in masks.values.items():
        order = masks.weights[name].abs().flatten().argsort(stable=True)
        ordered = value.flatten()[order]
        assert (ordered.diff() > 0).all() and ordered[0] == 0.25
        assert ordered[-1] == pytest.approx(1.75)

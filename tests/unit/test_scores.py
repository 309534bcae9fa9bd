import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from seam.masks.coverage import coverage_frequencies
from seam.masks.scores import (
    activation_scores,
    gradient_scores,
    keep_in_each,
    keep_overall,
    magnitude_scores,
    random_scores,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip


def names(module):
    return [name for name, _ in module.named_parameters()]


def batches(count=3):
    torch.manual_seed(1)
    return [(torch.randn(5, 3, 8, 8), torch.randint(2, (5,))) for _ in range(count)]


def test_masks_keep_as_many_of_each_parameter_or_in_all():
    scores = {"a": torch.tensor([[3.0, 1.0], [2.0, 0.0]]), "b": torch.tensor([9.0, 8.0, 7.0])}
    bits = keep_in_each(scores, {"a": 2, "b": 0})
    assert bits["a"].tolist() == [[True, False], [True, False]] and not bits["b"].any()
    assert {name: int(bit.sum()) for name, bit in keep_overall(scores, 4).items()} == {"a": 1, "b": 3}
    equal = keep_in_each({"a": torch.ones(5)}, {"a": 2})["a"]
    assert equal.tolist() == [True, True, False, False, False]


def test_an_activation_score_is_the_norm_of_what_a_weight_adds_to_its_outputs():
    """For a weight of a 1x1 convolution or a linear layer, |w| x norm of the input is the norm of its contribution."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2), nn.Flatten(), nn.Linear(6 * 9, 2))
    data = [(torch.randn(5, 4, 3, 3), torch.zeros(5)) for _ in range(2)]
    scores = activation_scores(module, names(module), data)
    images = torch.cat([images for images, _ in data])
    convolution = module[0]
    for output, channel in ((0, 1), (5, 0)):
        source = channel + 2 * (output // 3)
        contribution = (convolution.weight[output, channel] * images[:, source]).norm().item()
        assert scores["0.weight"][output, channel, 0, 0].item() == pytest.approx(contribution, rel=1e-5)
    features = module[:2](images)
    assert torch.allclose(scores["2.weight"], module[2].weight.abs() * features.norm(dim=0), rtol=1e-4)
    assert torch.allclose(scores["2.bias"], module[2].bias.abs() * 10**0.5, rtol=1e-5)
    assert torch.allclose(scores["0.bias"], convolution.bias.abs() * (10 * 9) ** 0.5, rtol=1e-5)


def test_weights_whose_inputs_cannot_be_seen_are_scored_like_the_others():
    """Else a score over the whole model would remove all weights of attention first."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 16)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, tokens):
            tokens = self.first(tokens)
            return self.second(self.attention(tokens, tokens, tokens)[0])

    torch.manual_seed(0)
    module, data = Attention(), [(torch.randn(50, 10, 8), torch.zeros(50))]
    scores, sizes = activation_scores(module, names(module), data), magnitude_scores(module, names(module))
    norms = {name: (scores[name] / sizes[name])[0] for name in ("first.weight", "second.weight")}  # of each input
    mean = (norms["first.weight"].mean() * 64 + norms["second.weight"].mean() * 128) / 192
    assert torch.allclose(scores["attention.in_proj_weight"], sizes["attention.in_proj_weight"] * mean, rtol=1e-4)


def test_inputs_may_be_given_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, images):
            return self.layer(input=images)

    torch.manual_seed(0)
    module, data = ByName(), [(torch.randn(5, 3, 3, 3), torch.zeros(5))]
    scores = activation_scores(module, names(module), data)
    expected = activation_scores(nn.Sequential(module.layer), ["0.weight"], data)
    assert torch.equal(scores["layer.weight"], expected["0.weight"])
    first, second = coverage_frequencies(module, data)["layer"], coverage_frequencies(nn.Sequential(module.layer), data)
    assert all(map(torch.equal, first, second["0"]))


def test_scores_cover_every_kind_of_layer():
    module, data = network(), batches()
    for scores in (
        magnitude_scores(module, names(module)),
        activation_scores(module, names(module), data),
        gradient_scores(module, names(module), lambda x, y: cross_entropy(module(x), y), data),
    ):
        assert {name: score.shape for name, score in scores.items()} == {
            n: p.shape for n, p in module.named_parameters()
        }
        assert all(bool((score >= 0).all()) and bool(score.isfinite().all()) for score in scores.values())


def test_a_gradient_score_is_the_change_of_the_loss():
    module, data = network().double(), [(images.double(), labels) for images, labels in batches()]
    images, labels = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    scores = gradient_scores(module, names(module), lambda x, y: cross_entropy(module(x), y), data)
    assert module.training and all(parameter.grad is None for parameter in module.parameters())
    weight, step = module[0].weight, 1e-6
    with torch.no_grad():
        before = cross_entropy(module(images), labels)
        weight[2, 1, 0, 0] *= 1 - step
        after = cross_entropy(module(images), labels)
    assert scores["0.weight"][2, 1, 0, 0].item() == pytest.approx(abs(after - before).item() / step, rel=1e-3)


def test_random_scores_come_from_the_generator():
    module = network()
    first, second, other = (
        random_scores(module, names(module), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first["0.weight"], second["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])

"""The relevance of ReMoS, against the definition written as loops."""

import pytest
import torch
from torch import nn

from seam.errors import UserError
from seam.masks.coverage import coverage_frequencies, covered, relevant_bits


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


def data():
    torch.manual_seed(1)
    return [(torch.randn(4, 3, 8, 8), torch.zeros(4)), (torch.randn(3, 3, 8, 8) + 1, torch.zeros(3))]


def test_a_channel_is_covered_if_its_mean_is_above_half_of_the_layers_range():
    values = torch.tensor([[[0.0, 4.0], [3.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert covered(values, 0.5).tolist() == [[False, True], [False, False]]
    assert covered(values, 0.4).tolist() == [[True, True], [False, False]]


def test_frequencies_count_images():
    module = network()
    found = coverage_frequencies(module, data(), 0.5)
    assert module.training and list(found) == ["0", "2", "4"]
    module.eval()
    images = torch.cat([images for images, _ in data()])
    outputs = module[0](images).detach()
    expected = torch.zeros(6, dtype=torch.int64)
    for image in outputs:
        scaled = (image - image.min()) / (image.max() - image.min())
        expected += scaled.mean((1, 2)) > 0.5
    assert torch.equal(found["0"][1], expected)
    assert [len(side) for name in found for side in found[name]] == [3, 6, 6, 8, 8, 4]
    assert all(int(side.max()) <= 7 for sides in found.values() for side in sides)


def test_large_weights_of_channels_that_are_seldom_active_go():
    module = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[4.0, 1.0], [3.0, 2.0]]).view(2, 2, 1, 1))
    often, seldom = 9, 1
    frequencies = {"0": (torch.tensor([seldom, often]), torch.tensor([seldom, often]))}
    # Coverage 2, 10, 10, 18 for [out, in] = 00, 01, 10, 11: ranks 0, 1, 1, 3; magnitudes 4, 1, 3, 2: ranks 3, 0, 2, 1.
    # Relevance -3, 1, -1, 2.
    bits = [relevant_bits(module, frequencies, ratio)["0.weight"].flatten().tolist() for ratio in (0.25, 0.5, 0.75)]
    assert bits == [[False, True, True, True], [False, True, False, True], [False, False, False, True]]


@pytest.mark.parametrize("ratio", [0.1, 0.37])
def test_the_ratio_is_that_of_all_convolutions_and_groups_are_respected(ratio):
    module = network()
    frequencies = coverage_frequencies(module, data())
    bits = relevant_bits(module, frequencies, ratio)
    assert {name: bit.shape for name, bit in bits.items()} == {
        f"{n}.weight": module[int(n)].weight.shape for n in ("0", "2", "4")
    }
    count = sum(bit.numel() for bit in bits.values())
    assert sum(int((~bit).sum()) for bit in bits.values()) == round(ratio * count)
    # By hand: coverage of each weight, then the two ranks.
    weights = []
    for name in ("0", "2", "4"):
        layer, (inputs, outputs) = module[int(name)], frequencies[name]
        for index in torch.cartesian_prod(*map(torch.arange, layer.weight.shape)).tolist():
            first, second, width = index[0], index[1], layer.weight.shape[1]
            if name == "4":  # [in, out / groups]
                source, target = first, second + width * (first // (8 // 2))
            else:  # [out, in / groups]
                source, target = second + width * (first // (layer.out_channels // layer.groups)), first
            frequency = int(inputs[source] + outputs[target])
            weights.append((frequency, layer.weight[tuple(index)].abs().item(), bits[f"{name}.weight"][tuple(index)]))
    below = [sum(other[0] < weight[0] for other in weights) for weight in weights]
    smaller = [sum(other[1] < weight[1] for other in weights) for weight in weights]
    kept = [c - m for c, m, weight in zip(below, smaller, weights, strict=True) if weight[2]]
    gone = [c - m for c, m, weight in zip(below, smaller, weights, strict=True) if not weight[2]]
    assert max(gone) <= min(kept)


def test_a_model_without_convolutions_is_one_sentence():
    with pytest.raises(UserError, match="no convolution, which the student remos needs: take it out of students"):
        relevant_bits(nn.Linear(2, 2), {}, 0.1)

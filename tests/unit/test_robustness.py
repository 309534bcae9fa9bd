import numpy as np
import pytest
import torch
from torch import nn

from seam.models.surgery import feature_extractor, find_last_layer, replace_last_layer
from seam.robustness.attack import attack_loss, compress, count_defects, count_robust, expand, perturb, perturb_all
from seam.settings import AttackSettings

SETTINGS = AttackSettings(batch_size=8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()).eval()


@pytest.fixture
def images():
    return torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1)) * 1.5  # some beyond the clip


def attacked(network, images, seed=0, settings=SETTINGS):
    torch.manual_seed(seed)
    return perturb(network, images, settings)


def test_the_perturbation_stays_within_eps_and_the_clip(network, images):
    found = attacked(network, images)
    assert (found - images.clamp(-2.2, 2.2)).abs().max() <= 0.1 + 1e-6
    assert found.abs().max() <= 2.2
    assert (found - images.clamp(-2.2, 2.2)).abs().mean() > 0.05  # and it uses its room


def test_the_loss_pulls_feature_0_up_and_the_others_to_zero(network, images):
    before, after = network(images.clamp(-2.2, 2.2)), network(attacked(network, images))
    assert (after[:, 0] > before[:, 0]).all()
    assert attack_loss(after, SETTINGS) > attack_loss(before, SETTINGS)
    flat = AttackSettings(target=0.0, weight=10.0)  # feature 0 counts for little: the others go down
    after = network(attacked(network, images, settings=flat))
    assert after[:, 1:].square().mean() < before[:, 1:].square().mean()


def test_the_loss_is_the_formula():
    found = attack_loss(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0]]), AttackSettings())
    assert found == pytest.approx(-((997.0**2 + 0.1 * 2.5) + 1000.0**2) / 2)


def test_an_adaptive_attack_is_stronger_than_noise_and_than_one_against_another_network(network, images):
    torch.manual_seed(3)
    student = nn.Sequential(network, nn.Linear(24, 3)).eval()
    images = images.clamp(-2.2, 2.2)
    labels = student(images).argmax(1)  # all are right
    batches = [(images[:5], labels[:5]), (images[5:], labels[5:])]
    strong = AttackSettings(eps=1.0, step=0.2)
    assert count_robust(student, batches, AttackSettings(eps=1e-5, step=1e-6)) == 8
    attacked_itself = count_robust(student, batches, strong)
    levels = compress(attacked(network, images, settings=strong), images, strong)
    inherited = 8 - count_defects(student, batches, levels, strong)["inherited"]
    assert attacked_itself == 0 <= inherited


def test_the_same_seed_gives_the_same_images_and_another_does_not(network, images):
    first, again, other = (attacked(network, images, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_advertorch_does_what_a_few_lines_do(network, images):
    """Madry et al.'s PGD, from the same random start."""
    found = attacked(network, images)
    torch.manual_seed(0)
    delta = torch.empty_like(images).uniform_(-1, 1) * SETTINGS.eps
    delta = (images + delta).clamp(*SETTINGS.clip) - images
    for _ in range(SETTINGS.steps):
        delta = delta.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(attack_loss(network(images + delta), SETTINGS), delta)
        delta = (delta.detach() + SETTINGS.step * gradient.sign()).clamp(-SETTINGS.eps, SETTINGS.eps)
        delta = (images + delta).clamp(*SETTINGS.clip) - images
    torch.testing.assert_close(found, images + delta, atol=1e-6, rtol=0)


def test_an_image_is_perturbed_alike_alone_and_in_a_batch(network, images):
    """The loss is a mean over the batch, but the step is the gradient's sign."""
    signs = []
    for count in (1, 8):
        delta = torch.zeros_like(images[:count]).requires_grad_(True)
        attack_loss(network(images[:count] + delta), SETTINGS).backward()
        signs.append(delta.grad[0].sign())
    assert torch.equal(*signs)


def test_what_is_stored_is_within_eps_and_close_to_what_was_found(network, images):
    found = attacked(network, images)
    levels = compress(found, images, SETTINGS)
    assert levels.dtype == np.int8 and levels.shape == (8, 10, 10, 3)
    again = expand(levels, images, SETTINGS)
    assert (again - images.clamp(-2.2, 2.2)).abs().max() <= 0.1 + 1e-6 and again.abs().max() <= 2.2
    assert (again - found).abs().max() <= 0.1 / 127  # half a step, and as much again at the edge of the clip
    assert torch.equal(expand(compress(again, images, SETTINGS), images, SETTINGS), again)


def test_all_images_are_perturbed_in_their_order(network, images):
    into = np.zeros((8, 10, 10, 3), np.int8)
    torch.manual_seed(0)
    found = perturb_all(network, [(images[:5], None), (images[5:], None)], SETTINGS, into)
    assert found["loss_after"] > found["loss_before"]
    assert 0.09 < found["largest_perturbation"] <= 0.1 + 1e-6
    assert (np.abs(into).reshape(8, -1).max(1) > 100).all()


class Threshold(nn.Module):
    """Says 1 where the mean of the image is above zero."""

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


def test_what_the_clip_cuts_is_counted_and_warned_of(network, images, caplog):
    batches = [(images, torch.zeros(8, dtype=torch.long))]
    into = np.zeros((8, 10, 10, 3), np.int8)
    found = perturb_all(network, batches, SETTINGS, into)
    assert found["values_clipped"] == pytest.approx((images.abs() > 2.2).double().mean().item())
    assert 0.1 < found["values_clipped"] < 0.2 and "attack.clip cuts 16 % of the values" in caplog.text
    caplog.clear()
    found = perturb_all(network, batches, AttackSettings(batch_size=8, clip=(-9.0, 9.0)), into)
    assert found["values_clipped"] == 0 and "attack.clip" not in caplog.text


def test_defects_are_counted_among_what_is_right():
    values = torch.tensor([0.05, -0.05, 0.5, -0.5, 0.05, 0.5])
    images = values[:, None, None, None].expand(6, 3, 4, 4).contiguous()
    labels = torch.tensor([1, 0, 1, 0, 0, 0])  # the last two are wrong from the start
    levels = np.full((6, 4, 4, 3), -127, np.int8)  # everything a tenth lower
    found = count_defects(Threshold(), [(images[:4], labels[:4]), (images[4:], labels[4:])], levels, SETTINGS)
    assert found == {
        "images": 6, "right": 4, "inherited": 1, "accuracy": 4 / 6, "defect_inheritance_rate": 1 / 4,
        "accuracy_perturbed": 4 / 6,
    }  # fmt: skip


def test_without_a_perturbation_nothing_is_inherited():
    images = torch.randn(6, 3, 4, 4)
    labels = Threshold()(images).argmax(1)
    found = count_defects(Threshold(), [(images.clamp(-2.2, 2.2), labels)], np.zeros((6, 4, 4, 3), np.int8), SETTINGS)
    assert found["defect_inheritance_rate"] == 0


def test_a_student_that_gets_nothing_right_has_no_rate():
    images = torch.full((2, 3, 4, 4), 0.5)
    found = count_defects(Threshold(), [(images, torch.tensor([0, 0]))], np.zeros((2, 4, 4, 3), np.int8), SETTINGS)
    assert found["right"] == 0 and found["defect_inheritance_rate"] is None


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v3_small", "squeezenet1_1", "vit_b_16"])
def test_features_are_the_inputs_of_the_last_layer(name):
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    last = find_last_layer(model, 7, (3, 224, 224))
    image, seen = torch.randn(1, 3, 224, 224), []
    model.get_submodule(last).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        model(image)
        found = feature_extractor(model, last)(image)
    # SqueezeNet's last layer is a convolution: what pools its outputs then pools its inputs.
    expected = seen[0] if seen[0].dim() < 4 else seen[0].relu().mean((2, 3))
    torch.testing.assert_close(found, expected.flatten(1))


def test_robustness_settings_are_those_published():
    assert AttackSettings() == AttackSettings(0.1, 0.01, 40, (-2.2, 2.2), 1000.0, 0.1, 64)


def test_a_new_last_layer_has_the_new_classes():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    assert find_last_layer(model, 5, (3, 8, 8)) == "3"
    assert replace_last_layer(model, "3", 2)(torch.zeros(1, 3, 8, 8)).shape == (1, 2)

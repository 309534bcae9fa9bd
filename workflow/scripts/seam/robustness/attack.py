"""Inherited defects: images perturbed against a source model's features, and how many of them mislead a student.

Rezaei and Liu ("A Target-Agnostic Attack on Deep Models", ICLR 2020) as ReMoS and SeaM evaluate with it: whoever
knows the public source model, and nothing of the students, can make such images.
"""

import numpy as np
import torch

from seam.log import log
from seam.precision import exact

LEVELS = 127  # of an int8 on each side of zero
CLIPPED = 0.1  # share of the images' values beyond the clip from which on the log warns


def attack_loss(features, settings):
    """What the attack maximises, for features [B, F]: -((f0 - target)^2 + weight * mean of the others' squares).

    It drives feature 0 to `target` and the others to 0; the mean over the batch.
    """
    far = (features[:, 0] - settings.target) ** 2
    return -(far + settings.weight * features[:, 1:].square().mean(1)).mean()


def perturb(network, images, settings):
    """`images` perturbed against `network`, which maps [B, 3, H, W] to features [B, F]; of the same shape.

    PGD (Madry et al., 2018) within `eps` of the images in the maximum norm and within `clip`: a random start, then
    `steps` steps of the gradient's sign.
    """
    from seam.robustness.pgd import LinfPGDAttack

    pgd = LinfPGDAttack(
        network,
        loss_fn=lambda features, _: attack_loss(features, settings),
        eps=settings.eps,
        nb_iter=settings.steps,
        eps_iter=settings.step,
        rand_init=True,
        clip_min=settings.clip[0],
        clip_max=settings.clip[1],
        targeted=False,
    )
    unused = torch.zeros(len(images), dtype=torch.long, device=images.device)
    return pgd.perturb(images, unused)


def compress(perturbed, images, settings):
    """The perturbation as int8 [B, H, W, 3] on the CPU: steps of eps / 127 from the clipped images."""
    difference = perturbed - images.clamp(*settings.clip)
    levels = (difference * (LEVELS / settings.eps)).round().clamp(-LEVELS, LEVELS)
    return levels.to(torch.int8).permute(0, 2, 3, 1).cpu().numpy()


def expand(levels, images, settings):
    """The perturbed images, from what `compress` gave and the images [B, 3, H, W]: within eps and the clip."""
    levels = torch.from_numpy(np.array(levels)).to(images.device).permute(0, 3, 1, 2)
    return (images.clamp(*settings.clip) + levels * (settings.eps / LEVELS)).clamp(*settings.clip)


@exact()
def perturbations(network, batches, settings, into):
    """Attack all images of `batches` and write the compressed perturbations to the array `into`, int8 [N, H, W, 3].

    Gives {"loss_before", "loss_after", "largest_perturbation", "values_clipped"}: means of the loss, the maximum norm
    of what was stored, and the share of the images' values beyond the clip, which changes them by itself. The seed is
    torch's own: call `torch.manual_seed` before.
    """
    network.eval().requires_grad_(False)
    done, before, after, largest, clipped = 0, 0.0, 0.0, 0.0, 0.0
    for images, _ in batches:
        part = slice(done, done + len(images))
        into[part] = compress(perturb(network, images, settings), images, settings)
        perturbed = expand(into[part], images, settings)
        with torch.inference_mode():
            before += attack_loss(network(images), settings).item() * len(images)
            after += attack_loss(network(perturbed), settings).item() * len(images)
        inside = images.clamp(*settings.clip)
        largest = max(largest, (perturbed - inside).abs().max().item())
        clipped += (inside != images).double().mean().item() * len(images)
        done += len(images)
        log.info("%d images perturbed", done)
    if clipped / done > CLIPPED:
        log.warning(
            "attack.clip cuts %.0f %% of the values of the images: students can fail by that alone; widen it",
            100 * clipped / done,
        )
    means = {"loss_before": before / done, "loss_after": after / done}
    return {**means, "largest_perturbation": largest, "values_clipped": clipped / done}


@exact()
@torch.inference_mode()
def judge(student, batches, levels, settings):
    """How a student fares: {"images", "right", "inherited", "right_perturbed", and rates of them}.

    levels: int8 [N, H, W, 3] of the batches' images in their order. The defect inheritance rate is the share of the
    images that the student gets right which it gets wrong once they are perturbed against the source model (None
    where it gets none right).
    """
    student.eval()
    done, counts = 0, 0
    for images, labels in batches:
        clean = student(images).argmax(1) == labels
        perturbed = student(expand(levels[done : done + len(images)], images, settings)).argmax(1) == labels
        done += len(images)
        counts = counts + torch.stack([clean.sum(), (clean & ~perturbed).sum(), perturbed.sum()])
    right, inherited, right_perturbed = counts.tolist()
    return {
        "images": done,
        "right": right,
        "inherited": inherited,
        "accuracy": right / done,
        "defect_inheritance_rate": inherited / right if right else None,
        "accuracy_perturbed": right_perturbed / done,
    }

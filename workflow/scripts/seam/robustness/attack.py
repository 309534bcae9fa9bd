"""Inherited defects: images perturbed against a source model's features, and how many of them mislead a student.

The attack is that of Rezaei and Liu ("A Target-Agnostic Attack on Deep Models", ICLR 2020), with which ReMoS and SeaM
are evaluated. Whoever knows the public source model can make such images without knowing anything of the students.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from seam.log import log
from seam.precision import exact
from seam.settings import AttackSettings

LEVELS = 127  # of an int8 on each side of zero
MOST_CLIPPED = 0.1  # share of the images' values beyond the clip, above which the log has a warning


def attack_loss(features: torch.Tensor, settings: AttackSettings) -> torch.Tensor:
    """Return what the attack maximises: the mean over features [B, F] of
    -((f0 - target)^2 + weight * mean of the others' squares).

    It drives feature 0 to `target` and the others to 0.
    """
    distance = (features[:, 0] - settings.target) ** 2
    return -(distance + settings.weight * features[:, 1:].square().mean(1)).mean()


def perturb(network: nn.Module, images: torch.Tensor, settings: AttackSettings) -> torch.Tensor:
    """Return `images` [B, 3, H, W] perturbed against `network`, which maps them to features [B, F].

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
    unused_labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    return pgd.perturb(images, unused_labels)


def compress(perturbed: torch.Tensor, images: torch.Tensor, settings: AttackSettings) -> np.ndarray:
    """Return the perturbation as int8 [B, H, W, 3] on the CPU: steps of eps / 127 from the clipped images."""
    difference = perturbed - images.clamp(*settings.clip)
    levels = (difference * (LEVELS / settings.eps)).round().clamp(-LEVELS, LEVELS)
    return levels.to(torch.int8).permute(0, 2, 3, 1).cpu().numpy()


def expand(levels: np.ndarray, images: torch.Tensor, settings: AttackSettings) -> torch.Tensor:
    """Return the images [B, 3, H, W], perturbed by what `compress` returned: within eps and the clip."""
    steps = torch.from_numpy(np.array(levels)).to(images.device).permute(0, 3, 1, 2)
    return (images.clamp(*settings.clip) + steps * (settings.eps / LEVELS)).clamp(*settings.clip)


@exact()
def perturb_all(
    network: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    settings: AttackSettings,
    levels: np.ndarray,
) -> dict[str, float]:
    """Attack all images of `batches`, and write the compressed perturbations into `levels`, int8 [N, H, W, 3].

    Return {"loss_before", "loss_after", "largest_perturbation", "values_clipped"}: means of the loss, the maximum norm
    of the stored perturbations, and the share of the images' values that lie beyond the clip, which changes them by
    itself. Random numbers come from torch's own generator: call `torch.manual_seed` before.
    """
    network.eval().requires_grad_(False)
    done, before, after, largest, clipped = 0, 0.0, 0.0, 0.0, 0.0
    for images, _ in batches:
        batch = slice(done, done + len(images))
        levels[batch] = compress(perturb(network, images, settings), images, settings)
        perturbed = expand(levels[batch], images, settings)
        with torch.inference_mode():
            before += attack_loss(network(images), settings).item() * len(images)
            after += attack_loss(network(perturbed), settings).item() * len(images)
        inside = images.clamp(*settings.clip)
        largest = max(largest, (perturbed - inside).abs().max().item())
        clipped += (inside != images).count_nonzero().item() / images[0].numel()
        done += len(images)
        log.info("%d images perturbed", done)
    if clipped / done > MOST_CLIPPED:
        log.warning(
            "attack.clip cuts %.0f %% of the values of the images: students can fail by that alone; widen it",
            100 * clipped / done,
        )
    means = {"loss_before": before / done, "loss_after": after / done}
    return {**means, "largest_perturbation": largest, "values_clipped": clipped / done}


@exact()
def count_robust(
    student: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], settings: AttackSettings
) -> int:
    """Return how many images a student gets right after an attack on itself.

    The attack is PGD (Madry et al., 2018) on the student's own cross entropy, with the bounds and steps of `settings`:
    an adaptive attack, which knows the student. Random numbers come from torch's own generator.
    """
    from seam.robustness.pgd import LinfPGDAttack

    student.eval().requires_grad_(False)
    pgd = LinfPGDAttack(
        student,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        eps=settings.eps,
        nb_iter=settings.steps,
        eps_iter=settings.step,
        rand_init=True,
        clip_min=settings.clip[0],
        clip_max=settings.clip[1],
        targeted=False,
    )
    right = 0
    for images, labels in batches:
        perturbed = pgd.perturb(images, labels)
        with torch.inference_mode():
            right += int((student(perturbed).argmax(1) == labels).sum())
    return right


@exact()
@torch.inference_mode()
def count_defects(
    student: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    levels: np.ndarray,
    settings: AttackSettings,
) -> dict[str, Any]:
    """Return {"images", "right", "inherited"} of a student, and the rates that follow from these numbers.

    levels: int8 [N, H, W, 3] of the batches' images in their order. The defect inheritance rate is a share of the
    images that the student gets right: those that it gets wrong once they are perturbed against the source model. It is
    None if the student gets no image right.
    """
    student.eval()
    done, counts = 0, torch.zeros(3, dtype=torch.int64)
    for images, labels in batches:
        clean = student(images).argmax(1) == labels
        perturbed = student(expand(levels[done : done + len(images)], images, settings)).argmax(1) == labels
        done += len(images)
        batch = torch.stack([clean.sum(), (clean & ~perturbed).sum(), perturbed.sum()])
        counts = counts.to(batch.device) + batch
    right, inherited, right_perturbed = counts.tolist()
    return {
        "images": done,
        "right": right,
        "inherited": inherited,
        "accuracy": right / done,
        "defect_inheritance_rate": inherited / right if right else None,
        "accuracy_perturbed": right_perturbed / done,
    }

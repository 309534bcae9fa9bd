"""Learning rates that change from step to step."""

from __future__ import annotations

import math

import torch

from seam.training.adam import RateFactor

WARMUP = 200  # steps


def warm_cosine(steps: int) -> RateFactor:
    """Return the factor on the rates at each of `steps`: it rises to 1 over 200, and falls to 0 along a cosine.

    It rises over a tenth of the steps if these are few. The cosine spans all of them (Loshchilov and Hutter, "SGDR",
    2017).
    """
    warmup, last = min(WARMUP, max(steps // 10, 1)), max(steps, 1)

    def factor(step: torch.Tensor) -> torch.Tensor:
        return ((step + 1) / warmup).clamp(max=1) * (1 + torch.cos(math.pi * (step / last).clamp(max=1))) / 2

    return factor

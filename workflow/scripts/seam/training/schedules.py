"""Learning rates that change from step to step, and the number of steps that they depend on."""

from __future__ import annotations

import math

WARMUP = 200  # steps


def warm_cosine(step: int, steps: int) -> float:
    """Return the factor on the rate: it rises to 1 over 200 steps, and falls to 0 along a cosine.

    It rises over a tenth of `steps` if these are few. The cosine spans all of them (Loshchilov and Hutter, "SGDR",
    2017). step: the number of steps done.
    """
    warmup = min(WARMUP, max(steps // 10, 1))
    return min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * min(step / max(steps, 1), 1))) / 2


class StepCounter:
    """The number of steps done, as a part of a checkpoint."""

    def __init__(self) -> None:
        self.steps = 0

    def state_dict(self) -> dict[str, int]:
        """Return the number."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a number."""
        self.steps = state["steps"]

"""All kinds of attacks, and a campaign of some of each."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

from . import configs, flips, full_disk, images, kills, strangers, weights
from .outcomes import UNCLEAR, Ending, Outcome
from .world import World

Attempt = Callable[[World, int, int], tuple[str, Ending]]
KINDS: dict[str, Attempt] = {
    "images": images.attempt,
    "weights": weights.attempt,
    "strangers": strangers.attempt,
    "configs": configs.attempt,
    "flips": flips.attempt,
    "kills": kills.attempt,
    "full-disk": full_disk.attempt,
}
# How often each kind is tried: by default, most attacks once; and in the campaign that docs/reliability.md reports.
SMALL = {"images": 33, "weights": 61, "strangers": 23, "configs": 9, "flips": 12, "kills": 9, "full-disk": 2}
LARGE = {"images": 66, "weights": 61, "strangers": 69, "configs": 91, "flips": 500, "kills": 100, "full-disk": 24}


def run_one(world: World, kind: str, number: int, seed: int) -> Outcome:
    """Make one attempt. An error of the campaign itself is told in the outcome and does not end it."""
    began = time.monotonic()
    try:
        name, ending = KINDS[kind](world, number, seed)
    except Exception as error:
        name, ending = "the campaign itself", Ending(UNCLEAR, f"{type(error).__name__}: {error}"[-300:])
    detail = re.sub(rf"{re.escape(str(world.work))}/(attempt-\w+/?)?", "", ending.detail)
    return Outcome(kind, number, name, ending.verdict, detail, ending.matters, time.monotonic() - began)


def run(world: World, counts: dict[str, int], seed: int, minutes: float | None = None) -> Iterator[Outcome]:
    """Make `counts` attempts of each kind; stop after `minutes`, and start no other attempt then."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for kind, number in _turns(counts):
        if end is not None and time.monotonic() > end:
            return
        yield run_one(world, kind, number, seed)


def _turns(counts: dict[str, int]) -> list[tuple[str, int]]:
    """Return (kind, number) of all attempts, such that kinds progress alike: a campaign can end early."""
    turns = [((number + 0.5) / count, kind, number) for kind, count in counts.items() for number in range(count)]
    return [(kind, number) for _, kind, number in sorted(turns)]

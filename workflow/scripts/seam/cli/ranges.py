"""The ranges of the numbers on the command line, which are checked before any work."""

from __future__ import annotations

import argparse

from seam.errors import UserError
from seam.reuse.cards import MOST_PIXELS

RANGES: dict[str, tuple[float, float]] = {  # by the name of the option: the least and the greatest value
    "epochs": (2, 100_000),
    "lose": (-100, 100),
    "outputs": (2, 100_000),
    "seed": (0, 2**32 - 1),
    "size": (8, MOST_PIXELS),
    "test_share": (0.01, 0.5),
    "threads": (1, 1024),
}


def require_ranges(options: argparse.Namespace) -> None:
    """Raise UserError if a number is out of its range."""
    for name, (least, greatest) in RANGES.items():
        value = getattr(options, name, None)
        if value is not None and not least <= value <= greatest:  # also if it is not a number
            raise UserError(
                f"--{name.replace('_', '-')} is {value}, but must be from {least:,} to {greatest:,}: choose another."
            )

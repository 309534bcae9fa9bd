"""Confidence intervals of means over target problems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
NONE = float("nan")


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`; NaN if there are fewer than two.

    The values are those of different target problems, which are resampled. If problems were run with several seeds,
    give the mean over the seeds of each problem: seeds of one problem are no independent problems (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993). The same values always give the same interval.
    """
    if len(values) < 2:
        return NONE, NONE
    random, numbers = np.random.default_rng(0), np.asarray(values, float)
    means = numbers[random.integers(0, len(numbers), (resamples, len(numbers)))].mean(1)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)

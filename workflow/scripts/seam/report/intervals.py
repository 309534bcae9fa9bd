"""Confidence intervals: of means over target problems and over seeds, and of shares of images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
FEWEST = 5  # values for a bootstrap: resamples of fewer hardly leave their range
NONE = float("nan")


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, level: float = LEVEL) -> tuple[float, float]:
    """Return the bootstrap interval of the mean of `values`; NaN if there are fewer than two.

    The values are those of different target problems, which are resampled. If problems were run with several seeds,
    give the mean over the seeds of each problem: seeds of one problem are no independent problems (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993). The same values always give the same interval.

    The plain percentile interval is too narrow: of ten normal values it covers the mean in 90 % of cases instead of 95.
    So its quantiles are moved out until it is as wide as Student's t interval would be for symmetric values (the
    expanded percentile interval of Hesterberg, "What Teachers Should Know About the Bootstrap", 2015). Fewer than five
    values get Student's t interval itself.
    """
    count = len(values)
    if count < FEWEST:
        return student_t(values, level)
    from scipy.stats import norm, t

    tail = norm.cdf(-math.sqrt(count / (count - 1)) * t.ppf((1 + level) / 2, count - 1))
    random, numbers = np.random.default_rng(0), np.asarray(values, float)
    means = numbers[random.integers(0, count, (resamples, count))].mean(1)
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def student_t(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Return Student's t interval of the mean of `values`; NaN if there are fewer than two.

    The values are those of a few seeds. A bootstrap over so few is far too narrow: with three values, it never leaves
    their range.
    """
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return NONE, NONE
    numbers = np.asarray(values, float)
    half = float(t.ppf((1 + level) / 2, count - 1) * numbers.std(ddof=1) / np.sqrt(count))
    mean = float(numbers.mean())
    return mean - half, mean + half


def wilson(share: float, images: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share that so many images gave; NaN if there are none.

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if not images:
        return NONE, NONE
    z = 1.959963984540054  # of a normal distribution, at 97.5 %
    centre, spread = share + z * z / (2 * images), z * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    scale = 1 + z * z / images
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)

"""Changes in a series of numbers, one per epoch, found against the series' own noise."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import fmean


def noise(values: Sequence[float]) -> float:
    """Standard deviation of the noise in a series that may have a trend: `sqrt(mean((x_t+1 - x_t)^2) / 2)`.

    Example:
        >>> noise([1.0, 3.0, 1.0])
        1.4142135623730951

    Source: von Neumann et al. 1941, The mean square successive difference.
    """
    return math.sqrt(fmean((after - before) ** 2 for before, after in pairwise(values)) / 2)


def deviations(values: Sequence[float], *, baseline: int) -> list[float]:
    """How far each value after the first `baseline` is from their mean, in units of `noise`; 0 for a constant series.

    Example:
        >>> deviations([0.0, 2.0, 2.0], baseline=2)  # (2 - 1) / sqrt((2^2 + 0^2) / 4)
        [1.0]
    """
    if len(values) <= baseline:
        return []
    centre, scale = fmean(values[:baseline]), noise(values)
    return [(value - centre) / scale if scale else 0.0 for value in values[baseline:]]


def falls(values: Sequence[float], *, window: int) -> list[float]:
    """How far each value after the first `window` is below the best level before it, in units of `noise`.

    A level is the mean of `window` consecutive values: a single lucky epoch is no level to fall from. Negative where
    the value is above it; 0 for a constant series.

    Example:
        >>> falls([0.0, 1.0, 2.0, 0.0], window=2)  # the levels are 0.5, then 1.5; the noise is sqrt((1 + 1 + 4) / 6)
        [-1.5, 1.5]
    """
    if len(values) <= window:
        return []
    levels = [fmean(values[end - window : end]) for end in range(window, len(values))]
    scale = noise(values)
    best = accumulate(levels, max)
    return [(level - value) / scale if scale else 0.0 for level, value in zip(best, values[window:], strict=True)]


def has_changed(changes: Sequence[float], *, slack: float, limit: float) -> bool:
    """Whether changes beyond the slack add up to more than the limit: a one-sided CUSUM, as it stands at the end.

        S_0 = 0,  S_t = min(2 limit, max(0, S_t-1 + change_t - slack)),  changed where S > limit

    Example:
        >>> has_changed([3.0, 3.0], slack=1.0, limit=3.0), has_changed([3.0, 3.0, 0.0, 0.0], slack=1.0, limit=3.0)
        (True, False)

    Source: Page 1954, Continuous inspection schemes. Deviation: bounded by 2 limits, so that a run can recover.
    """
    total = 0.0
    for change in changes:
        total = min(2 * limit, max(0.0, total + change - slack))
    return total > limit

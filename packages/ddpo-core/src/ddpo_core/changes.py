"""Changes in a series of numbers, one per epoch, found against the series' own noise."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import fmean

_STEADY = 3  # values whose mean is steady enough to be a level


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


def measured_falls(values: Sequence[float], errors: Sequence[float]) -> list[float]:
    """How far each value after the first is below the best long-run mean before it, in units of its own uncertainty.

    With the means `m_n` of the first n values and their standard errors `e_n`, the reference of value t is the highest
    `m_n` for n from 3 to t - 1 (before the fourth, the mean of all), and the fall

        (m_n - value_t) / sqrt(e_n^2 + error_t^2)

    No baseline has to pass before something can be told: the errors are known from the first value on.

    Example:
        >>> [round(fall, 3) for fall in measured_falls([1.0, 1.0, -1.0], [0.8, 0.8, 1.0])]
        [0.0, 1.741]

    That is `(1 - -1) / sqrt(2 * 0.8^2 / 2^2 + 1^2)`.
    """
    fallen: list[float] = []
    best = best_error = 0.0
    sums, squares = accumulate(values), accumulate(error**2 for error in errors)
    for count, (total, square, value, error) in enumerate(zip(sums, squares, values[1:], errors[1:], strict=False), 1):
        if count <= _STEADY or total / count > best:
            best, best_error = total / count, math.sqrt(square) / count
        uncertainty = math.hypot(best_error, error)
        fallen.append((best - value) / uncertainty if uncertainty else 0.0)
    return fallen


def accumulated(changes: Sequence[float], *, slack: float, limit: float) -> float:
    """Changes beyond the slack, added up: a one-sided CUSUM as it stands at the end.

        S_0 = 0,  S_t = min(2 limit, max(0, S_t-1 + change_t - slack))

    More than the limit is a change.

    Example:
        >>> accumulated([3.0, 3.0], slack=1.0, limit=3.0), accumulated([3.0, 3.0, 0.0, 0.0], slack=1.0, limit=3.0)
        (4.0, 2.0)

    Source: Page 1954, Continuous inspection schemes. Deviation: bounded by 2 limits, so that a run can recover.
    """
    total = 0.0
    for change in changes:
        total = min(2 * limit, max(0.0, total + change - slack))
    return total

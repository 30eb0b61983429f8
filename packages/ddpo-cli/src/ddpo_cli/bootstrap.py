"""How sure a difference between two models is, from the same prompts and seeds drawn with both."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
_AT_ONCE = 2_000_000  # drawn indices held in memory


class Interval(NamedTuple):
    """A mean with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two models on the same images: each one's mean score, and the mean of the differences."""

    base: Interval
    finetuned: Interval
    change: Interval
    improved: float
    """The share of images that score higher than before."""


def compare(base: Sequence[float], finetuned: Sequence[float], *, seed: int = 0) -> Comparison:
    """Return both means and their difference with 95 % intervals by the paired bootstrap.

    Images are drawn with replacement 10,000 times, and both scores of an image are drawn together, so that what makes
    a prompt easy or hard cancels out of the difference. The bounds are the 2.5th and 97.5th percentile of the means.

    >>> compare([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]).change
    Interval(mean=1.0, low=1.0, high=1.0)

    Source: Efron & Tibshirani 1993, chapter 13 (percentile intervals).
    """
    pairs = np.stack([np.asarray(base, np.float64), np.asarray(finetuned, np.float64)])
    values = np.concatenate([pairs, pairs[1:] - pairs[:1]])
    means = _resampled_means(values, np.random.default_rng(seed))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, (tail, 100 - tail), axis=1)
    base_interval, finetuned_interval, change = (
        Interval(*map(float, bounds)) for bounds in zip(values.mean(1), low, high, strict=True)
    )
    return Comparison(base_interval, finetuned_interval, change, improved=float((values[2] > 0).mean()))


def _resampled_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means `[rows, RESAMPLES]` of columns drawn with replacement, the same for every row."""
    count = values.shape[1]
    step = max(1, _AT_ONCE // count)
    sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    drawn = (generator.integers(count, size=(size, count)) for size in sizes)
    return np.concatenate([values[:, places].mean(2) for places in drawn], axis=1)

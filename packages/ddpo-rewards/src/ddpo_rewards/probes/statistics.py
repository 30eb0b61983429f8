"""Cluster bootstrap, multiplicity control and the few statistics that probes report; numpy only.

A *cluster* is a base picture with everything that was made of it: all its scores are drawn together, so that what
makes a picture score high or low cancels out of differences.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from ddpo_rewards.probes.core import Cell, Estimate, Scores, Verdict

CONFIDENCE = 0.95
DRAWS = 2000
SIGNIFICANT = 0.05
CONSTANT = "The score is the same for every picture, changed or not: there is nothing to raise."
FLAT = 1e-6  # spread, relative to the scores, below which they count as one number: float32 has 1.2e-7
Weights: TypeAlias = Float[np.ndarray, "draws images"]
Statistic: TypeAlias = Callable[[Weights], Float[np.ndarray, " draws"]]


def draw_weights(count: int, *, draws: int = DRAWS, seed: int = 0) -> Weights:
    """How often each of `count` clusters occurs in each bootstrap draw (with replacement); rows sum to `count`.

    Example:
        >>> draw_weights(3, draws=2, seed=0).sum(axis=1)
        array([3., 3.])
    """
    drawn = np.random.default_rng([seed, count]).integers(count, size=(draws, count))
    return np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)


def estimate(statistic: Statistic, weights: Weights) -> Estimate:
    """A statistic with its 95 % interval: the 2.5th and 97.5th percentile over the draws.

    Source: Efron & Tibshirani 1993, chapter 13 (percentile intervals), clusters drawn as a whole.

    Example:
        >>> estimate(mean_of(np.ones(4)), draw_weights(4))
        Estimate(value=1.0, low=1.0, high=1.0)
    """
    values = statistic(weights)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, (tail, 100 - tail))
    return Estimate(float(statistic(np.ones((1, weights.shape[1])))[0]), float(low), float(high))


def mean_of(values: Scores) -> Statistic:
    """The mean over clusters."""
    return lambda weights: weights @ values / weights.shape[1]


def auc(winners: Scores, losers: Scores) -> Statistic:
    """P[a winner scores above a loser] over all pairs, ties half: the area under the ROC curve.

    Example:
        >>> float(auc(np.array([1.0, 2.0]), np.array([0.0, 2.0]))(np.ones((1, 2)))[0])  # of 4 pairs 2 wins, 1 tie
        0.625
    """
    wins = beats(winners[:, None], losers[None, :])
    return lambda weights: ((weights @ wins) * weights).sum(axis=1) / weights.shape[1] ** 2


def beats(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """1 where ours is larger, 1/2 where equal, else 0."""
    return np.where(ours == theirs, 0.5, ours > theirs)


def spread(values: Scores) -> float:
    """Sample standard deviation (n - 1)."""
    return float(np.std(values, ddof=1))


def is_flat(values: np.ndarray) -> bool:
    """Whether scores are one number, but for rounding."""
    return float(np.ptp(values)) <= FLAT * max(1.0, float(np.abs(values).max()))


def two_sided_p(values: Scores, weights: Weights) -> float:
    """Bootstrap p-value of a mean of zero: twice the smaller share of draws on either side, at least 2 / (draws + 1).

    Example:
        >>> two_sided_p(np.zeros(5), draw_weights(5))
        1.0
    """
    means = mean_of(values)(weights)
    either = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (1 + either) / (1 + len(means)))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the false discovery rate: `q_(i) = min_{j >= i} n p_(j) / j`.

    Source: Benjamini & Hochberg 1995.

    Example:
        >>> benjamini_hochberg([0.01, 0.04, 0.03])
        [0.03, 0.04, 0.04]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return [float(value) for value in np.minimum(q, 1.0).round(12)]


def spearman(values: Float[np.ndarray, "images doses"]) -> Scores:
    """Rank correlation of each row with its column number, ties at their mean rank; 0 for a row of equal values.

    Example:
        >>> spearman(np.array([[1.0, 2.0, 9.0], [3.0, 2.0, 1.0], [5.0, 5.0, 5.0]]))
        array([ 1., -1.,  0.])
    """
    ranks = beats(values[:, :, None], values[:, None, :]).sum(axis=2)
    ranks -= ranks.mean(axis=1, keepdims=True)
    doses = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    length = np.linalg.norm(ranks, axis=1) * np.linalg.norm(doses)
    return _divided(ranks @ doses, length)


def isotonic(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls (least squares), by pooling neighbours that do.

    Source: Barlow et al. 1972, pool adjacent violators.

    Example:
        >>> isotonic([1.0, 3.0, 2.0, 4.0])
        [1.0, 2.5, 2.5, 4.0]
    """
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    return [mean for mean, size in blocks for _ in range(size)]


def share_explained(by: Scores, values: Scores) -> Statistic:
    """Share of the variance of `values` that a straight line through `by` explains: their squared correlation."""
    x, y = by - by.mean(), values - values.mean()

    def squared_correlation(weights: Weights) -> np.ndarray:
        count = weights.shape[1]
        covariance = weights @ (x * y) / count - (weights @ x) * (weights @ y) / count**2
        product = _variances(x, weights) * _variances(y, weights)
        return _divided(covariance**2, product)

    return squared_correlation


def _variances(centred: Scores, weights: Weights) -> np.ndarray:
    count = weights.shape[1]
    variances: np.ndarray = np.maximum(weights @ centred**2 / count - (weights @ centred / count) ** 2, 0.0)
    return variances


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient; 0 where there is nothing to divide by."""
    quotient: np.ndarray = np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
    return quotient


class Unit(NamedTuple):
    """What effects are measured in: the standard deviation (sd) of these very scores, which is not drawn anew."""

    sd: float
    meaning: str


class Comparison(NamedTuple):
    """Two arms, by picture: the scores of the one, and by how much they differ from the other's."""

    cell: str
    arm: str
    compared_with: str
    scores: Scores
    difference: Scores


def choose_unit(clean: Scores, others: Sequence[Scores]) -> Unit | None:
    """The spread of the clean scores; where they do not vary, that of all scores; None where nothing varies.

    A reward that reads gives every picture without text the same score, and is not constant for that.
    """
    if not is_flat(clean):
        return Unit(spread(clean), "standard deviations of the unchanged pictures' scores")
    everything = np.concatenate([clean, *others])
    if is_flat(everything):
        return None
    meaning = "standard deviations of all scores, since the unchanged pictures all score the same"
    return Unit(spread(everything), meaning)


def compare(comparisons: Sequence[Comparison], unit: Unit, weights: Weights) -> tuple[Cell, ...]:
    """One cell per comparison, with p-values adjusted across all of them."""
    p_values = [two_sided_p(one.difference, weights) for one in comparisons]
    return tuple(
        Cell(
            cell=one.cell,
            arm=one.arm,
            compared_with=one.compared_with,
            mean=float(one.scores.mean()),
            change=estimate(mean_of(one.difference), weights),
            change_sd=estimate(mean_of(one.difference / unit.sd), weights),
            p=p,
            q=q,
        )
        for one, p, q in zip(comparisons, p_values, benjamini_hochberg(p_values), strict=True)
    )


def judge(effect: Estimate, limit: float) -> Verdict:
    """Susceptible above the limit, robust below it, and inconclusive where the interval reaches over it.

    Example:
        >>> [judge(Estimate(0.3, *bounds), 0.25).value for bounds in ((0.26, 0.4), (0.2, 0.4), (-0.9, 0.25))]
        ['susceptible', 'inconclusive', 'robust']
    """
    if effect.low > limit:
        return Verdict.susceptible
    return Verdict.inconclusive if effect.high > limit else Verdict.robust


def judge_cell(cell: Cell, limit: float) -> Verdict:
    """As `judge`, for one of many: susceptible only where the change is significant after adjustment."""
    verdict = judge(cell.change_sd, limit)
    if verdict is Verdict.susceptible and cell.q >= SIGNIFICANT:
        return Verdict.inconclusive
    return verdict

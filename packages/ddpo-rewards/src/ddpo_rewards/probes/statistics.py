"""How sure a finding is: intervals of effects, tests against a limit, and verdicts; numpy only.

A *cluster* is all pictures of one prompt with everything that was made of them, or one picture where each has a prompt
of its own: what they share does not average out, so only clusters count as independent. Every statistic is computed
again without each cluster in turn, which gives one pseudo-value per cluster; their mean, in standard errors, is drawn
anew by the bootstrap, which knows how skewed it is.

Source: Tukey 1958 (pseudo-values); Efron & Tibshirani 1993, chapter 12.5 (bootstrap-t); Westfall & Young 1993 (max-T);
Hansen 2005, A test for superior predictive ability, and Andrews & Soares 2010 (what is far below, and how far).
`benchmarks/probe_calibration.py` measures what is claimed here: coverage, false alarms at the limit, power.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from ddpo_rewards.probes.core import Cell, Estimate, Scores, Verdict

ALPHA = 0.025  # beyond either end of an interval; false alarms of a suite at the limit: two suites have 5 %
DRAWS = 2000
CONSTANT = "The score is the same for every picture, changed or not: there is nothing to raise."
FLAT = 1e-6  # spread, relative to the scores, below which they count as one number: float32 has 1.2e-7
_NORMAL = 1.959964  # the quantile 1 - ALPHA of the normal distribution
_LEAST_ERROR = 0.2  # of a draw, relative to that of the sample: with few clusters some draws have nearly none
_MOST_CLUSTERS = 256  # more are joined: finer ones change no interval
Weights: TypeAlias = Float[np.ndarray, "rows images"]
Statistic: TypeAlias = Callable[[Weights], Float[np.ndarray, " rows"]]


class Resampling(NamedTuple):
    """Which cluster each picture belongs to, and each cluster's share of every bootstrap draw (rows sum to 1)."""

    clusters: Int[np.ndarray, " images"]
    draws: Float[np.ndarray, "draws clusters"]


class Effect(NamedTuple):
    """A statistic and its pseudo-values: one per cluster, `G t - (G - 1) t_without_it` of G clusters."""

    value: float
    parts: Float[np.ndarray, " clusters"]


class Unit(NamedTuple):
    """What effects are measured in: the standard deviation (sd) of these scores."""

    sd: float
    meaning: str
    scores: Float[np.ndarray, "images arms"]


class Comparison(NamedTuple):
    """Two arms, by picture: the scores of the one, how much they differ from the other's, and by how much they may.

    `limit` is in sd; None where the comparison is shown and not judged.
    """

    cell: str
    arm: str
    compared_with: str
    scores: Scores
    difference: Scores
    limit: float | None = None


class Evidence(NamedTuple):
    """An effect against its limit: `p` of "no more than the limit", and `q`, adjusted for all tests of the suite."""

    effect: Estimate
    limit: float
    p: float
    q: float


def resample(prompts: Sequence[str] | None, count: int, *, draws: int = DRAWS, seed: int = 0) -> Resampling:
    """Cluster `count` pictures by prompt, and draw clusters with replacement.

    A picture without a prompt is a cluster of its own. So is every picture where there is one prompt only: the
    findings are about that prompt then.

    Example:
        >>> resample(["a cat", "a dog", "a cat", ""], 4).clusters
        array([0, 1, 0, 2])
    """
    owners: list[str | int] = [prompt if prompt.strip() else row for row, prompt in enumerate(prompts or [""] * count)]
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    clusters = np.array([numbers[owner] for owner in owners]) if len(numbers) > 1 else np.arange(count)
    clusters %= _MOST_CLUSTERS
    total = int(clusters.max()) + 1
    drawn = np.random.default_rng([seed, total]).integers(total, size=(draws, total))
    return Resampling(clusters, np.stack([np.bincount(row, minlength=total) for row in drawn]) / total)


def estimate(statistic: Statistic, resampling: Resampling, within: tuple[float, float] | None = None) -> Estimate:
    """A statistic with its 95 % interval, cut off at the values that it can have.

    The interval is `t - e c`, e the standard error of the pseudo-values and c the quantiles of their studentised mean
    over the draws, but never narrower than Student's on either side.

    Example:
        >>> estimate(mean_of(np.array([1.0, 2.0, 3.0, 2.0])), resample(None, 4))[0]
        2.0
    """
    found = _test([(jackknife(statistic, resampling.clusters), None)], resampling)[0].effect
    return found if within is None else Estimate(*(float(bound) for bound in np.clip(found, *within)))


def compare(
    comparisons: Sequence[Comparison],
    unit: Unit,
    resampling: Resampling,
    others: Mapping[str, tuple[Statistic, float]] | None = None,
) -> tuple[tuple[Cell, ...], dict[str, Evidence]]:
    """One cell per comparison, and each of the `others` (a statistic and its limit), all tested as one family.

    p and q test "no more than the limit" one-sidedly; q is the chance that any test of the family would look like this
    if every effect were exactly at its limit (max-T), but for those that are clearly below. An effect in sd is as
    uncertain as the sd, too: that counts as far as the limit reaches, `min(effect, limit)` standard deviations.
    """
    spread = jackknife(_sd_of(unit.scores), resampling.clusters)
    changes = [jackknife(mean_of(one.difference), resampling.clusters) for one in comparisons]
    limits = [one.limit for one in comparisons]
    in_sd = [_in_sd(change, unit, spread, limit or 0.0) for change, limit in zip(changes, limits, strict=True)]
    rest = [(jackknife(statistic, resampling.clusters), limit) for statistic, limit in (others or {}).values()]
    shown = [(change, None) for change in changes]
    found = iter(_test([*zip(in_sd, limits, strict=True), *rest, *shown], resampling))
    tested = [next(found) for _ in comparisons]
    tested_others = {name: next(found) for name in others or {}}
    cells = tuple(
        Cell(
            cell=one.cell,
            arm=one.arm,
            compared_with=one.compared_with,
            mean=float(one.scores.mean()),
            change=change.effect,
            change_sd=own.effect,
            limit=one.limit,
            p=None if one.limit is None else own.p,
            q=None if one.limit is None else own.q,
        )
        for one, own, change in zip(comparisons, tested, found, strict=True)
    )
    return cells, tested_others


def judge(effect: Estimate, limit: float, q: float) -> Verdict:
    """Susceptible where the effect is surely above the limit, robust where its interval ends below, else inconclusive.

    Surely: `q` is at most `ALPHA`, and the interval lies above the limit. Being robust needs no adjustment: a suite is
    robust only where every one of its tests is.

    Example:
        >>> high, low = Estimate(0.3, 0.26, 0.4), Estimate(0.1, -0.9, 0.25)
        >>> [judge(effect, 0.25, q).value for effect, q in ((high, 0.01), (high, 0.2), (low, 1.0))]
        ['susceptible', 'inconclusive', 'robust']
    """
    if q <= ALPHA and effect.low > limit:
        return Verdict.susceptible
    return Verdict.robust if effect.high <= limit else Verdict.inconclusive


def judge_cell(cell: Cell) -> Verdict:
    """As `judge`; a comparison without a limit is not applicable."""
    if cell.limit is None or cell.q is None:
        return Verdict.not_applicable
    return judge(cell.change_sd, cell.limit, cell.q)


def choose_unit(clean: Scores, others: Sequence[Scores]) -> Unit | None:
    """The spread of the clean scores; where they do not vary, that of all scores; None where nothing varies.

    A reward that reads gives every picture without text the same score, and is not constant for that.
    """
    if not is_flat(clean):
        meaning = "standard deviations of the unchanged pictures' scores"
        return Unit(float(np.std(clean, ddof=1)), meaning, clean[:, None])
    everything = np.stack([clean, *others], axis=1)
    if is_flat(everything):
        return None
    meaning = "standard deviations of all scores, since the unchanged pictures all score the same"
    return Unit(float(np.std(everything, ddof=1)), meaning, everything)


def jackknife(statistic: Statistic, clusters: Int[np.ndarray, " images"]) -> Effect:
    """A statistic and its pseudo-values, by leaving out each cluster in turn.

    Example:
        >>> jackknife(mean_of(np.array([1.0, 3.0, 5.0])), np.array([0, 1, 1])).parts  # 2 * 3 - 4, 2 * 3 - 1
        array([2., 5.])
    """
    total = int(clusters.max()) + 1
    value = float(statistic(np.ones((1, len(clusters))))[0])
    without = statistic((np.arange(total)[:, None] != clusters).astype(np.float64))
    return Effect(value, total * value - (total - 1) * without)


def mean_of(values: Scores) -> Statistic:
    """The mean over pictures."""
    return lambda weights: weights @ values / weights.sum(axis=1)


def auc(winners: Scores, losers: Scores) -> Statistic:
    """P[a winner scores above a loser] over all pairs of two pictures, ties half: the area under the ROC curve.

    Example:
        >>> float(auc(np.array([1.0, 2.0]), np.array([0.0, 2.0]))(np.ones((1, 2)))[0])  # 1 loses to 2, 2 beats 0
        0.5
    """
    wins = beats(winners[:, None], losers[None, :])
    np.fill_diagonal(wins, 0.0)  # a picture is no pair with itself

    def area(weights: Weights) -> np.ndarray:
        pairs = weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1)
        return _divided(((weights @ wins) * weights).sum(axis=1), pairs)

    return area


def beats(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """1 where ours is larger, 1/2 where equal, else 0."""
    return np.where(ours == theirs, 0.5, ours > theirs)


def is_flat(values: np.ndarray, scale: np.ndarray | None = None) -> bool:
    """Whether scores are one number, but for the rounding of numbers of their size, or of that of `scale`."""
    return float(np.ptp(values)) <= FLAT * float(np.abs(values if scale is None else scale).max())


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
        count = weights.sum(axis=1)
        covariance = weights @ (x * y) / count - (weights @ x) * (weights @ y) / count**2
        product = _variances(x[:, None], weights) * _variances(y[:, None], weights)
        return _divided(covariance**2, product)

    return squared_correlation


def _in_sd(change: Effect, unit: Unit, spread: Effect, limit: float) -> Effect:
    value = change.value / unit.sd
    reach = min(max(value, -limit), limit)
    return Effect(value, (change.parts - reach * spread.parts) / unit.sd)


def _test(effects: Sequence[tuple[Effect, float | None]], resampling: Resampling) -> list[Evidence]:
    """Every effect against its limit; those without one are estimated only, with p and q of 1."""
    limits = np.array([np.inf if limit is None else limit for _, limit in effects])
    values = np.array([effect.value for effect, _ in effects])
    parts = np.stack([effect.parts for effect, _ in effects], axis=1)
    errors, students = _studentise(parts, resampling.draws)
    excess = np.where(values > limits, np.inf, -np.inf)  # of an effect that is the same for every cluster
    judged = np.isfinite(limits)
    np.divide(values - limits, errors, out=excess, where=(errors > 0) & judged)
    # What is far below its limit cannot cause a false alarm, so it is left as far below: most arms of most rewards are.
    far = excess < -np.sqrt(np.log(len(parts)))
    most = (students + np.where(far, excess, 0.0))[:, judged].max(axis=1, initial=-np.inf)
    total = len(students) + 1
    student = _student_quantile(len(parts) - 1)
    below, above = np.quantile(students, (ALPHA, 1 - ALPHA), axis=0)
    lows = values - errors * np.maximum(above, student)
    highs = values - errors * np.minimum(below, -student)
    return [
        Evidence(
            Estimate(float(values[i]), float(lows[i]), float(highs[i])),
            float(limits[i]),
            p=float((1 + (students[:, i] >= excess[i]).sum()) / total),
            q=float((1 + (most >= excess[i]).sum()) / total),
        )
        for i in range(len(effects))
    ]


def _studentise(
    parts: Float[np.ndarray, "clusters effects"], draws: Float[np.ndarray, "draws clusters"]
) -> tuple[Float[np.ndarray, " effects"], Float[np.ndarray, "draws effects"]]:
    """Standard errors of the means of pseudo-values, and each draw's mean, less the sample's, in its own errors."""
    centred = parts - parts.mean(axis=0)
    variances = (centred**2).mean(axis=0)
    means = draws @ centred
    drawn = np.maximum(draws @ centred**2 - means**2, _LEAST_ERROR**2 * variances)
    scale = np.sqrt(len(parts) - 1)
    students = np.divide(means * scale, np.sqrt(drawn), out=np.zeros_like(means), where=drawn > 0)
    return np.sqrt(variances) / scale, students


def _student_quantile(freedom: int) -> float:
    """The quantile `1 - ALPHA` of Student's distribution; within 0.3 % from 4 degrees of freedom on, too small below.

    Source: Abramowitz & Stegun 26.7.5.
    """
    z, n = _NORMAL, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


def _sd_of(table: Float[np.ndarray, "images arms"]) -> Statistic:
    """Sample standard deviation (n - 1) of all scores of the pictures."""
    centred = table - table.mean()

    def spread(weights: Weights) -> np.ndarray:
        count = weights.sum(axis=1) * table.shape[1]
        deviation: np.ndarray = np.sqrt(_variances(centred, weights) * count / np.maximum(count - 1, 1))
        return deviation

    return spread


def _variances(centred: Float[np.ndarray, "images arms"], weights: Weights) -> np.ndarray:
    count = weights.sum(axis=1) * centred.shape[1]
    means = weights @ centred.sum(axis=1) / count
    variances: np.ndarray = np.maximum(weights @ (centred**2).sum(axis=1) / count - means**2, 0.0)
    return variances


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient; 0 where there is nothing to divide by."""
    quotient: np.ndarray = np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
    return quotient

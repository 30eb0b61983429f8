"""Whether a reward is being gamed: a rule that joins the signals of a run into one verdict, in words.

Everything here is a pure function of the history, plain numbers that are saved and read as JSON. Changes are found in a
series of numbers, one per epoch, against the series' own noise.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Literal, NamedTuple, TypeAlias

from ddpo_core.errors import DDPOError

_STEADY = 3  # values whose mean is steady enough to be a level

Status: TypeAlias = Literal["ok", "warning", "hacked"]


@dataclass(frozen=True)
class Observation:
    """What one epoch showed: the mean of the optimised reward, of held-out rewards, and the monitors' signals.

    `dataclasses.asdict` makes JSON of it and `Observation(**row)` takes it back, to the bit.
    """

    epoch: int
    reward: float
    held_out: Mapping[str, float]
    signals: Mapping[str, float | None]
    """None: there was nothing to measure, for instance no two images of one prompt."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Standard errors of what is a mean over samples of that epoch; the noise of the rest is that of their series."""


class Verdict(NamedTuple):
    """A status and its reason, one sentence for a person."""

    status: Status
    reason: str


Rule: TypeAlias = Callable[[Sequence[Observation]], Verdict]
"""From everything seen so far to a verdict on the latest epoch."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When `assess` speaks up; in standard deviations of the noise, unless said otherwise.

    Of 1,000 simulated healthy runs (100 epochs, judged in every 25th, 2 held-out rewards, 8 signals, independent
    noise) at most 5 are called hacked and at most 5 get a warning (`tests/test_rule.py`). The noise of real runs
    has a memory, so this is no promise for them.
    """

    baseline_epochs: int = 10
    """How many first epochs (of a held-out reward: measurements) are the baseline; what has no standard error is not
    judged before."""
    window: int = 5
    """Epochs that are averaged into a level."""
    fall_slack: float = 2.0
    """A held-out reward may lie this far below its best level for ever."""
    fall_limit: float = 10.0
    """Falls beyond the slack, summed over the epochs, that count as a fall."""
    measured_slack: float = 1.5
    """A measure with known standard errors may lie this far below its best long-run mean for ever."""
    measured_limit: float = 3.0
    """Falls of such a measure beyond the slack, summed over the epochs, that count as a fall."""
    corroborating: tuple[str, ...] = ("familiarity",)
    """Measures whose fall alone is a warning, and makes the others easier to believe."""
    corroborated_share: float = 1 / 6
    """The share of a limit that is enough for the others then."""
    reward_gain: float = 0.0
    """How far above its baseline the optimised reward is when a fall is its doing."""
    drift_slack: float = 3.0
    """A signal may lie this far from its baseline for ever."""
    drift_limit: float = 10.0
    """Drifts beyond the slack, summed over the epochs, that count as a drift."""
    expected: tuple[str, ...] = ("kl",)
    """Signals that every training moves: they are recorded and not judged."""

    def __post_init__(self) -> None:
        """Check that there is noise to estimate and a limit to reach."""
        if not 2 <= self.window <= self.baseline_epochs:
            raise DDPOError(
                f"window={self.window!r} and baseline_epochs={self.baseline_epochs!r}: "
                "want 2 <= window <= baseline_epochs"
            )
        if min(self.fall_limit, self.drift_limit) <= 0:
            raise DDPOError(f"fall_limit={self.fall_limit!r} and drift_limit={self.drift_limit!r}: want both above 0")


DEFAULTS = Thresholds()


def assess(history: Sequence[Observation], thresholds: Thresholds = DEFAULTS) -> Verdict:
    """Judge the latest epoch of a run.

    - `hacked`: a held-out reward has fallen from its best level while the optimised reward is above its baseline.
    - `warning`: one has fallen and the optimised reward has not risen; or a signal has drifted from its baseline.
    - `ok`: neither. Without held-out rewards nothing tells improvement from gaming, so it is never `hacked`.

    What the initial policy sees (`initial_view_monitor`) is a held-out reward that every policy brings: its evidence
    for the prompts judges, and where the samples have become unfamiliar as well, a small fall of it is enough.

    All changes are found by one-sided CUSUMs (`accumulated`): of how far a held-out reward is below its best level
    (`measured_falls` where its standard errors are known, else `falls`), and of how far a signal is above or below its
    baseline (`deviations`), in units of their noise.

    Example:
        >>> noise = [0.1, -0.1] * 20
        >>> rising = [Observation(i + 1, i + x, {"judge": 0.8 + x / 10}, {}) for i, x in enumerate(noise)]
        >>> assess(rising).status
        'ok'
        >>> falling = [Observation(i + 1, i + x, {"judge": 1 - i / 40 + x / 10}, {}) for i, x in enumerate(noise)]
        >>> assess(falling).status
        'hacked'
    """
    strengths = _strengths(history, thresholds)
    unfamiliar = [name for name in thresholds.corroborating if strengths.pop(name, 0.0) > 1]
    needed = thresholds.corroborated_share if unfamiliar else 1.0
    fallen = [name for name, strength in strengths.items() if strength > needed]
    gain = _gain([observation.reward for observation in history], thresholds)
    if fallen:
        described = "; ".join(_describe_fall(name, history) for name in fallen)
        if gain > thresholds.reward_gain:
            return Verdict("hacked", f"{described}, while the reward rose by {gain:.1f} standard deviations")
        return Verdict("warning", f"{described}, and the reward has not risen either")
    drifts = drift(history, thresholds)
    changed = [_describe_fall(name, history) for name in unfamiliar]
    changed += [f"{name} by {drifts[name]:+.1f} standard deviations" for name in _drifted(history, thresholds)]
    if changed:
        return Verdict("warning", f"the samples have changed: {', '.join(changed)}")
    if len(history) <= thresholds.baseline_epochs:
        return Verdict("ok", f"too early to tell: {len(history)} of {thresholds.baseline_epochs + 1} epochs")
    return Verdict("ok", "nothing has left its noise")


def drift(history: Sequence[Observation], thresholds: Thresholds = DEFAULTS) -> dict[str, float]:
    """How far each signal is from its first epochs: `(latest - mean of the baseline) / noise`, in standard deviations.

    Signals that were measured in no more than `baseline_epochs` epochs are left out.

    Example:
        >>> values = [1.0, 2.0] * 5 + [4.5]
        >>> history = [Observation(i + 1, 0.0, {}, {"saturation": value}) for i, value in enumerate(values)]
        >>> round(drift(history)["saturation"], 3)  # (4.5 - 1.5) / sqrt((9 * 1^2 + 2.5^2) / 20)
        3.436
    """
    latest = {}
    for name in _names(observation.signals for observation in history):
        drifts = deviations(_measured(history, "signals", name), baseline=thresholds.baseline_epochs)
        if drifts:
            latest[name] = drifts[-1]
    return latest


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


def _strengths(history: Sequence[Observation], thresholds: Thresholds) -> dict[str, float]:
    """How strong the fall of each held-out reward is, as a multiple of what counts as one."""
    names = _names(observation.held_out for observation in history)
    return {name: _strength(name, history, thresholds) for name in names}


def _strength(name: str, history: Sequence[Observation], thresholds: Thresholds) -> float:
    values = _measured(history, "held_out", name)
    errors = _measured(history, "errors", name)
    if len(errors) == len(values):
        slack, limit = thresholds.measured_slack, thresholds.measured_limit
        return accumulated(measured_falls(values, errors), slack=slack, limit=limit) / limit
    if len(values) <= thresholds.baseline_epochs:
        return 0.0
    slack, limit = thresholds.fall_slack, thresholds.fall_limit
    return accumulated(falls(values, window=thresholds.window), slack=slack, limit=limit) / limit


def _drifted(history: Sequence[Observation], thresholds: Thresholds) -> list[str]:
    names = _names(observation.signals for observation in history)
    judged = [name for name in names if name not in thresholds.expected]
    return [name for name in judged if _has_drifted(_measured(history, "signals", name), thresholds)]


def _has_drifted(values: Sequence[float], thresholds: Thresholds) -> bool:
    above = deviations(values, baseline=thresholds.baseline_epochs)
    sides = (above, [-deviation for deviation in above])
    slack, limit = thresholds.drift_slack, thresholds.drift_limit
    return any(accumulated(side, slack=slack, limit=limit) > limit for side in sides)


def _gain(rewards: Sequence[float], thresholds: Thresholds) -> float:
    """Rise of the reward from the first to the latest epochs, at most half of them each, in units of its noise."""
    if len(rewards) < 2:
        return 0.0
    first, latest = min(thresholds.baseline_epochs, len(rewards) // 2), min(thresholds.window, -(-len(rewards) // 2))
    scale = noise(rewards)
    return (fmean(rewards[-latest:]) - fmean(rewards[:first])) / scale if scale else 0.0


def _describe_fall(name: str, history: Sequence[Observation]) -> str:
    measured = [(o.held_out[name], o.epoch) for o in history if name in o.held_out]
    best, epoch = max(measured)
    return f"held-out {name} fell from {best:.4g} (epoch {epoch}) to {measured[-1][0]:.4g}"


def _names(mappings: Iterable[Mapping[str, float | None]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _measured(
    history: Sequence[Observation], field: Literal["held_out", "signals", "errors"], name: str
) -> list[float]:
    values = (getattr(observation, field).get(name) for observation in history)
    return [value for value in values if value is not None]

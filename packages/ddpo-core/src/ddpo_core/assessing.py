"""Whether a reward is being gamed: a rule that joins the signals of a run into one verdict, in words.

Everything here is a pure function of the history, plain numbers that are saved and read as JSON.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple, TypeAlias

from ddpo_core.changes import deviations, falls, has_changed, noise
from ddpo_core.errors import DDPOError

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


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When `assess` speaks up; in standard deviations of the noise between epochs, unless said otherwise.

    Of 1,000 simulated healthy runs (100 epochs, judged in every 25th, 2 held-out rewards, 8 signals, independent
    noise) at most 5 are called hacked and at most 5 get a warning (`tests/test_assessing.py`). The noise of real runs
    has a memory, so this is no promise for them.
    """

    baseline_epochs: int = 10
    """How many first epochs (of a held-out reward: measurements) are the baseline; nothing is judged before."""
    window: int = 5
    """Epochs that are averaged into a level."""
    fall_slack: float = 2.0
    """A held-out reward may lie this far below its best level for ever."""
    fall_limit: float = 10.0
    """Falls beyond the slack, summed over the epochs, that count as a fall."""
    reward_gain: float = 2.0
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


class Verdict(NamedTuple):
    """A status and its reason, one sentence for a person."""

    status: Status
    reason: str


Rule: TypeAlias = Callable[[Sequence[Observation]], Verdict]
"""From everything seen so far to a verdict on the latest epoch."""

DEFAULTS = Thresholds()


def assess(history: Sequence[Observation], thresholds: Thresholds = DEFAULTS) -> Verdict:
    """Judge the latest epoch of a run.

    - `hacked`: a held-out reward has fallen from its best level while the optimised reward is above its baseline.
    - `warning`: one has fallen and the optimised reward has not risen; or a signal has drifted from its baseline.
    - `ok`: neither. Without held-out rewards nothing tells improvement from gaming, so it is never `hacked`.

    Both changes are found by one-sided CUSUMs (`has_changed`): of how far a held-out reward is below its best level
    (`falls`), and of how far a signal is above or below its baseline (`deviations`), in units of their noise.

    Example:
        >>> noise = [0.1, -0.1] * 20
        >>> rising = [Observation(i + 1, i + x, {"judge": 0.8 + x / 10}, {}) for i, x in enumerate(noise)]
        >>> assess(rising).status
        'ok'
        >>> falling = [Observation(i + 1, i + x, {"judge": 1 - i / 40 + x / 10}, {}) for i, x in enumerate(noise)]
        >>> assess(falling).status
        'hacked'
    """
    epochs, needed = len(history), thresholds.baseline_epochs + 1
    if epochs < needed:
        return Verdict("ok", f"too early to tell: {epochs} of {needed} epochs")
    fallen = "; ".join(_describe_fall(name, history) for name in _fallen(history, thresholds))
    gain = _gain([observation.reward for observation in history], thresholds)
    if fallen and gain >= thresholds.reward_gain:
        return Verdict("hacked", f"{fallen}, while the reward rose by {gain:.1f} standard deviations")
    if fallen:
        return Verdict("warning", f"{fallen}, and the reward has not risen either")
    drifts = drift(history, thresholds)
    drifted = [f"{name} by {drifts[name]:+.1f}" for name in _drifted(history, thresholds)]
    if drifted:
        return Verdict("warning", f"the samples have changed: {', '.join(drifted)} standard deviations")
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


def _fallen(history: Sequence[Observation], thresholds: Thresholds) -> list[str]:
    names = _names(observation.held_out for observation in history)
    return [name for name in names if _has_fallen(_measured(history, "held_out", name), thresholds)]


def _has_fallen(values: Sequence[float], thresholds: Thresholds) -> bool:
    below = falls(values, window=thresholds.window) if len(values) > thresholds.baseline_epochs else []
    return has_changed(below, slack=thresholds.fall_slack, limit=thresholds.fall_limit)


def _drifted(history: Sequence[Observation], thresholds: Thresholds) -> list[str]:
    names = _names(observation.signals for observation in history)
    judged = [name for name in names if name not in thresholds.expected]
    return [name for name in judged if _has_drifted(_measured(history, "signals", name), thresholds)]


def _has_drifted(values: Sequence[float], thresholds: Thresholds) -> bool:
    above = deviations(values, baseline=thresholds.baseline_epochs)
    sides = (above, [-deviation for deviation in above])
    return any(has_changed(side, slack=thresholds.drift_slack, limit=thresholds.drift_limit) for side in sides)


def _gain(rewards: Sequence[float], thresholds: Thresholds) -> float:
    scale = noise(rewards)
    rise = fmean(rewards[-thresholds.window :]) - fmean(rewards[: thresholds.baseline_epochs])
    return rise / scale if scale else 0.0


def _describe_fall(name: str, history: Sequence[Observation]) -> str:
    measured = [(o.held_out[name], o.epoch) for o in history if name in o.held_out]
    best, epoch = max(measured)
    return f"held-out {name} fell from {best:.4g} (epoch {epoch}) to {measured[-1][0]:.4g}"


def _names(mappings: Iterable[Mapping[str, float | None]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _measured(history: Sequence[Observation], field: Literal["held_out", "signals"], name: str) -> list[float]:
    values = (getattr(observation, field).get(name) for observation in history)
    return [value for value in values if value is not None]

"""Whether a reward is being gamed: a rule that joins the signals of a run into one verdict, in words.

Everything here is a pure function of the history, plain numbers that are saved and read as JSON.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal, NamedTuple, TypeAlias

from ddpo_core.changes import accumulated, deviations, falls, measured_falls, noise
from ddpo_core.thresholds import Thresholds

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

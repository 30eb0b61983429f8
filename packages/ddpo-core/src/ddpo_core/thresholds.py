"""When the rule of `ddpo_core.assessing` speaks up."""

from dataclasses import dataclass

from ddpo_core.errors import DDPOError


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When `assess` speaks up; in standard deviations of the noise, unless said otherwise.

    Of 1,000 simulated healthy runs (100 epochs, judged in every 25th, 2 held-out rewards, 8 signals, independent
    noise) at most 5 are called hacked and at most 5 get a warning (`tests/test_assessing.py`). The noise of real runs
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

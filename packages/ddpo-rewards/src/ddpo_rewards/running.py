"""Running mean and standard deviation of scores."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class RunningStatistics:
    """Count, mean and sum of squared deviations of the scores seen so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before anything was seen."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def update_statistics(statistics: RunningStatistics, scores: Float[np.ndarray, " batch"]) -> RunningStatistics:
    """Add a batch to running statistics (Chan, Golub and LeVeque 1979, the batched form of Welford's method).

    Example:
        >>> update_statistics(RunningStatistics(), np.array([1.0, 3.0]))
        RunningStatistics(count=2, mean=2.0, squares=2.0)
    """
    values = scores.astype(np.float64)
    batch_mean = float(values.mean())
    total = statistics.count + len(values)
    delta = batch_mean - statistics.mean
    squares = float(((values - batch_mean) ** 2).sum()) + delta**2 * statistics.count * len(values) / total
    return RunningStatistics(total, statistics.mean + delta * len(values) / total, statistics.squares + squares)

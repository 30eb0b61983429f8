"""How far rewards agree on the images of a folder, and on which images they do not."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpo_rewards.errors import RewardError
from ddpo_rewards.folders.formats import Row
from ddpo_rewards.probes.core import Estimate
from ddpo_rewards.probes.statistics import Statistic, Weights, estimate, resample

_FEWEST = 5  # clusters of images that an interval can be made of


class Agreement(NamedTuple):
    """How two rewards rank the same images: Spearman's correlation, 1 where alike, with its 95 % interval."""

    first: str
    second: str
    correlation: Estimate
    images: int


def agreements(rows: Sequence[Row], columns: Sequence[str], *, seed: int = 0) -> list[Agreement]:
    """Compare every two of the rewards whose scores the rows have under `columns`.

    Images of one prompt count as one in the interval (see `probes.statistics`). Rows without a score are left out.

    Args:
        rows: as `score` gives them.
        columns: of two rewards or more.
        seed: decides the bootstrap's draws.

    Raises:
        RewardError: fewer than two rewards, too few images, or a reward that scores all alike.

    Example:
        >>> rows = [{"prompt": None, "a": x, "b": x**3, "c": -x} for x in range(-3, 4)]
        >>> [round(one.correlation.value, 6) for one in agreements(rows, ["a", "b", "c"])]
        [1.0, -1.0, -1.0]
    """
    if len(columns) < 2:
        raise RewardError(f"to compare rewards takes two; got {', '.join(columns) or 'none'}")
    scored = _scored(rows, columns)
    resampling = resample([row.get("prompt") or "" for row in scored], len(scored), seed=seed) if scored else None
    clusters = 0 if resampling is None else int(resampling.clusters.max()) + 1
    if resampling is None or clusters < _FEWEST:
        raise RewardError(f"{clusters} independent images were scored; an interval takes {_FEWEST}: give more images")
    tables = {column: np.array([row[column] for row in scored], np.float64) for column in columns}
    for column, scores in tables.items():
        if np.ptp(scores) == 0:
            raise RewardError(f"{column} scores every image {scores[0]:g}: there is no order to compare")
    return [
        Agreement(
            first,
            second,
            estimate(_rank_correlation(tables[first], tables[second]), resampling, within=(-1.0, 1.0)),
            len(scored),
        )
        for first, second in combinations(columns, 2)
    ]


def disagreements(rows: Sequence[Row], first: str, second: str, *, size: int = 6) -> tuple[list[Row], list[Row]]:
    """The images that `first` ranks most above `second`, and those that `second` does, the greatest difference first.

    Example:
        >>> rows = [{"image": name, "a": a, "b": b} for name, a, b in [("x", 1, 2), ("y", 2, 1), ("z", 3, 3)]]
        >>> [[row["image"] for row in end] for end in disagreements(rows, "a", "b")]
        [['y'], ['x']]
    """
    scored = _scored(rows, (first, second))
    gaps = np.subtract(*(ranks(np.array([row[column] for row in scored], np.float64)) for column in (first, second)))
    order = np.argsort(-gaps, kind="stable")
    above = [scored[place] for place in order[:size] if gaps[place] > 0]
    below = [scored[place] for place in order[::-1][:size] if gaps[place] < 0]
    return above, below


def ranks(values: Float[np.ndarray, " images"]) -> Float[np.ndarray, " images"]:
    """1 for the lowest, ties at their mean rank.

    Example:
        >>> ranks(np.array([5.0, 1.0, 5.0]))
        array([2.5, 1. , 2.5])
    """
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[places], np.float64)


def _scored(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    return [row for row in rows if all(row.get(column) is not None for column in columns)]


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> Statistic:
    """Spearman's, over those images whose weight is not 0, which are ranked anew."""

    def correlation(weights: Weights) -> np.ndarray:
        return np.array([_spearman(first[kept], second[kept]) for kept in weights > 0])

    return correlation


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    centred = [own - own.mean() for own in (ranks(first), ranks(second))]
    length = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1]) / length if length else 0.0

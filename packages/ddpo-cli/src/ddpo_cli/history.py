"""Which epoch of a run is the best."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from ddpo_core.checkpoint import list_checkpoints
from ddpo_core.gaming.monitors import EVIDENCE, FAMILIARITY
from ddpo_core.gaming.rule import noise
from ddpo_core.runs.log import read_metrics


def best_epoch(run: Path) -> int | None:
    """Return the best epoch by what is not optimised, of those that have a checkpoint; None where none has.

    That is the sum of the held-out rewards, or without any the evidence for the prompt. Of epochs that one standard
    deviation of the noise cannot tell from the best, it is the last: the most trained.

    Source: Breiman et al. 1984, section 3.4.3 (the one-standard-error rule).
    """
    totals, tolerance = _totals(run)
    saved = set(list_checkpoints(run))
    return _last_good({epoch: total for epoch, total in totals.items() if epoch in saved}, tolerance)


def is_improving(run: Path) -> bool:
    """Whether the latest epoch that was judged is the best so far: then its checkpoint is worth keeping."""
    totals, tolerance = _totals(run)
    return bool(totals) and _last_good(totals, tolerance) == max(totals)


def _totals(run: Path) -> tuple[dict[int, float], float]:
    """What speaks for the model after each epoch, and its noise."""
    rows = [row for row in read_metrics(run) if row.get("held_out")]
    # Sums of other rewards than the latest cannot be compared with it.
    alike = [row for row in rows if row["held_out"].keys() == rows[-1]["held_out"].keys()]
    if not alike:
        return {}, 0.0
    if alike[0]["held_out"].keys() <= {EVIDENCE, FAMILIARITY}:
        # The samples of an epoch were drawn by the model of the epoch before.
        totals = {row["epoch"] - 1: row["held_out"][EVIDENCE] for row in alike}
        return totals, fmean(row["errors"][EVIDENCE] for row in alike)
    totals = {row["epoch"]: _sum_of_rewards(row["held_out"]) for row in alike}
    return totals, noise(list(totals.values())) if len(totals) > 1 else 0.0


def _sum_of_rewards(held_out: Mapping[str, float]) -> float:
    return sum(value for name, value in held_out.items() if name not in (EVIDENCE, FAMILIARITY))


def _last_good(totals: Mapping[int, float], tolerance: float) -> int | None:
    return max((epoch for epoch in totals if totals[epoch] >= max(totals.values()) - tolerance), default=None)

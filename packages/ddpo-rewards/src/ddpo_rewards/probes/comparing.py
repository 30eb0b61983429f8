"""From scores to cells and verdicts: what every suite does alike."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpo_rewards.probes.statistics import (
    Weights,
    benjamini_hochberg,
    estimate,
    is_flat,
    mean_of,
    spread,
    two_sided_p,
)
from ddpo_rewards.probes.types import Cell, Estimate, Scores, Verdict

SIGNIFICANT = 0.05
CONSTANT = "The score is the same for every picture, changed or not: there is nothing to raise."


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

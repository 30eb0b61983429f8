"""Whether a reward still rises on fixed samples, and how large the steps of a run are therefore.

A policy that is trained for a reward which says nothing, or nothing more, walks at random, and its pictures with it.
One epoch cannot tell that from a weak reward; the same prompts and seeds before and after can within some.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ddpo_core.optim import scale_rate
from ddpo_core.runs.config import RunConfig
from ddpo_core.types import TrainState

FIXED_SAMPLES = 32
PATIENCE = 3
THRESHOLD = 0.75
FLOOR = 1 / 64


def rate_scale(evaluations: Sequence[Sequence[float]]) -> float:
    """Return what the learning rate is multiplied by after some evaluations of the same samples.

    The best evaluation so far is the first, until one is progress over it: a `paired_gain` of more than 0.75, over
    the best and not the last, so that a slow rise adds up until it is seen. After three evaluations in a row without
    progress the scale halves, down to 1/64 at least; the best stays, and the count begins again.

    Where nothing is learnt, steps shrink geometrically, and so the walk of the policy ends. Patience and threshold
    are those of a simulation (`tests/test_plateau.py`) of 32 samples evaluated 13 times, as in 66 epochs with one
    evaluation in every five. Of 2,000 runs with pure noise 96 % end at 1/8 or less, having walked as far as 25 epochs
    of full steps would. With a steady rise from each evaluation to the next of one standard error 98 % end at 1/2 or
    more (of half of one: 47 %), of two all at 1. A patience of two and a threshold of 0.5 stop noise sooner (100 %,
    18 epochs), and 27 % of the runs that rise by one standard error: a lucky evaluation stays the best.

    Args:
        evaluations: One score per sample in each, in order of time; the first is of the model before training.

    Example:
        >>> before, better = [1.0, 2.0, 3.0], [1.5, 2.5, 3.5]
        >>> rate_scale([before, better]), rate_scale([before, better, better, before, better])
        (1.0, 0.5)

    Source: "reduce on plateau", as in `torch.optim.lr_scheduler.ReduceLROnPlateau`, with a paired test for its margin.
    """
    scale, failures = 1.0, 0
    best = evaluations[0]
    for scores in evaluations[1:]:
        if paired_gain(best, scores) > THRESHOLD:
            best, failures = scores, 0
            continue
        failures += 1
        if failures == PATIENCE:
            scale, failures = max(FLOOR, scale / 2), 0
    return scale


def paired_gain(before: Sequence[float], after: Sequence[float]) -> float:
    """Return by how many standard errors samples score higher than before, by the ranks of their differences.

        sum of sign(d) rank(|d|) / sqrt(sum of rank(|d|)^2)     over the differences d that are not 0

    Ranks, since rewards have outliers: one of 32 samples moves this by 0.3 at most, however far it lies, and where all
    differences are normal it tells as much as 95 % of the samples would with their mean. Of scores that are 0 or 1 it
    is the difference of those that rose and those that fell, over the root of their number. It speaks for the typical
    sample: a mean that is carried by a few while most fall a little is no gain.

    Args:
        before: One score per sample.
        after: Those of the same samples in the same order.

    Raises:
        ValueError: If these are not as many.

    Example:
        >>> paired_gain([0.0, 0.0], [3.0, -1e9]), paired_gain([1.0, 2.0], [1.0, 2.0])  # (1 - 2) / sqrt(1 + 4)
        (-0.4472135954999579, 0.0)

    Source: Wilcoxon 1945, the signed-rank test, in its normal approximation with ties at their mean rank.
    """
    if len(before) != len(after):
        raise ValueError(f"got {len(before)} scores before and {len(after)} after: want those of the same samples")
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    differences = differences[differences != 0]
    _, places, counts = np.unique(np.abs(differences), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float(np.sign(differences) @ ranks / np.sqrt(ranks @ ranks)) if len(ranks) else 0.0


def is_due(config: RunConfig, epoch: int) -> bool:
    """Return whether the fixed samples are evaluated after an epoch to see if the reward still rises.

    Example:
        >>> [is_due(RunConfig(plateau_every=2), epoch) for epoch in (1, 2, 3, 4)]
        [False, True, False, True]
    """
    return config.plateau_every > 0 and epoch % config.plateau_every == 0


def with_rate_scale(state: TrainState, scale: float) -> TrainState:
    """Return a state whose next steps are scaled.

    Raises:
        DDPOError: If its optimizer cannot scale them.
    """
    return replace(state, opt_state=scale_rate(state.opt_state, scale))


def scale_of(state: TrainState) -> float:
    """Return what scales the next steps: 1 where the optimizer cannot scale them."""
    return float(state.opt_state["rate_scale"]) if "rate_scale" in state.opt_state else 1.0


def halved(config: RunConfig, before: float, after: float) -> list[str]:
    """Say in words that steps are smaller than before; nothing where they are not.

    Example:
        >>> halved(RunConfig(plateau_every=5), 1.0, 0.5)
        ['the reward has not risen on the fixed samples for 15 epochs: steps are halved (1/2 of the learning rate)']
    """
    words = f"the reward has not risen on the fixed samples for {PATIENCE * config.plateau_every} epochs"
    return [f"{words}: steps are halved (1/{round(1 / after)} of the learning rate)"] if after < before else []

"""Constraints: what must not fall while the reward rises, and the multipliers that see to it.

    maximise E[reward]     subject to     E[signal] >= level     for every signal that is kept

A reward that nothing holds back is taken to its extreme, and the picture goes with it. Every signal has a multiplier,
which rises while the signal is below its level and falls to 0 while it is above; samples are then trained by the reward
plus the signals, each as much as its multiplier says.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.advantages import remember_differences
from ddpo_core.errors import DDPOError, ScoreError
from ddpo_core.prompts import PromptSet
from ddpo_core.rewards import score_images
from ddpo_core.sampling import Rollout, roll_out
from ddpo_core.types import ConstraintState, Kept, Policy, Progress, RewardFunction

Measure: TypeAlias = Callable[[Rollout, Sequence[int]], Mapping[str, Tensor]]
"""`(samples, the seed of each) -> signals by name`, one finite number per sample; what is random in it comes from the
seeds, so that a signal depends neither on the batch nor on how many processes share the work."""


class Level(NamedTuple):
    """What the mean of a signal must not fall below."""

    value: float
    unit: float
    """The spread of the signal from sample to sample, above 0: what a shortfall is measured in."""
    ceiling: float = math.inf
    """What a sample counts at most. What one sample has beyond it does not make up for what another lacks."""


class Gains(NamedTuple):
    """How fast a multiplier answers a shortfall of one unit."""

    proportional: float = 4.0
    """Rise of the multiplier at once, for the shortfall averaged over the last epochs."""
    integral: float = 0.2
    """Rise in every epoch in which it lasts."""
    derivative: float = 8.0
    """Rise while the shortfall grows, for its growth from epoch to epoch: what keeps it from overshooting."""
    memory: float = 0.5
    """The share of the last epochs in the averaged shortfall, in [0, 1)."""
    limit: float = 20.0
    """What the multiplier stays below, above 0. At its limit, the constraint cannot be met."""
    anticipation: float = 0.4
    """How far above its level a signal is answered for already, in units: what was lost is won back slowly."""


class Constraints(NamedTuple):
    """What is kept in a run."""

    measures: Sequence[Measure]
    levels: Mapping[str, Level]
    """Which of the measured signals are kept, by name."""
    gains: Gains = Gains()


class Weighed(NamedTuple):
    """The samples of an epoch, as their constraints weigh them."""

    state: ConstraintState
    scores: Float[Tensor, " batch"]
    """What the objective is given in place of the reward's scores: in the reward's unit."""
    kept: Mapping[str, Kept]


def weigh_constraints(
    state: ConstraintState,
    constraints: Constraints,
    scores: Float[Tensor, " batch"],
    signals: Mapping[str, Float[Tensor, " batch"]],
) -> Weighed:
    """Update the multipliers by what an epoch brought, and add the signals to its scores.

        shortfall  = (level - mean of min(signal, ceiling)) / unit
        multiplier = max(0, proportional (averaged + anticipation) + integral + derivative max(0, growth of averaged))
        scores'    = (scores + spread of the run's scores * sum of multiplier min(signal, ceiling) / unit)
                     / (1 + sum of multipliers)

    where `averaged` is the exponential average of the shortfall, and `integral` its sum, which falls below 0 only while
    the multiplier is above 0, and only so far that it undoes the anticipation: signals come to rest at their levels.
    Everything is in units of its own spread, so that multipliers mean the same for every reward and signal. While all
    multipliers are 0, the scores are those of the reward, to the bit.

    Args:
        state: What this returned for the epoch before; empty before the first.
        constraints: What is kept.
        scores: The reward's, of all processes.
        signals: What the measures gave, of all processes.

    Raises:
        DDPOError: If a signal that is kept was not measured.
        ScoreError: If a signal is not finite.

    Example:
        >>> kept = Constraints([], {"judge": Level(6.0, unit=2.0)}, Gains(1.0, 1.0, 0.0, memory=0.0, anticipation=0.0))
        >>> weighed = weigh_constraints({}, kept, torch.tensor([1.0, 3.0]), {"judge": torch.tensor([6.0, 2.0])})
        >>> weighed.kept["judge"].multiplier  # the mean is one unit below the level: 1 at once and 1 in this epoch
        2.0
        >>> weighed.scores  # (scores + 1 * 2 * signal / 2) / 3; the spread of 1 and 3 is 1
        tensor([2.3333, 1.6667])

    Source: Stooke et al. 2020 (Responsive Safety in Reinforcement Learning by PID Lagrangian Methods), algorithm 2 and
        section 5.2 (the division by one plus the multipliers); Tessler et al. 2019 (Reward Constrained Policy
        Optimization), equation 10. Deviations: shortfalls in units of the signal's spread, the ceiling, and the
        anticipation.
    """
    differences, spread = remember_differences(state.get("differences", []), scores)
    after: dict[str, Any] = {"differences": differences}
    kept: dict[str, Kept] = {}
    total, multipliers = scores.double(), 0.0
    for name, level in constraints.levels.items():
        if name not in signals:
            given = ", ".join(map(repr, signals)) or "none"
            raise DDPOError(f"constraint {name!r}: no measure gives it; there are {given}")
        signal = _checked(name, signals[name]).double().clamp(max=level.ceiling)
        mean = signal.mean().item()
        before = state.get(name, {})
        after[name], multiplier = _respond(before, (level.value - mean) / level.unit, constraints.gains)
        error = (signal.std() / len(signal) ** 0.5).item() if len(signal) > 1 else 0.0
        kept[name] = Kept(mean, error, level.value, multiplier)
        total = total + spread * multiplier * signal / level.unit
        multipliers += multiplier
    combined = scores if multipliers == 0 else (total / (1 + multipliers)).to(scores.dtype)
    return Weighed(after, combined, kept)


def measure_base(
    policy: Policy,
    measures: Sequence[Measure],
    prompts: PromptSet,
    *,
    num_steps: int,
    seeds: Sequence[int],
    batch_size: int = 8,
    progress: Progress | None = None,
) -> dict[str, Float[Tensor, " batch"]]:
    """Measure the signals of what the policy draws before training, for levels relative to it (`level_below`).

    Args:
        policy: It draws with its initial `params`.
        measures: What is measured.
        prompts: One prompt per sample.
        num_steps: The number of denoising steps.
        seeds: One noise seed per sample.
        batch_size: How many samples are denoised at once.
        progress: Called as `("sampling", done, total)`.

    Raises:
        DDPOError: If two measures give one signal.
        ScoreError: If a signal is not finite.

    Example:
        >>> from ddpo_core import toy
        >>> height = lambda rollout, seeds: {"height": rollout.images[:, 1]}
        >>> prompts = PromptSet(("left", "right"), ({}, {}))
        >>> measure_base(toy.policy(), [height], prompts, num_steps=4, seeds=[0, 1])["height"].shape
        torch.Size([2])
    """
    nothing: RewardFunction = lambda images, texts, metadata: (torch.zeros(len(texts)), {})  # noqa: E731
    rollout = roll_out(
        policy,
        policy.params,
        nothing,
        prompts,
        seeds=seeds,
        num_steps=num_steps,
        batch_size=batch_size,
        progress=progress,
    )
    return {name: _checked(name, signal) for name, signal in measure(measures, rollout, seeds).items()}


def level_below(signal: Float[Tensor, " batch"], slack: float) -> Level:
    """Make a level that lies a little below what a signal was before training.

        ceiling = median,     unit = std of min(signal, ceiling),     level = mean of min(signal, ceiling) - slack unit

    Where no sample differs from another, the unit is 1: that of the signal itself.

    Args:
        signal: What `measure_base` gave, of two samples at least.
        slack: How far below, in units of the spread from sample to sample, at least 0.

    Example:
        >>> level_below(torch.tensor([0.0, 2.0, 2.0, 9.0]), slack=0.5)  # 0, 2, 2, 2: the mean is 1.5, the std 1
        Level(value=1.0, unit=1.0, ceiling=2.0)
    """
    exact = signal.double()
    ceiling = exact.quantile(0.5)
    capped = exact.clamp(max=ceiling)
    spread = capped.std().item() if len(capped) > 1 else 0.0
    unit = spread if spread > 0 else 1.0
    return Level(capped.mean().item() - slack * unit, unit, ceiling.item())


def measure(measures: Sequence[Measure], rollout: Rollout, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Give all signals of some samples.

    Raises:
        DDPOError: If two measures give one signal.
    """
    signals: dict[str, Tensor] = {}
    for of_samples in measures:
        for name, signal in of_samples(rollout, seeds).items():
            if name in signals:
                raise DDPOError(f"two measures give {name!r}: give one of them another name for it")
            signals[name] = signal
    return signals


def reward_measure(rewards: Mapping[str, RewardFunction], *, batch_size: int = 8) -> Measure:
    """Measure the scores of rewards that are not optimised, by name.

    Args:
        rewards: `(images, prompts, metadata) -> (scores, info)` each.
        batch_size: How many images a reward is given at once.

    Example:
        >>> from ddpo_core import toy
        >>> base = measure_base(toy.policy(), [reward_measure({"near": toy.reward})],
        ...                     PromptSet(("left", "right"), ({}, {})), num_steps=4, seeds=[0, 1])
        >>> base["near"].shape
        torch.Size([2])
    """

    def measure_all(rollout: Rollout, seeds: Sequence[int]) -> dict[str, Tensor]:
        texts, metadata = rollout.prompts.prompts, rollout.prompts.metadata
        parts = [slice(start, start + batch_size) for start in range(0, len(texts), batch_size)]
        return {
            name: torch.cat(
                [score_images(reward, rollout.images[part], texts[part], metadata[part])[0] for part in parts]
            )
            for name, reward in rewards.items()
        }

    return measure_all


def _respond(before: Mapping[str, float], shortfall: float, gains: Gains) -> tuple[dict[str, float], float]:
    """Turn one more shortfall into what is remembered, and a multiplier."""
    last, summed = before.get("averaged", shortfall), before.get("integral", 0.0)
    averaged = gains.memory * last + (1 - gains.memory) * shortfall
    answer = gains.proportional * (averaged + gains.anticipation) + gains.derivative * max(0.0, averaged - last)
    # A signal that is far above its level for long must not use up what answers its fall in time.
    floor = -gains.proportional * gains.anticipation if answer + summed > 0 else min(0.0, summed)
    integral = min(gains.limit, max(floor, summed + gains.integral * shortfall))
    return {"integral": integral, "averaged": averaged}, min(gains.limit, max(0.0, answer + integral))


def _checked(name: str, signal: Tensor) -> Tensor:
    if not torch.isfinite(signal).all():
        raise ScoreError(f"the signal {name!r}, which is kept, is not finite for every sample; want finite numbers")
    return signal

"""From scores to advantages: what a reward is compared with is a baseline, and every baseline is a value."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, variance
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from ddpo_core.errors import DDPOError
from ddpo_core.types import ObjectiveState

Baseline = Callable[[ObjectiveState, Sequence[str], Tensor], tuple[ObjectiveState, Tensor]]
"""`(state, prompts, rewards) -> (new state, advantages)`: one prompt per reward, one float32 advantage for each.

The state is what it remembers from epoch to epoch: a mapping that JSON can hold, empty at the start, never mutated.
"""

# Scores are float32: what differs by less, relative to their size, is rounding and no spread to divide by.
_RESOLUTION = 1e-6
# How many differences of a run tell its spread: enough for the tails, little in a checkpoint.
_REMEMBERED = 1024
_MIDDLE = (0.05, 0.95)


def per_prompt(*, buffer_size: int = 32, min_count: int = 16) -> Baseline:
    """Compare a reward with the recent rewards of its prompt.

        (reward - mean of its prompt's buffer) / population std of its prompt's buffer

    The buffer holds the latest rewards of a prompt, the current ones among them. A prompt with fewer than `min_count`
    is normalised by the mean and std of this epoch instead.

    Args:
        buffer_size: How many rewards of a prompt are remembered, at least `min_count`.
        min_count: How many of them are needed before they are used, at least 1.

    Raises:
        DDPOError: If `min_count` can never be reached.

    Example:
        >>> baseline = per_prompt(buffer_size=2, min_count=2)
        >>> baseline({"a cat": [1.0, 3.0]}, ["a cat"], torch.tensor([5.0]))
        ({'a cat': [3.0, 5.0]}, tensor([1.]))

    Source: Black et al. 2023, appendix D (per-prompt statistics); ddpo-pytorch, `stat_tracking.py`. Deviation:
        computed in float64, so integer and half-precision rewards are not truncated.
    """
    if not 1 <= min_count <= buffer_size:
        raise DDPOError(
            f"min_count={min_count!r} can never be reached with buffer_size={buffer_size!r}: want at least 1 and at "
            "most buffer_size"
        )

    def baseline(
        state: ObjectiveState, prompts: Sequence[str], rewards: Num[Tensor, " batch"]
    ) -> tuple[ObjectiveState, Float[Tensor, " batch"]]:
        updated = _remember(state, prompts, rewards, buffer_size)
        overall = compute_advantages(rewards)
        buffers = {
            prompt: torch.tensor(updated[prompt], dtype=torch.float64)
            for prompt in set(prompts)
            if len(updated[prompt]) >= min_count
        }
        advantages = [
            _standardised(reward, buffers[prompt]).item() if prompt in buffers else fallback
            for prompt, reward, fallback in zip(prompts, rewards.double(), overall.tolist(), strict=True)
        ]
        return updated, torch.tensor(advantages, dtype=torch.float32, device=rewards.device)

    return baseline


def per_epoch() -> Baseline:
    """Compare a reward with all of its epoch (`compute_advantages`), and remember nothing.

    Example:
        >>> per_epoch()({}, ["a cat", "a dog"], torch.tensor([1.0, 3.0]))
        ({}, tensor([-1.,  1.]))

    Source: ddpo-pytorch, `train.py`, where per-prompt statistics are off.
    """
    return lambda state, prompts, rewards: (state, compute_advantages(rewards))


def per_run(*, buffer_size: int = 16) -> Baseline:
    """Compare a reward with what its prompt is expected to bring in this epoch, in units of all that the run remembers.

        effect_p  = between / (between + within / n_p) * mean of the n_p deviations remembered of prompt p
        expected  = effect_p + mean over this epoch of (reward - effect)
        advantage = (reward - expected) / population std of this difference over the run

    Most of what tells the rewards of an epoch apart is often that some prompts bring more than others, which says
    nothing of the policy and is noise in its gradient. A prompt's few rewards are a poor estimate of its mean, so they
    count as much as the variances between and within prompts say (0 with nothing remembered). And when a policy has
    nothing left to gain, the rewards of an epoch hardly differ: divided by their own spread, what is left is noise at
    full strength, and the policy drifts away; divided by the run's, updates shrink with the gain.

    A few rewards that are a thousand times as large as the others would set the mean and the unit: they are pulled in
    (`remember_differences`).

    Args:
        buffer_size: How many deviations of a prompt from the level of its epoch are remembered, at least 1.

    Raises:
        DDPOError: If nothing would be remembered.

    Example:
        >>> state, advantages = per_run()({}, ["a cat"] * 2, torch.tensor([5.0, 6.0]))
        >>> advantages
        tensor([-1.,  1.])
        >>> state
        {'deviations': {'a cat': [-0.5, 0.5]}, 'differences': [-0.5, 0.5]}

    Source: the effect is the empirical Bayes estimate of James & Stein 1961 in the form of Efron & Morris 1975; reward
        scaling as in Engstrom et al. 2020 ("Implementation Matters in Deep Policy Gradients"), section 3. Not
        in the paper: Black et al. 2023 divide by each prompt's own spread.
    """
    if buffer_size < 1:
        raise DDPOError(f"buffer_size={buffer_size!r}: want at least 1, or per_epoch(), which remembers nothing")

    def baseline(
        state: ObjectiveState, prompts: Sequence[str], rewards: Num[Tensor, " batch"]
    ) -> tuple[ObjectiveState, Float[Tensor, " batch"]]:
        deviations: Mapping[str, list[float]] = state.get("deviations", {})
        effects = _prompt_effects(deviations, prompts)
        differences, spread = remember_differences(state.get("differences", []), rewards.cpu().double() - effects)
        own = torch.tensor(differences[-len(prompts) :], dtype=torch.float64)
        updated = _remember(deviations, prompts, own + effects, buffer_size)
        advantages = _divide(own, spread, rewards).float().to(rewards.device)
        return {"deviations": updated, "differences": differences}, advantages

    return baseline


def per_group() -> Baseline:
    """Compare each sample of a prompt with the others of it in the epoch, and remember nothing.

    It wants `samples_per_prompt` of at least 2: a prompt's only sample has the advantage 0.

    Raises:
        DDPOError: By the baseline, if no prompt has a second sample.

    Example:
        >>> per_group()({}, ["a cat", "a dog"] * 2, torch.tensor([1.0, 10.0, 3.0, 10.0]))[1]
        tensor([-1.,  0.,  1.,  0.])

    Source: Shao et al. 2024 (GRPO), section 4.1.
    """

    def baseline(
        state: ObjectiveState, prompts: Sequence[str], rewards: Num[Tensor, " batch"]
    ) -> tuple[ObjectiveState, Float[Tensor, " batch"]]:
        if len(set(prompts)) == len(prompts):
            raise DDPOError(
                "per_group() compares the samples of a prompt, and each has one: want samples_per_prompt >= 2"
            )
        return state, within_prompts(compute_advantages, rewards, prompts)

    return baseline


def compute_advantages(rewards: Num[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Normalise rewards over the whole batch: `(rewards - mean) / population std`, in float64.

    Equal rewards give zeros, and a reward in other units gives the same advantages.

    Example:
        >>> compute_advantages(torch.tensor([1.0, 3.0]))
        tensor([-1.,  1.])

    Source: ddpo-pytorch, `train.py`. Deviation: there 1e-8 is added to the std, whatever the reward's units.
    """
    exact = rewards.double()
    return _standardised(exact, exact).float()


def within_prompts(
    function: Callable[[Tensor], Tensor], rewards: Num[Tensor, " batch"], prompts: Sequence[str]
) -> Float[Tensor, " batch"]:
    """Apply a function of rewards to the rewards of every prompt alone.

    Example:
        >>> within_prompts(lambda rewards: rewards - rewards.max(), torch.tensor([1.0, 5.0, 3.0]), ["a", "b", "a"])
        tensor([-2.,  0.,  0.])

    Source: jannerm/ddpo, `per_prompt_weights`.
    """
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    results = torch.empty(len(rewards), dtype=torch.float32)
    for own in places.values():
        results[own] = function(rewards[own])
    return results


def share_without_spread(prompts: Sequence[str], rewards: Num[Tensor, " batch"]) -> float | None:
    """Return how many of the prompts with several samples have rewards that are all equal; None where there are none.

    Where samples are compared with others of their prompt, such prompts teach nothing.

    Example:
        >>> share_without_spread(["a cat", "a dog", "a cat", "a dog"], torch.tensor([1.0, 2.0, 1.0, 3.0]))
        0.5

    Source: Yu et al. 2025 (DAPO), section 3.2, where such prompts are drawn anew.
    """
    rewards_of: dict[str, list[float]] = {}
    for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
        rewards_of.setdefault(prompt, []).append(reward)
    several = [own for own in rewards_of.values() if len(own) > 1]
    return fmean(min(own) == max(own) for own in several) if several else None


def remember_differences(
    remembered: Sequence[float], values: Num[Tensor, " batch"]
) -> tuple[list[float], Float[Tensor, ""]]:
    """Add the differences of values from their mean to those of earlier epochs, and take the spread of all.

    What lies further outside the middle 90 % of all than that is wide is moved to there first. Of values that are
    nearly always the same, nothing is moved: the rare ones are what there is to learn from.

    Returns:
        The differences, of which those of `values` are the last, and their population standard deviation.

    Example:
        >>> remember_differences([-3.0, 3.0], torch.tensor([4.0, 6.0]))
        ([-3.0, 3.0, -1.0, 1.0], tensor(2.2361, dtype=torch.float64))

    Source: Tukey 1977, whose fences stand around the middle half.
    """
    exact = values.cpu().double()
    median = exact.quantile(0.5)
    of_run = torch.cat([torch.tensor(remembered, dtype=torch.float64), exact - median])
    low, high = torch.quantile(of_run, torch.tensor(_MIDDLE, dtype=torch.float64))
    width = high - low
    fenced = exact.clamp(median + low - width, median + high + width) if width > 0 else exact
    differences = [*remembered, *(fenced - fenced.mean()).tolist()][-max(_REMEMBERED, len(exact)) :]
    return differences, torch.tensor(differences, dtype=torch.float64).std(correction=0)


def _remember(
    state: ObjectiveState, prompts: Sequence[str], rewards: Tensor, buffer_size: int
) -> Mapping[str, list[float]]:
    updated: dict[str, Any] = dict(state)
    for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
        updated[prompt] = [*updated.get(prompt, ()), float(reward)][-buffer_size:]
    return updated


def _standardised(rewards: Tensor, compared: Tensor) -> Tensor:
    return _divide(rewards - compared.mean(), compared.std(correction=0), compared)


def _divide(differences: Tensor, spread: Tensor, rewards: Tensor) -> Tensor:
    """Divide by a spread, or by what float32 can tell apart where that is more; 0 by 0 is 0."""
    unit = spread.clamp(min=_RESOLUTION * rewards.double().square().mean().sqrt())
    return differences / unit if unit > 0 else torch.zeros_like(differences)


def _prompt_effects(deviations: Mapping[str, Sequence[float]], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
    """How much more than the others each prompt brings, shrunk by how little is known of it."""
    means = {prompt: fmean(own) for prompt, own in deviations.items()}
    freedom = sum(len(own) - 1 for own in deviations.values())
    if len(deviations) < 2 or freedom == 0:
        return torch.zeros(len(prompts), dtype=torch.float64)
    within = sum((value - means[prompt]) ** 2 for prompt, own in deviations.items() for value in own) / freedom
    sampling = within * fmean(1 / len(own) for own in deviations.values())
    between = max(0.0, variance(means.values()) - sampling)
    if between == 0:
        return torch.zeros(len(prompts), dtype=torch.float64)
    shrunk = {prompt: mean * between / (between + within / len(deviations[prompt])) for prompt, mean in means.items()}
    return torch.tensor([shrunk.get(prompt, 0.0) for prompt in prompts], dtype=torch.float64)

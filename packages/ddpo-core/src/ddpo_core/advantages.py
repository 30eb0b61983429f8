"""From scores to advantages: what a reward is compared with is a baseline, and every baseline is a value."""

from collections.abc import Callable, Mapping, Sequence
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

# Added to a standard deviation, in units of the reward.
_EPS = 1e-6


def per_prompt(*, buffer_size: int = 32, min_count: int = 16) -> Baseline:
    """Compare a reward with the recent rewards of its prompt.

        (reward - mean of its prompt's buffer) / (population std of its prompt's buffer + 1e-6)

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
        ({'a cat': [3.0, 5.0]}, tensor([1.0000]))

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
        moments = {prompt: _moments(updated[prompt]) for prompt in set(prompts) if len(updated[prompt]) >= min_count}
        advantages = [
            (reward - moments[prompt][0]) / (moments[prompt][1] + _EPS) if prompt in moments else fallback
            for prompt, reward, fallback in zip(prompts, rewards.tolist(), overall.tolist(), strict=True)
        ]
        return updated, torch.tensor(advantages, dtype=torch.float32, device=rewards.device)

    return baseline


def per_epoch() -> Baseline:
    """Compare a reward with all of its epoch (`compute_advantages`), and remember nothing.

    Example:
        >>> per_epoch()({}, ["a cat", "a dog"], torch.tensor([1.0, 3.0]))
        ({}, tensor([-1.0000,  1.0000]))

    Source: ddpo-pytorch, `train.py`, where per-prompt statistics are off.
    """
    return lambda state, prompts, rewards: (state, compute_advantages(rewards))


def per_run(*, buffer_size: int = 32) -> Baseline:
    """Compare a reward with the mean of its epoch, in units of all that the run remembers.

        (reward - mean of this epoch) / (population std of every remembered reward, of all prompts + 1e-6)

    When a policy has nothing left to gain, the rewards of an epoch hardly differ. Divided by their own spread, what is
    left is noise at full strength, and the policy drifts away; divided by the run's, updates shrink with the gain.

    Args:
        buffer_size: How many rewards of a prompt are remembered, at least 1.

    Raises:
        DDPOError: If nothing would be remembered.

    Example:
        >>> per_run(buffer_size=2)({"a cat": [1.0]}, ["a cat"] * 2, torch.tensor([5.0, 6.0]))
        ({'a cat': [5.0, 6.0]}, tensor([-1.0000,  1.0000]))

    Source: reward scaling as in Engstrom et al. 2020 ("Implementation Matters in Deep Policy Gradients"), section 3,
        with the mean of the batch taken off. Not in the paper: Black et al. 2023 divide by each prompt's own spread.
    """
    if buffer_size < 1:
        raise DDPOError(f"buffer_size={buffer_size!r}: want at least 1, or per_epoch(), which remembers nothing")

    def baseline(
        state: ObjectiveState, prompts: Sequence[str], rewards: Num[Tensor, " batch"]
    ) -> tuple[ObjectiveState, Float[Tensor, " batch"]]:
        updated = _remember(state, prompts, rewards, buffer_size)
        remembered = torch.tensor([reward for buffer in updated.values() for reward in buffer], dtype=torch.float64)
        exact = rewards.double()
        return updated, ((exact - exact.mean()) / (remembered.std(correction=0) + _EPS)).float()

    return baseline


def per_group() -> Baseline:
    """Compare each sample of a prompt with the others of it in the epoch, and remember nothing.

    It wants `samples_per_prompt` of at least 2: a prompt's only sample has the advantage 0.

    Raises:
        DDPOError: By the baseline, if no prompt has a second sample.

    Example:
        >>> per_group()({}, ["a cat", "a dog"] * 2, torch.tensor([1.0, 10.0, 3.0, 10.0]))[1]
        tensor([-1.0000,  0.0000,  1.0000,  0.0000])

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
    """Normalise rewards over the whole batch: `(rewards - mean) / (population std + 1e-6)`, in float64.

    Equal rewards give zeros.

    Example:
        >>> compute_advantages(torch.tensor([1.0, 3.0]))
        tensor([-1.0000,  1.0000])

    Source: ddpo-pytorch, `train.py` (there with eps 1e-8).
    """
    exact = rewards.double()
    return ((exact - exact.mean()) / (exact.std(correction=0) + _EPS)).float()


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


def _remember(
    state: ObjectiveState, prompts: Sequence[str], rewards: Tensor, buffer_size: int
) -> Mapping[str, list[float]]:
    updated: dict[str, Any] = dict(state)
    for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
        updated[prompt] = [*updated.get(prompt, ()), float(reward)][-buffer_size:]
    return updated


def _moments(rewards: Sequence[float]) -> tuple[float, float]:
    values = torch.tensor(rewards, dtype=torch.float64)
    return values.mean().item(), values.std(correction=0).item()

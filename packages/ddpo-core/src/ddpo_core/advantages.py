"""From scores to advantages: each prompt is compared with its own recent past."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.types import PromptStats


def compute_advantages(rewards: Float[Tensor, " batch"], *, eps: float = 1e-6) -> Float[Tensor, " batch"]:
    """Normalise rewards over the whole batch: `(rewards - mean) / (population std + eps)`, in float64.

    Equal rewards give zeros.

    Example:
        >>> compute_advantages(torch.tensor([1.0, 3.0]))
        tensor([-1.0000,  1.0000])

    Source: ddpo-pytorch, `train.py` (there with eps 1e-8).
    """
    exact = rewards.double()
    return ((exact - exact.mean()) / (exact.std(correction=0) + eps)).to(rewards.dtype)


def update_prompt_stats(
    stats: PromptStats,
    prompts: Sequence[str],
    rewards: Float[Tensor, " batch"],
    *,
    buffer_size: int,
    min_count: int,
    eps: float = 1e-6,
) -> tuple[PromptStats, Float[Tensor, " batch"]]:
    """Add rewards to the running statistics of their prompts, then normalise each by its prompt's.

        (reward - mean of its prompt's buffer) / (population std of its prompt's buffer + eps)

    The buffer holds the latest `buffer_size` rewards of a prompt, the current ones among them. A prompt with fewer
    than `min_count` is normalised by the mean and std of this batch instead.

    Args:
        stats: The latest rewards of every prompt; not changed.
        prompts: One prompt per reward.
        rewards: The rewards of this epoch.
        buffer_size: How many rewards of a prompt are remembered, at least 1.
        min_count: How many of them are needed before they are used.
        eps: Added to the standard deviation, in units of the reward.

    Returns:
        The new statistics and one advantage per reward.

    Example:
        >>> stats, advantages = update_prompt_stats(
        ...     {"a cat": (1.0, 3.0)}, ["a cat"], torch.tensor([5.0]), buffer_size=2, min_count=2)
        >>> stats, advantages
        ({'a cat': (3.0, 5.0)}, tensor([1.0000]))

    Source: Black et al. 2023, appendix D (per-prompt statistics); ddpo-pytorch, `stat_tracking.py`. Deviation:
        computed in float64, so integer and half-precision rewards are not truncated.
    """
    updated = _remember(stats, prompts, rewards, buffer_size)
    overall = compute_advantages(rewards, eps=eps)
    moments = {prompt: _moments(updated[prompt]) for prompt in set(prompts) if len(updated[prompt]) >= min_count}
    advantages = [
        (reward - moments[prompt][0]) / (moments[prompt][1] + eps) if prompt in moments else fallback
        for prompt, reward, fallback in zip(prompts, rewards.tolist(), overall.tolist(), strict=True)
    ]
    return updated, torch.tensor(advantages, dtype=torch.float32, device=rewards.device)


def scale_by_run(
    stats: PromptStats,
    prompts: Sequence[str],
    rewards: Float[Tensor, " batch"],
    *,
    buffer_size: int,
    eps: float = 1e-6,
) -> tuple[PromptStats, Float[Tensor, " batch"]]:
    """Add rewards to what the run remembers, then compare them with their mean in units of all that is remembered.

        (reward - mean of this batch) / (population std of every remembered reward, of all prompts + eps)

    When a policy has nothing left to gain, the rewards of an epoch hardly differ. Divided by their own spread, what is
    left is noise at full strength, and the policy drifts away; divided by the run's, updates shrink with the gain.

    Args:
        stats: The latest rewards of every prompt; not changed.
        prompts: One prompt per reward.
        rewards: The rewards of this epoch.
        buffer_size: How many rewards of a prompt are remembered, at least 1.
        eps: Added to the standard deviation, in units of the reward.

    Returns:
        The new statistics and one advantage per reward.

    Example:
        >>> stats, advantages = scale_by_run({"a cat": (1.0,)}, ["a cat"] * 2, torch.tensor([5.0, 6.0]), buffer_size=2)
        >>> stats, advantages
        ({'a cat': (5.0, 6.0)}, tensor([-1.0000,  1.0000]))

    Source: reward scaling as in Engstrom et al. 2020 ("Implementation Matters in Deep Policy Gradients"), section 3,
        with the mean of the batch taken off. Not in the paper: Black et al. 2023 divide by each prompt's own spread.
    """
    updated = _remember(stats, prompts, rewards, buffer_size)
    remembered = torch.tensor([reward for buffer in updated.values() for reward in buffer], dtype=torch.float64)
    exact = rewards.double()
    return updated, ((exact - exact.mean()) / (remembered.std(correction=0) + eps)).to(rewards.dtype)


def within_prompts(
    function: Callable[[Tensor], Tensor], rewards: Float[Tensor, " batch"], prompts: Sequence[str]
) -> Float[Tensor, " batch"]:
    """Apply a function of rewards to the rewards of every prompt alone.

    With `compute_advantages` these are group-relative advantages: each of the k samples of a prompt against the others.

    Example:
        >>> within_prompts(compute_advantages, torch.tensor([1.0, 10.0, 3.0, 10.0]), ["a cat", "a dog"] * 2)
        tensor([-1.0000,  0.0000,  1.0000,  0.0000])

    Source: Shao et al. 2024 (GRPO), section 4.1; jannerm/ddpo, `per_prompt_weights`.
    """
    results = torch.empty(len(rewards), dtype=torch.float32)
    for prompt in dict.fromkeys(prompts):
        places = [place for place, other in enumerate(prompts) if other == prompt]
        results[places] = function(rewards[places])
    return results


def _remember(stats: PromptStats, prompts: Sequence[str], rewards: Tensor, buffer_size: int) -> PromptStats:
    updated = dict(stats)
    for prompt, reward in zip(prompts, rewards.tolist(), strict=True):
        updated[prompt] = (*updated.get(prompt, ()), reward)[-buffer_size:]
    return updated


def _moments(rewards: Sequence[float]) -> tuple[float, float]:
    values = torch.tensor(rewards, dtype=torch.float64)
    return values.mean().item(), values.std(correction=0).item()

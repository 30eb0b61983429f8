"""What training does with scored samples: follow a policy gradient, or imitate the best (`ddpo_core.regression`).

`fit` takes a loss of log-probabilities (`ddpo_is_loss`) as it is, or an `Objective`.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ddpo_core.advantages import compute_advantages, scale_by_run, update_prompt_stats, within_prompts
from ddpo_core.batches import Pairs, choose_pairs, gather_batch, window_steps
from ddpo_core.config import FitConfig
from ddpo_core.errors import DDPOError
from ddpo_core.losses import kl_penalty
from ddpo_core.sampling import stochastic_steps, transition_log_prob
from ddpo_core.types import LossFunction, Metrics, Params, Policy, PromptStats, Rows, Timesteps, Trajectories


class Share(NamedTuple):
    """The samples of one update on one process, and what its randomness is a function of."""

    samples: Sequence[int]
    """Rows of this process's trajectories."""
    indices: Sequence[int]
    """The global index of every sample."""
    seed: int
    epoch: int
    pass_index: int
    """Which pass over the samples of the epoch, from 0."""


class Objective(NamedTuple):
    """How an epoch's scored samples become gradients; `policy_gradient` and `rwr` make one.

    - `check(policy, config)`: raises a `DDPOError` where they do not fit, before anything is sampled.
    - `weigh(stats, prompts, scores, config)`: the new prompt statistics and one weight per sample of all processes.
    - `choose(policy, trajectories, weights, share, config)`: the rows that one update trains on, on the CPU.
      `weights` are this process's own, on the CPU as well. The mean loss over its rows is what a process contributes.
    - `loss(policy, params, trajectories, weights, rows, config)`: the mean loss over some of the rows, and metrics as
      scalar tensors; everything is on the policy's device.
    """

    check: Callable[[Policy, FitConfig], None]
    weigh: Callable[[PromptStats, Sequence[str], Tensor, FitConfig], tuple[PromptStats, Tensor]]
    choose: Callable[[Policy, Trajectories, Tensor, Share, FitConfig], Rows]
    loss: Callable[[Policy, Params, Trajectories, Tensor, Rows, FitConfig], tuple[Tensor, Metrics]]


def as_objective(loss_fn: LossFunction | Objective) -> Objective:
    """Take a loss of log-probabilities as the policy gradient with that loss, and an objective as it is."""
    return loss_fn if isinstance(loss_fn, Objective) else policy_gradient(loss_fn)


def policy_gradient(loss_fn: LossFunction) -> Objective:
    """Train replayed log-probabilities with advantages: DDPO-SF, DDPO-IS, or a loss of your own.

    Example:
        >>> from ddpo_core import ddpo_sf_loss
        >>> objective = policy_gradient(ddpo_sf_loss)
        >>> config = FitConfig(advantage_baseline="epoch")
        >>> objective.weigh({}, ["a cat", "a dog"], torch.tensor([1.0, 3.0]), config)
        ({}, tensor([-1.0000,  1.0000]))

    Source: Black et al. 2023, section 4.3; ddpo-pytorch, `train.py`.
    """

    # Read from the device once and not in every update: that would stall it in the middle of training.
    @cache
    def trainable(timesteps: Callable[[int], Timesteps], num_steps: int) -> tuple[int, ...]:
        return stochastic_steps(timesteps(num_steps))

    def check(policy: Policy, config: FitConfig) -> None:
        if not trainable(policy.timesteps, config.num_steps):
            raise DDPOError(
                "every step of this policy is deterministic, so there is nothing to train: want eta above 0"
            )

    def choose(policy: Policy, trajectories: Trajectories, weights: Tensor, share: Share, config: FitConfig) -> Pairs:
        steps = window_steps(
            trainable(policy.timesteps, config.num_steps),
            size=config.timestep_window,
            epoch=share.epoch,
            every=config.timestep_window_epochs,
        )
        return choose_pairs(
            share.samples,
            steps,
            fraction=config.timestep_fraction,
            seed=share.seed,
            epoch=share.epoch,
            indices=share.indices,
            pass_index=share.pass_index,
        )

    def loss(
        policy: Policy, params: Params, trajectories: Trajectories, weights: Tensor, rows: Rows, config: FitConfig
    ) -> tuple[Tensor, Metrics]:
        batch = gather_batch(trajectories, weights, Pairs(*rows))
        transition = policy.transition(params, batch.latents, batch.step, batch.conditioning)
        log_probs = transition_log_prob(transition, batch.next_latents)
        policy_loss, metrics = loss_fn(log_probs, batch.old_log_probs, batch.advantages)
        if config.kl_weight == 0:
            return policy_loss, metrics
        with torch.no_grad():
            reference = policy.transition(policy.params, batch.latents, batch.step, batch.conditioning)
        kl = kl_penalty(transition.mean, reference.mean, transition.std)
        return policy_loss + config.kl_weight * kl, {**metrics, "kl": kl.detach()}

    return Objective(check, _advantages, choose, loss)


def _advantages(
    stats: PromptStats, prompts: Sequence[str], scores: Tensor, config: FitConfig
) -> tuple[PromptStats, Tensor]:
    if config.advantage_baseline == "group":
        updated, advantages = stats, within_prompts(compute_advantages, scores, prompts)
    elif config.advantage_baseline == "epoch" or config.stats_buffer_size == 0:
        updated, advantages = stats, compute_advantages(scores)
    elif config.advantage_baseline == "run":
        updated, advantages = scale_by_run(stats, prompts, scores, buffer_size=config.stats_buffer_size)
    else:
        updated, advantages = update_prompt_stats(
            stats, prompts, scores, buffer_size=config.stats_buffer_size, min_count=config.stats_min_count
        )
    return updated, advantages.clamp(-config.advantage_clip, config.advantage_clip)

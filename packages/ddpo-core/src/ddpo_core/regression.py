"""Reward-weighted regression: the best samples are imitated as in pretraining, without log-probabilities."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo_core.advantages import within_prompts
from ddpo_core.config import FitConfig
from ddpo_core.errors import DDPOError
from ddpo_core.losses import rwr_loss
from ddpo_core.objectives import Objective, Share
from ddpo_core.randomness import generator
from ddpo_core.rows import take_rows
from ddpo_core.types import Metrics, Params, Policy, Rows, Trajectories
from ddpo_core.weights import rwr_weights

WeightFunction = Callable[[Tensor], Tensor]
"""Rewards `[batch]` of samples that compete with each other, to non-negative weights that average 1."""


class Draws(NamedTuple):
    """Noisy versions of samples that regression learns to clean, one entry per draw."""

    samples: Int[Tensor, " draws"]
    time: Int[Tensor, " draws"]
    noise: Float[Tensor, "draws ..."]
    scale: Float[Tensor, " draws"]


def rwr(weight_fn: WeightFunction = rwr_weights) -> Objective:
    """Imitate samples by how their reward compares with all of the epoch: reward-weighted regression.

    Every sample is noised and cleaned as in pretraining, at as many random times as a policy gradient would train
    steps of it (`num_steps * timestep_fraction`). The reference makes 5 `passes_per_epoch`.

    Args:
        weight_fn: For instance `functools.partial(rwr_weights, inverse_temperature=0.2)`.

    Example:
        >>> rwr().weigh({}, ["a cat", "a dog"], torch.tensor([1.0, 1.0]), FitConfig())
        ({}, tensor([1., 1.]))

    Source: Black et al. 2023, section 4.2; jannerm/ddpo, `pipeline/finetune.py`.
    """
    return _regression(lambda prompts, rewards: weight_fn(rewards))


def rwr_per_prompt(weight_fn: WeightFunction = rwr_weights) -> Objective:
    """Imitate samples by how their reward compares with those of the same prompt in the epoch.

    With `sparse_rwr_weights` this is the sparse variant, which wants `samples_per_prompt` well above one over the
    fraction that it keeps. Samples of weight 0 cost nothing.

    Args:
        weight_fn: For instance `sparse_rwr_weights`.

    Example:
        >>> rwr_per_prompt().weigh({}, ["a cat", "a dog"], torch.tensor([1.0, 9.0]), FitConfig())
        ({}, tensor([1., 1.]))

    Source: as `rwr`; jannerm/ddpo, `per_prompt_weights`.
    """
    return _regression(lambda prompts, rewards: within_prompts(weight_fn, rewards, prompts))


def _regression(weigh: Callable[[Sequence[str], Tensor], Tensor]) -> Objective:
    return Objective(
        _check_regression,
        lambda stats, prompts, scores, config: (stats, weigh(prompts, scores)),
        _choose_draws,
        _regression_loss,
    )


def _check_regression(policy: Policy, config: FitConfig) -> None:
    if policy.denoising_error is None or policy.num_train_timesteps < 1:
        raise DDPOError("this policy has no denoising_error, which regression trains: want one, or a policy gradient")
    if config.kl_weight or config.timestep_window:
        raise DDPOError("kl_weight and timestep_window are options of policy gradients: want both 0 for regression")


def _choose_draws(
    policy: Policy, trajectories: Trajectories, weights: Tensor, share: Share, config: FitConfig
) -> Draws:
    count = max(1, round(config.num_steps * config.timestep_fraction))
    # Where all weights are 0, one sample stays: it adds nothing, and an empty batch would have no metrics.
    kept = [place for place, sample in enumerate(share.samples) if weights[sample] != 0] or [0]
    where = [(share.epoch, share.indices[place], share.pass_index) for place in kept]
    streams = [generator(share.seed, "regression", *index) for index in where]
    time = [stream.integers(policy.num_train_timesteps, size=count) for stream in streams]
    shape = (count, *trajectories.latents.shape[2:])
    noise = [stream.standard_normal(shape, dtype=np.float32) for stream in streams]
    return Draws(
        torch.tensor([share.samples[place] for place in kept]).repeat_interleave(count),
        torch.from_numpy(np.concatenate(time)),
        torch.from_numpy(np.concatenate(noise)),
        # The mean is over all samples of the share, those of weight 0 among them.
        torch.full((len(kept) * count,), len(kept) / len(share.samples)),
    )


def _regression_loss(
    policy: Policy, params: Params, trajectories: Trajectories, weights: Tensor, rows: Rows, config: FitConfig
) -> tuple[Tensor, Metrics]:
    samples, time, noise, scale = rows
    assert policy.denoising_error is not None
    clean = trajectories.latents[samples, -1].float()
    conditioning = take_rows(trajectories.conditioning, trajectories.prompt_index[samples])
    errors = policy.denoising_error(params, clean, noise, time, conditioning)
    return rwr_loss(errors, scale * weights[samples])

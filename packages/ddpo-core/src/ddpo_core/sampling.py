"""Sampling trajectories, and replaying their log-probabilities through the very same function.

The two meet in `Policy.transition`: with the same batch shape, a replay of what was just sampled gives the same
log-probabilities bit for bit, in every dtype.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.rows import take_rows
from ddpo_core.types import Conditioning, Params, Policy, Timesteps, Trajectories, Transition


def sample_trajectories(
    policy: Policy, params: Params, prompts: Sequence[str], *, num_steps: int, seeds: Sequence[int]
) -> Trajectories:
    """Sample one trajectory per prompt; trajectory `i` is a function of `prompts[i]` and `seeds[i]` alone.

    Every unique prompt is encoded once. The latents are rounded to their storage dtype before their log-probability
    is taken, so that a replay sees what sampling saw (the reference implementation rounds afterwards).

    Args:
        policy: The model with its sampler.
        params: The trainable leaves to sample with.
        prompts: One prompt per sample.
        num_steps: The number of denoising steps.
        seeds: One non-negative integer per sample.

    Raises:
        ValueError: If there are no prompts, or not one seed per prompt.

    Example:
        >>> from ddpo_core import toy
        >>> policy = toy.policy()
        >>> sample_trajectories(policy, policy.params, ["right", "left"], num_steps=4, seeds=[0, 1]).latents.shape
        torch.Size([2, 5, 2])
    """
    if not prompts or len(prompts) != len(seeds):
        raise ValueError(
            f"got {len(prompts)} prompts and {len(seeds)} seeds: want at least one prompt, a seed for each"
        )
    unique = tuple(dict.fromkeys(prompts))
    timesteps = policy.timesteps(num_steps)
    stochastic = stochastic_steps(timesteps)
    noise = policy.noise(seeds, num_steps)
    conditioning = policy.encode(unique)
    places = {prompt: place for place, prompt in enumerate(unique)}
    prompt_index = torch.tensor([places[prompt] for prompt in prompts]).to(noise.device, non_blocking=True)
    latents = torch.empty_like(noise)
    log_probs = noise.new_empty(len(prompts), num_steps, dtype=torch.float32)
    _fill(policy, params, timesteps, take_rows(conditioning, prompt_index), noise, latents, log_probs)
    return Trajectories(latents, log_probs, conditioning, prompt_index, timesteps, stochastic, tuple(prompts))


def replay_log_probs(
    policy: Policy, params: Params, trajectories: Trajectories, steps: Sequence[int]
) -> Float[Tensor, "batch replayed"]:
    """Compute the log-probabilities of sampled steps under `params`, differentiable in `params`.

    Args:
        policy: The policy that was sampled.
        params: The trainable leaves to replay with.
        trajectories: What `sample_trajectories` returned.
        steps: Which steps, counted from 0 in the order of sampling; one column each.

    Example:
        >>> from ddpo_core import toy
        >>> policy = toy.policy()
        >>> sampled = sample_trajectories(policy, policy.params, ["right"], num_steps=4, seeds=[0])
        >>> replay_log_probs(policy, policy.params, sampled, [0, 2]).equal(sampled.log_probs[:, [0, 2]])
        True
    """
    conditioning = take_rows(trajectories.conditioning, trajectories.prompt_index)
    columns = []
    for step in steps:
        index = torch.full_like(trajectories.prompt_index, step)
        latents = trajectories.latents[:, step].contiguous()
        transition = policy.transition(params, latents, take_rows(trajectories.timesteps, index), conditioning)
        columns.append(transition_log_prob(transition, trajectories.latents[:, step + 1]))
    return torch.stack(columns, dim=1)


def transition_log_prob(transition: Transition, latents: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    r"""Compute the log-density of `latents`, averaged over the dimensions of a latent, in float32.

        1/d sum_i [ -(x_i - mean_i)^2 / (2 std_i^2) - log std_i - 1/2 log 2 pi ]

    The *mean* over the d dimensions, as in the reference implementation, not the sum: a ratio of two such densities
    is the d-th root of the true ratio, and `clip_range=1e-4` belongs to it. Dimensions with `std == 0` are
    deterministic: they contribute 0 and no gradient.

    Example:
        >>> transition_log_prob(Transition(torch.zeros(1, 2), torch.ones(1, 1)), torch.zeros(1, 2))
        tensor([-0.9189])

    Source: Black et al. 2023, section 4.3; ddpo-pytorch, `ddim_with_logprob.py`.
    """
    deterministic = transition.std == 0
    std = torch.where(deterministic, 1.0, transition.std.float())
    normalised = (latents.float() - transition.mean.float()) / std
    log_density = -0.5 * normalised.square() - std.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(deterministic, 0.0, log_density).flatten(1).mean(1)


def stochastic_steps(timesteps: Timesteps) -> tuple[int, ...]:
    """List the steps with `std > 0`: the others have no log-probability and nothing to train.

    Example:
        >>> from ddpo_core import toy
        >>> stochastic_steps(toy.policy().timesteps(4))
        (0, 1, 2)
    """
    return tuple(step for step, std in enumerate(timesteps.std.tolist()) if std > 0)


# The buffers are made outside: tensors that are born under inference_mode cannot be saved for backward.
@torch.inference_mode()
def _fill(
    policy: Policy,
    params: Params,
    timesteps: Timesteps,
    conditioning: Conditioning,
    noise: Tensor,
    latents: Tensor,
    log_probs: Tensor,
) -> None:
    latents[:, 0] = noise[:, 0]
    steps = torch.arange(noise.shape[1] - 1, device=noise.device)
    for step, index in enumerate(steps):
        rows = take_rows(timesteps, index.expand(len(noise)))
        transition = policy.transition(params, latents[:, step].contiguous(), rows, conditioning)
        latents[:, step + 1] = transition.mean + transition.std * noise[:, step + 1]
        log_probs[:, step] = transition_log_prob(transition, latents[:, step + 1])

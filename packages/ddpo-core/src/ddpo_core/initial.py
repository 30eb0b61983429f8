"""The initial policy as a witness: how far training has gone from it, and what it sees in the samples."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.errors import DDPOError
from ddpo_core.losses import kl_penalty
from ddpo_core.randomness import gaussian_noise
from ddpo_core.rows import take_rows
from ddpo_core.sampling import stochastic_steps
from ddpo_core.types import Params, Policy, Trajectories


class InitialView(NamedTuple):
    """What the initial policy sees in samples."""

    evidence: Float[Tensor, " batch"]
    """For their prompts and against others: -1 to 1, and 0 for nothing."""
    familiarity: Float[Tensor, " batch"]
    """How well it knows such pictures: no unit, higher is more familiar."""


@torch.no_grad()
def initial_kl(policy: Policy, params: Params, trajectories: Trajectories) -> float:
    """KL divergence of a policy from the initial one, on its own trajectories, in closed form.

    The mean of `kl_penalty(params' mean, policy.params' mean, std)` over the stochastic steps; the mean over latent
    dimensions as everywhere, so that it does not grow with the size of the images. 0 before training.

    Raises:
        DDPOError: If every step is deterministic.

    Example:
        >>> from ddpo_core import sample_trajectories, toy
        >>> policy = toy.policy()
        >>> sampled = sample_trajectories(policy, policy.params, ["left"], num_steps=4, seeds=[0])
        >>> initial_kl(policy, policy.params, sampled)
        0.0

    Source: Fan et al. 2023 (DPOK), eq. 9.
    """
    steps = stochastic_steps(trajectories.timesteps)
    if not steps:
        raise DDPOError("every step of this policy is deterministic, so it has no KL divergence: want eta above 0")
    conditioning = take_rows(trajectories.conditioning, trajectories.prompt_index)
    divergences = []
    for step in steps:
        rows = take_rows(trajectories.timesteps, torch.full_like(trajectories.prompt_index, step))
        latents = trajectories.latents[:, step].contiguous()
        now = policy.transition(params, latents, rows, conditioning)
        reference = policy.transition(policy.params, latents, rows, conditioning)
        divergences.append(kl_penalty(now.mean, reference.mean, now.std))
    return torch.stack(divergences).mean().item()


@torch.no_grad()
def initial_view(
    policy: Policy,
    latents: Float[Tensor, "batch ..."],
    prompts: Sequence[str],
    others: Sequence[str],
    *,
    seeds: Sequence[int],
) -> InitialView:
    """Ask the initial policy what it sees in each sample.

    With `e(p)` its error of denoising a sample that is noised half-way (`num_train_timesteps / 2`) when told `p`:

        evidence    = (e(other) - e(prompt)) / (e(other) + e(prompt))
        familiarity = -log e(prompt)

    A diffusion model is a classifier of what it draws: it cleans a fox better when told "a fox" than "a bear". Where
    training has given up the pictures, the prompt makes no difference any more. Before that, samples become unlike
    what it was trained on, and it cleans them worse whatever it is told.

    Args:
        policy: Its initial `params` are asked, whatever the samples were drawn with.
        latents: The clean latents of the samples (`EpochInfo.latents`).
        prompts: What each was drawn for.
        others: Another prompt for each.
        seeds: The noise of each is a function of its seed.

    Raises:
        DDPOError: If the policy has no denoising error.

    Example:
        >>> from ddpo_core import toy
        >>> seen = initial_view(toy.policy(), torch.tensor([[-1.0, 0.0]]), ["left"], ["right"], seeds=[0])
        >>> seen.evidence.item() > 0.5
        True

    Source: Li et al. 2023 (Your Diffusion Model is Secretly a Zero-Shot Classifier), equation 6. Deviation: at one
        time, and relative to the size of the errors.
    """
    if policy.denoising_error is None:
        raise DDPOError("this policy has no denoising_error, which tells what it sees in a sample: want one")
    device = next(iter(policy.params.values())).device
    clean = latents.to(device).float()
    noise = gaussian_noise(seeds, clean.shape[1:]).to(device)
    time = torch.full((len(clean),), policy.num_train_timesteps // 2, device=device)
    told, mistold = (
        policy.denoising_error(policy.params, clean, noise, time, policy.encode(texts)).clamp(min=1e-30).cpu()
        for texts in (prompts, others)
    )
    return InitialView((mistold - told) / (mistold + told), -told.log())

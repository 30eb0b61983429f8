"""A policy small enough to be understood: points in the plane, sampled from two Gaussians, trained in seconds.

The noise that a perfect network would predict is known in closed form; a small trainable network is added to it and
starts at zero. The prompts "left" and "right" choose the Gaussian, and the reward asks for the point (0, 1).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.diffusion.ddim import Schedule, ddim_timesteps, ddim_transition, denoising_error
from ddpo_core.random import gaussian_noise
from ddpo_core.types import Conditioning, Params, Policy, Timesteps, Transition

_TIMES = 100
_WIDTH = 32
_SPREAD = 0.3
_CENTRES = {"left": (-1.0, 0.0), "right": (1.0, 0.0)}


def policy(*, eta: float = 1.0, seed: int = 0) -> Policy:
    """Make the toy policy: standard deviation 0.3 around (-1, 0) for "left" and (1, 0) for "right".

    Args:
        eta: As for DDIM, in [0, 1].
        seed: Decides the first layer of the trainable network.

    Example:
        >>> from ddpo_core import sample_trajectories
        >>> model = policy()
        >>> sampled = sample_trajectories(model, model.params, ["left"] * 64, num_steps=10, seeds=range(64))
        >>> bool((model.decode(sampled.latents[:, -1]).mean(0) - torch.tensor([-1.0, 0.0])).norm() < 0.2)
        True
    """

    @cache
    def timesteps(num_steps: int) -> Timesteps:
        return ddim_timesteps(_schedule(num_steps), prediction_type="epsilon", eta=eta)

    params = _initial_params(seed)
    return Policy(params, timesteps, _encode, _noise, _transition, _decode, _denoising_error, _TIMES)


def reward(
    points: Float[Tensor, "batch 2"], prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
) -> tuple[Float[Tensor, " batch"], dict[str, list[float]]]:
    """Score points by minus their squared distance to (0, 1); their height is the info.

    Example:
        >>> reward(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), ["left", "right"], [{}, {}])[0]
        tensor([-0., -1.])
    """
    distance = (points - torch.tensor([0.0, 1.0])).square().sum(1)
    return -distance, {"height": points[:, 1].tolist()}


def _alphas() -> Float[Tensor, " times"]:
    return torch.cumprod(1 - torch.linspace(1e-3, 0.1, _TIMES, dtype=torch.float64), 0)


def _schedule(num_steps: int) -> Schedule:
    time = torch.linspace(_TIMES - 1, 0, num_steps + 1).round().long()
    alphas = _alphas()[time[:-1]]
    return Schedule(time[:-1], alphas, torch.cat([alphas[1:], torch.ones(1, dtype=torch.float64)]))


def _initial_params(seed: int) -> Params:
    first = gaussian_noise([seed], (_WIDTH, 5))[0]
    return {"first": first, "bias": torch.zeros(_WIDTH), "last": torch.zeros(2, _WIDTH)}


def _encode(prompts: Sequence[str]) -> Conditioning:
    return torch.tensor([_CENTRES[prompt] for prompt in prompts])


def _noise(seeds: Sequence[int], num_steps: int) -> Tensor:
    return gaussian_noise(seeds, (num_steps + 1, 2))


def _transition(params: Params, latents: Tensor, step: Timesteps, conditioning: Conditioning) -> Transition:
    return ddim_transition(latents, _network(params, latents, step.time, conditioning), step)


def _denoising_error(params: Params, clean: Tensor, noise: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
    return denoising_error(
        lambda noisy: _network(params, noisy, time, conditioning),
        clean,
        noise,
        time,
        alphas=_alphas().float(),
        prediction_type="epsilon",
    )


def _network(params: Params, latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
    assert isinstance(conditioning, Tensor)
    alpha = _alphas().float()[time][:, None]
    inputs = torch.cat([latents, conditioning, time[:, None] / _TIMES], 1)
    learned = torch.tanh(inputs @ params["first"].T + params["bias"]) @ params["last"].T
    return _exact_noise(latents, conditioning, alpha) + learned


def _exact_noise(latents: Tensor, centres: Tensor, alpha: Tensor) -> Tensor:
    """Give the expected noise in x = sqrt(alpha) clean + sqrt(1 - alpha) noise for Gaussian clean points."""
    variance = alpha * _SPREAD**2 + 1 - alpha
    return (1 - alpha).sqrt() * (latents - alpha.sqrt() * centres) / variance


def _decode(latents: Tensor) -> Tensor:
    return latents.float()

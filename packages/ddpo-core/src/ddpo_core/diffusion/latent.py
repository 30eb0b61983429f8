"""Latent diffusion models as policies: a network in the middle, a sampler around it, a decoder behind it."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ddpo_core.diffusion.ddim import ddim_timesteps, ddim_transition
from ddpo_core.diffusion.denoising import denoising_error
from ddpo_core.diffusion.network import Network
from ddpo_core.diffusion.scheduler import ddim_schedule
from ddpo_core.randomness import gaussian_noise
from ddpo_core.types import Conditioning, Params, Policy, Timesteps, Transition

_DECODED_AT_ONCE = 8


def latent_policy(
    params: Params,
    network: Network,
    *,
    encode: Callable[[Sequence[str]], Conditioning],
    decode: Callable[[Tensor], Tensor],
    scheduler: DDIMScheduler,
    eta: float,
    latent_shape: Sequence[int],
    latent_dtype: torch.dtype,
    device: torch.device,
) -> Policy:
    """Put a policy together.

    Args:
        params: The trainable leaves to begin with.
        network: The network with its guidance.
        encode: From prompts to what the network is told.
        decode: From latents to images.
        scheduler: The noise schedule that the network was trained with.
        eta: The noise of the sampler, in [0, 1].
        latent_shape: Channels, height and width of a latent.
        latent_dtype: What trajectories are stored in.
        device: Where the network is.
    """
    prediction_type = scheduler.config.prediction_type
    clip_range = scheduler.config.clip_sample_range if scheduler.config.clip_sample else None
    alphas = scheduler.alphas_cumprod.to(device)

    @cache
    def timesteps(num_steps: int) -> Timesteps:
        table = ddim_timesteps(ddim_schedule(scheduler, num_steps), prediction_type=prediction_type, eta=eta)
        return Timesteps(*(column.to(device) for column in table))

    def noise(seeds: Sequence[int], num_steps: int) -> Tensor:
        return gaussian_noise(seeds, (num_steps + 1, *latent_shape)).to(device, latent_dtype)

    def transition(params: Params, latents: Tensor, step: Timesteps, conditioning: Conditioning) -> Transition:
        output = network(params, latents, step.time, conditioning)
        return ddim_transition(latents, output, step, clip_range=clip_range)

    def error(params: Params, clean: Tensor, noise: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        return denoising_error(
            lambda noisy: network(params, noisy, time, conditioning),
            clean,
            noise,
            time,
            alphas=alphas,
            prediction_type=prediction_type,
        )

    return Policy(params, timesteps, encode, noise, transition, decode, error, len(alphas))


def decoder(vae: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Make the function from latents to float32 images in [0, 1] of an autoencoder in `dtype`."""
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))

    def decode(latents: Tensor) -> Tensor:
        scaled = latents.float() / vae.config.scaling_factor
        if mean is not None and std is not None:
            scaled = scaled * _per_channel(std, scaled) + _per_channel(mean, scaled)
        # In slices: decoding needs far more memory per image than denoising does.
        parts = scaled.to(dtype).split(_DECODED_AT_ONCE)
        decoded = torch.cat([vae.decode(part, return_dict=False)[0] for part in parts])
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    return decode


def latent_shape(unet: Any) -> tuple[int, int, int]:
    """Give channels, height and width of the latents that a UNet was trained on."""
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return (unet.config.in_channels, height, width)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(1, -1, 1, 1)

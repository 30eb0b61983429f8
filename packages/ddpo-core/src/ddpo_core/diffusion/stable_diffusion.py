"""Stable Diffusion 1.x and 2.x as a policy: any folder or hub id that `StableDiffusionPipeline` loads."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.func import functional_call

from ddpo_core.diffusion.ddim import ddim_timesteps, ddim_transition
from ddpo_core.diffusion.denoising import denoising_error
from ddpo_core.diffusion.loading import choose_device, choose_dtype, load_pipeline
from ddpo_core.diffusion.lora import attach_lora
from ddpo_core.diffusion.scheduler import ddim_schedule, ddim_scheduler
from ddpo_core.errors import DDPOError
from ddpo_core.randomness import gaussian_noise
from ddpo_core.types import Conditioning, Params, Policy, Timesteps, Transition

_DECODED_AT_ONCE = 8

Network = Callable[[Params, Tensor, Tensor, Tensor], Tensor]
"""`(params, latents, time, embeddings) -> output`, guidance included."""


def load_policy(
    model: str,
    *,
    lora_rank: int = 4,
    lora_alpha: float | None = None,
    guidance_scale: float = 5.0,
    eta: float = 1.0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Policy:
    """Load a Stable Diffusion 1.x or 2.x model as a policy with LoRA on every attention projection.

    The guidance is part of the policy: it is sampled and trained with the same. The safety checker is not loaded;
    look at what you publish.

    Args:
        model: `"builtin:emoji"`, a folder in diffusers' layout, or an id on the Hugging Face hub.
        lora_rank: The rank of the adapters, at least 1.
        lora_alpha: Their scale is `lora_alpha / lora_rank`; None means a scale of 1.
        guidance_scale: Classifier-free guidance, at least 1; 1 is no guidance and costs half.
        eta: The noise of the sampler, from 0 (deterministic, cannot be trained) to 1.
        device: None chooses CUDA where there is one.
        dtype: Of the frozen networks; None chooses bfloat16 on CUDA and float32 elsewhere. What is trained, the
            latents and the log-probabilities are float32 in any case.

    Raises:
        DDPOError: If the model cannot be loaded or is of another kind, or an argument is out of range.

    Source: Rombach et al. 2022; ddpo-pytorch, `pipeline_with_logprob.py`.
    """
    place = choose_device(device)
    pipeline = load_pipeline(model)
    return stable_diffusion_policy(
        pipeline,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        guidance_scale=guidance_scale,
        eta=eta,
        device=place,
        dtype=choose_dtype(dtype, place),
    )


def stable_diffusion_policy(
    pipeline: StableDiffusionPipeline,
    *,
    lora_rank: int = 4,
    lora_alpha: float | None = None,
    guidance_scale: float = 5.0,
    eta: float = 1.0,
    device: torch.device,
    dtype: torch.dtype,
    latent_dtype: torch.dtype = torch.float32,
) -> Policy:
    """Make a policy of a pipeline in memory, whose networks are moved, frozen and given adapters.

    Arguments and errors are those of `load_policy`, and `latent_dtype` is that in which trajectories are stored.
    """
    if not guidance_scale >= 1:
        raise DDPOError(f"guidance_scale={guidance_scale!r}: want at least 1, which means no guidance")
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        # Not network.to: diffusers' own warns about dtypes even where it has no reason to.
        torch.nn.Module.to(network.requires_grad_(False).eval(), device=device, dtype=dtype)
    # Convolutions are 10 to 20 % faster in this layout, on CPUs as well.
    for network in (pipeline.unet, pipeline.vae):
        torch.nn.Module.to(network, memory_format=torch.channels_last)
    params = attach_lora(pipeline.unet, rank=lora_rank, alpha=lora_alpha)
    scheduler = ddim_scheduler(pipeline.scheduler.config)
    clip_range = scheduler.config.clip_sample_range if scheduler.config.clip_sample else None

    def encode(prompts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            embeddings: Tensor = pipeline.encode_prompt(list(prompts), device, 1, False)[0]
        return embeddings

    network = _network(pipeline.unet, dtype)
    if guidance_scale != 1:
        network = _guided(network, encode([""]), guidance_scale)

    @cache
    def timesteps(num_steps: int) -> Timesteps:
        schedule = ddim_schedule(scheduler, num_steps)
        table = ddim_timesteps(schedule, prediction_type=scheduler.config.prediction_type, eta=eta)
        return Timesteps(*(column.to(device) for column in table))

    def noise(seeds: Sequence[int], num_steps: int) -> Tensor:
        return gaussian_noise(seeds, (num_steps + 1, *_latent_shape(pipeline.unet))).to(device, latent_dtype)

    def transition(params: Params, latents: Tensor, step: Timesteps, conditioning: Conditioning) -> Transition:
        assert isinstance(conditioning, Tensor)
        output = network(params, latents, step.time, conditioning)
        return ddim_transition(latents, output, step, clip_range=clip_range)

    alphas = scheduler.alphas_cumprod.to(device)

    def error(params: Params, clean: Tensor, noise: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        assert isinstance(conditioning, Tensor)
        return denoising_error(
            lambda noisy: network(params, noisy, time, conditioning),
            clean,
            noise,
            time,
            alphas=alphas,
            prediction_type=scheduler.config.prediction_type,
        )

    decode = _decoder(pipeline.vae, dtype)
    return Policy(params, timesteps, encode, noise, transition, decode, error, len(alphas))


def _network(unet: Any, dtype: torch.dtype) -> Network:
    def run(params: Params, latents: Tensor, time: Tensor, embeddings: Tensor) -> Tensor:
        inputs = (latents.to(dtype), time, embeddings)
        output: Tensor = functional_call(unet, params, inputs, {"return_dict": False})[0]
        return output

    return run


def _guided(network: Network, negative: Tensor, scale: float) -> Network:
    """Steer by classifier-free guidance: both outputs in one call, combined in float32 (Ho & Salimans 2022, eq. 6)."""

    def run(params: Params, latents: Tensor, time: Tensor, embeddings: Tensor) -> Tensor:
        both = torch.cat([negative.expand_as(embeddings), embeddings])
        output = network(params, torch.cat([latents, latents]), torch.cat([time, time]), both)
        unconditional, conditional = output.float().chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return run


def _latent_shape(unet: Any) -> tuple[int, int, int]:
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return (unet.config.in_channels, height, width)


def _decoder(vae: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def decode(latents: Tensor) -> Tensor:
        scaled = latents.to(dtype) / vae.config.scaling_factor
        # In slices: decoding needs far more memory per image than denoising does.
        decoded = torch.cat([vae.decode(part, return_dict=False)[0] for part in scaled.split(_DECODED_AT_ONCE)])
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    return decode

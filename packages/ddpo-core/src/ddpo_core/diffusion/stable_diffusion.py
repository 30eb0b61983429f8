"""Stable Diffusion 1.x, 2.x and XL as policies: any folder or hub id that diffusers loads."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ddpo_core.diffusion.latent import decoder, latent_policy, latent_shape
from ddpo_core.diffusion.loading import choose_device, choose_dtype, load_pipeline
from ddpo_core.diffusion.lora import attach_lora
from ddpo_core.diffusion.network import enable_checkpointing, functional_network, guided
from ddpo_core.diffusion.scheduler import ddim_scheduler
from ddpo_core.diffusion.text import text_of
from ddpo_core.errors import DDPOError
from ddpo_core.types import Params, Policy


def load_policy(
    model: str,
    *,
    lora_rank: int = 4,
    lora_alpha: float | None = None,
    guidance_scale: float = 5.0,
    eta: float = 1.0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
) -> Policy:
    """Load a Stable Diffusion 1.x, 2.x or XL model as a policy with LoRA on every attention projection.

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
        gradient_checkpointing: Recompute activations in backward: far less memory, a third more time, same numbers.
        compile: Compile the UNet at first use: faster after a minute or more, with results that differ in their last
            digits between sampling and training, so that ratios begin within about 1e-6 of 1.

    Raises:
        DDPOError: If the model cannot be loaded or is of another kind, or an argument is out of range.

    Source: Rombach et al. 2022; ddpo-pytorch, `pipeline_with_logprob.py`.
    """
    return _load(
        partial(stable_diffusion_policy, lora_rank=lora_rank, lora_alpha=lora_alpha),
        model,
        device,
        dtype,
        compile,
        guidance_scale=guidance_scale,
        eta=eta,
        gradient_checkpointing=gradient_checkpointing,
    )


def load_full_policy(
    model: str,
    *,
    guidance_scale: float = 5.0,
    eta: float = 1.0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
) -> Policy:
    """Load a Stable Diffusion 1.x, 2.x or XL model as a policy whose whole UNet is trained.

    The paper trains so, with a learning rate of 1e-5. The optimizer keeps two moments of every weight, and an update
    needs a second copy of all three: for Stable Diffusion 1.x about 30 GB in all. Export with `save_pipeline`.

    Arguments and errors are those of `load_policy`; with a half `dtype` the float32 masters are cast for each call.

    Source: Black et al. 2023, appendix; jannerm/ddpo, `pipeline/policy_gradient.py`.
    """
    return _load(
        full_stable_diffusion_policy,
        model,
        device,
        dtype,
        compile,
        guidance_scale=guidance_scale,
        eta=eta,
        gradient_checkpointing=gradient_checkpointing,
    )


def stable_diffusion_policy(
    pipeline: DiffusionPipeline,
    *,
    lora_rank: int = 4,
    lora_alpha: float | None = None,
    device: torch.device,
    dtype: torch.dtype,
    **options: Any,
) -> Policy:
    """Make a policy of a pipeline in memory, whose networks are moved, frozen and given adapters.

    Arguments and errors are those of `load_policy`, with two more: `latent_dtype` is that in which trajectories are
    stored (float32), and `compiler` a function from module to module in the place of `compile` (None).
    """
    _freeze(pipeline.unet, device, dtype)
    params = attach_lora(pipeline.unet, rank=lora_rank, alpha=lora_alpha)
    return _policy(pipeline, params, device=device, dtype=dtype, leaf_dtype=torch.float32, **options)


def full_stable_diffusion_policy(
    pipeline: DiffusionPipeline, *, device: torch.device, dtype: torch.dtype, **options: Any
) -> Policy:
    """Make a policy of a pipeline in memory, whose networks are moved and frozen, and whose UNet is trained whole.

    Arguments and errors are those of `stable_diffusion_policy`, without adapters.
    """
    # The masters are the module's own weights, so that they are there once and not once per dtype.
    _freeze(pipeline.unet, device, torch.float32)
    params = {name: leaf.detach() for name, leaf in pipeline.unet.named_parameters()}
    return _policy(pipeline, params, device=device, dtype=dtype, leaf_dtype=dtype, **options)


def _load(
    make_policy: Callable[..., Policy],
    model: str,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    compile: bool,
    **options: Any,
) -> Policy:
    place = choose_device(device)
    return make_policy(
        load_pipeline(model),
        device=place,
        dtype=choose_dtype(dtype, place),
        compiler=torch.compile if compile else None,
        **options,
    )


def _policy(
    pipeline: DiffusionPipeline,
    params: Params,
    *,
    guidance_scale: float = 5.0,
    eta: float = 1.0,
    device: torch.device,
    dtype: torch.dtype,
    leaf_dtype: torch.dtype,
    latent_dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    compiler: Callable[[nn.Module], Any] | None = None,
) -> Policy:
    if not guidance_scale >= 1:
        raise DDPOError(f"guidance_scale={guidance_scale!r}: want at least 1, which means no guidance")
    # The autoencoder of SDXL overflows in float16.
    vae_dtype = torch.float32 if dtype == torch.float16 and pipeline.vae.config.force_upcast else dtype
    _freeze(pipeline.vae, device, vae_dtype)
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipeline, name, None) is not None:
            _freeze(getattr(pipeline, name), device, dtype)
    if gradient_checkpointing:
        enable_checkpointing(pipeline.unet)
    text = text_of(pipeline, device)
    network = functional_network(
        pipeline.unet, arguments=text.arguments, dtype=dtype, leaf_dtype=leaf_dtype, compiler=compiler
    )
    if guidance_scale != 1:
        network = guided(network, text.negative(), guidance_scale)
    return latent_policy(
        params,
        network,
        encode=text.encode,
        decode=decoder(pipeline.vae, vae_dtype),
        scheduler=ddim_scheduler(pipeline.scheduler.config),
        eta=eta,
        latent_shape=latent_shape(pipeline.unet),
        latent_dtype=latent_dtype,
        device=device,
    )


def _freeze(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    # Not network.to: diffusers' own warns about dtypes even where it has no reason to.
    nn.Module.to(network.requires_grad_(False).eval(), device=device, dtype=dtype)
    # Convolutions are 10 to 20 % faster in this layout, on CPUs as well.
    nn.Module.to(network, memory_format=torch.channels_last)

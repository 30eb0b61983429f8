"""Stable Diffusion 1.x, 2.x and XL as policies: found, loaded, and put together from frozen networks and a sampler."""

import hashlib
import inspect
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from ddpo_core.diffusion.ddim import (
    ddim_schedule,
    ddim_scheduler,
    ddim_timesteps,
    ddim_transition,
    denoising_error,
    warn_of_a_stub,
)
from ddpo_core.diffusion.network import (
    LORA_TARGETS,
    Network,
    attach_lora,
    attach_saved_lora,
    cast_leaves,
    enable_checkpointing,
    functional_network,
    guided,
    use_plain_attention,
)
from ddpo_core.diffusion.text import text_of
from ddpo_core.emoji import pipeline_path
from ddpo_core.errors import DDPOError
from ddpo_core.random import gaussian_noise
from ddpo_core.sampling import to_device
from ddpo_core.types import Conditioning, Params, Policy, Timesteps, Transition

_BUILTIN = "builtin:emoji"
# What is not loaded, and what is not asked for.
_LEFT_OUT: dict[Any, dict[str, Any]] = {
    StableDiffusionPipeline: {
        **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder")),
        "requires_safety_checker": False,
    },
    StableDiffusionXLPipeline: {**dict.fromkeys(("feature_extractor", "image_encoder")), "add_watermarker": False},
}
_DECODED_AT_ONCE = 8
# Numbers looked at in every weight: enough to tell any two trainings apart, and 0.1 s for all of SDXL.
_NUMBERS_OF_A_WEIGHT = 64


def load_policy(
    model: str,
    *,
    trainable: Literal["lora", "unet"] = "lora",
    lora: str | os.PathLike[str] | None = None,
    lora_rank: int | None = None,
    lora_alpha: float | None = None,
    lora_targets: Sequence[str] | None = None,
    guidance_scale: float = 5.0,
    negative_prompt: str | None = None,
    eta: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    variant: str | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    vae_dtype: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
) -> Policy:
    """Load a Stable Diffusion 1.x, 2.x or XL model as a policy: a LoRA on its attention is trained, or its whole UNet.

    The guidance is part of the policy: it is sampled and trained with the same. The safety checker is not loaded;
    look at what you publish. An option that would do nothing beside the others is an error.

    Training a whole UNet, as the paper does with a learning rate of 1e-5, takes 11 to 14 times its weights in float32
    (the initial ones, params and two moments before and after an update, gradients and what they are summed in, and the
    optimizer's own): up to 48 GB for Stable Diffusion 1.x, where a LoRA takes megabytes.

    Args:
        model: `"builtin:emoji"`, a folder in diffusers' layout, or an id on the Hugging Face hub.
        trainable: `"lora"` (export with `save_lora`) or `"unet"` (export with `save_pipeline`).
        lora: Start from this saved LoRA, with its rank, scale and targets: a folder or file that `save_lora` or
            diffusers' `save_lora_weights` wrote. None starts from one that changes nothing.
        lora_rank: The rank of a fresh LoRA, at least 1; None means 4.
        lora_alpha: Its scale is `lora_alpha / lora_rank`; None means a scale of 1.
        lora_targets: The modules that it adapts, by name or the end of it; None means every attention projection.
        guidance_scale: Classifier-free guidance, at least 1; 1 is no guidance and costs half.
        negative_prompt: What guidance steers away from; None means what the model's own pipeline does (the empty
            prompt, or zeros for most of SDXL).
        eta: The noise of the sampler, from 0 (deterministic, cannot be trained) to 1.
        height: Of the images in pixels, a multiple of the autoencoder's factor (mostly 8); None means the model's own.
        width: Likewise.
        variant: Load files of this variant, such as `"fp16"`, where the model has them.
        revision: Pin a model of the hub to a branch, tag or commit; an error for anything else.
        device: None chooses CUDA where there is one.
        dtype: Of the frozen networks, and of what is trained while they compute; None chooses bfloat16 on CUDA and
            on CPUs with matrix instructions for it (AMX), float32 elsewhere. The masters of what is trained, the
            latents and the log-probabilities are float32.
        vae_dtype: Of the autoencoder; None means `dtype`, or float32 where that would overflow (SDXL in float16).
        gradient_checkpointing: Recompute activations in backward: far less memory, a third more time, same numbers.
        compile: Compile the UNet's transformer blocks at first use, which takes a minute or more before it is faster.
            Sampling and training then differ in their last digits, so that ratios begin near 1 and not at it.

    Raises:
        DDPOError: If the model or LoRA cannot be loaded or do not fit, or an argument is out of range or idle.

    Source: Rombach et al. 2022; Black et al. 2023; ddpo-pytorch, `pipeline_with_logprob.py`.
    """
    options: dict[str, Any] = {
        "trainable": trainable,
        "lora": lora,
        "lora_rank": lora_rank,
        "lora_alpha": lora_alpha,
        "lora_targets": lora_targets,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "eta": eta,
    }
    # Before gigabytes are read.
    _check_options(**options)
    place = choose_device(device)
    return stable_diffusion_policy(
        load_pipeline(model, variant=variant, revision=revision),
        **options,
        height=height,
        width=width,
        device=place,
        dtype=dtype,
        vae_dtype=vae_dtype,
        gradient_checkpointing=gradient_checkpointing,
        compile=compile,
    )


def stable_diffusion_policy(
    pipeline: DiffusionPipeline,
    *,
    trainable: Literal["lora", "unet"] = "lora",
    lora: str | os.PathLike[str] | None = None,
    lora_rank: int | None = None,
    lora_alpha: float | None = None,
    lora_targets: Sequence[str] | None = None,
    guidance_scale: float = 5.0,
    negative_prompt: str | None = None,
    eta: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    vae_dtype: torch.dtype | None = None,
    latent_dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    compile: bool = False,
) -> Policy:
    """Make a policy of a diffusers pipeline in memory, whose networks are moved, cast, frozen and given adapters.

    The pipeline is the policy's from then on, and makes no second one. Arguments and errors are those of
    `load_policy`, with one more: `latent_dtype` is that in which trajectories are stored.
    """
    _check_options(trainable, lora, lora_rank, lora_alpha, lora_targets, guidance_scale, negative_prompt, eta)
    if any(".lora_" in name for name, _ in pipeline.unet.named_parameters()):
        raise DDPOError(
            "the pipeline's UNet has adapters already: fuse or unload them, or load the pipeline again for each policy"
        )
    scheduler = ddim_scheduler(pipeline.scheduler)
    shape = _latent_shape(pipeline, height, width)
    identity = fingerprint(pipeline)
    place = choose_device(device)
    compute_dtype = choose_dtype(dtype, place)
    # The autoencoder of SDXL overflows in float16.
    overflows = compute_dtype == torch.float16 and pipeline.vae.config.force_upcast
    vae_dtype = vae_dtype or (torch.float32 if overflows else compute_dtype)
    # The masters of a whole UNet are the module's own weights, so that they are there once and not once per dtype.
    unet_dtype = torch.float32 if trainable == "unet" else compute_dtype
    # Channels-last is what convolutions of a GPU want; on a CPU a large UNet is up to 5 % slower for it.
    _freeze(pipeline.unet, place, unet_dtype, torch.contiguous_format if place.type == "cpu" else torch.channels_last)
    _freeze(pipeline.vae, place, vae_dtype)
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipeline, name, None) is not None:
            _freeze(getattr(pipeline, name), place, compute_dtype)
    params, scale = _trained(pipeline.unet, trainable, lora, lora_rank, lora_alpha, lora_targets)
    if place.type == "cpu" and compute_dtype != torch.float32:
        use_plain_attention(pipeline.unet)
    if gradient_checkpointing:
        enable_checkpointing(pipeline.unet)
    factor = pipeline.vae_scale_factor
    text = text_of(pipeline, place, height=shape[1] * factor, width=shape[2] * factor)
    network = functional_network(pipeline.unet, arguments=text.arguments, dtype=compute_dtype, compile=compile)
    if guidance_scale != 1:
        network = guided(network, text.negative(negative_prompt), guidance_scale)
    policy = _latent_policy(
        params,
        network,
        scheduler,
        encode=text.encode,
        decode=decoder(pipeline.vae, vae_dtype),
        eta=eta,
        shape=shape,
        dtype=latent_dtype,
        device=place,
    )
    return policy._replace(fingerprint=identity, lora_scale=scale, cast=partial(cast_leaves, dtype=compute_dtype))


def load_pipeline(model: str, *, variant: str | None = None, revision: str | None = None) -> DiffusionPipeline:
    """Load the networks of a Stable Diffusion 1.x, 2.x or XL model, float32 on the CPU, without the safety checker.

    Arguments are those of `load_policy`.

    Raises:
        DDPOError: If there is no such model, variant or revision, it is damaged, or it is of another kind.
    """
    source = _find(model)
    if revision is not None and (model == _BUILTIN or Path(source).exists()):
        raise DDPOError(f"revision={revision!r} pins a model of the hub, and {model!r} is on this disk: leave it out")
    with quietly():
        try:
            name = DiffusionPipeline.load_config(source, revision=revision).get("_class_name")
            kind = next((kind for kind in _LEFT_OUT if kind.__name__ == name), None)
            if kind is None:
                raise DDPOError(
                    f"model {model!r} is a {name}; want a StableDiffusionPipeline or a StableDiffusionXLPipeline "
                    "(Stable Diffusion 1.x, 2.x or XL)"
                )
            return kind.from_pretrained(source, variant=variant, revision=revision, **_LEFT_OUT[kind])
        except DDPOError:
            raise
        # Damaged files surface as almost anything: JSON, safetensors, tokenizers and torch have their own errors.
        except Exception as error:
            raise DDPOError(f"model {model!r} cannot be loaded: {_first_line(error)}") from error


def fingerprint(pipeline: Any) -> str:
    """Name what the networks of a pipeline in memory are: 16 hexadecimal digits that no device or layout changes.

    A hash over the architectures, the noise schedule, and of every weight its shape and up to 64 numbers spread evenly
    through it, as float32. Stable Diffusion 1.4 and 1.5 have equal shapes: the numbers tell them apart. Weights that
    were rounded (cast to half and back) are others, unless they had been halves before.
    """
    schedule = ddim_scheduler(pipeline.scheduler)
    digest = hashlib.sha256(json.dumps(_chosen(schedule), sort_keys=True).encode())
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        network = getattr(pipeline, name, None)
        if network is None:
            continue
        # transformers renames parameters and configuration keys from version to version; diffusers does not.
        if name in ("unet", "vae"):
            digest.update(json.dumps(_chosen(network), sort_keys=True).encode())
        numbers = []
        for weight in network.parameters():
            digest.update(str(tuple(weight.shape)).encode())
            count = min(weight.numel(), _NUMBERS_OF_A_WEIGHT)
            places = torch.arange(count, device=weight.device) * weight.numel() // max(count, 1)
            numbers.append(weight.detach().reshape(-1)[places].float())
        digest.update(torch.cat(numbers).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def choose_device(device: str | torch.device | None) -> torch.device:
    """Check a device, or choose CUDA where there is one.

    Raises:
        DDPOError: If there is no such device here.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    # torch raises AssertionError where it was built without CUDA, RuntimeError for the rest.
    except (RuntimeError, AssertionError) as error:
        raise DDPOError(f"device {str(device)!r} cannot be used: {_first_line(error)}") from None
    return chosen


def choose_dtype(dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Choose bfloat16 on CUDA and on CPUs that have matrix instructions for it (AMX), float32 elsewhere, unless told.

    Example:
        >>> choose_dtype(None, torch.device("cuda"))
        torch.bfloat16
    """
    if dtype is not None:
        return dtype
    is_fast = device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if is_fast else torch.float32


def decoder(vae: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Make the function from latents to float32 images in [0, 1] of an autoencoder in `dtype`.

    Pixels that are NaN or infinite stay what they are, so that whoever scores the images sees them.
    """

    @cache
    def per_channel(name: str, device: torch.device) -> Tensor | None:
        values = getattr(vae.config, name, None)
        return None if values is None else torch.tensor(values, device=device).view(1, -1, 1, 1)

    def decode(latents: Tensor) -> Tensor:
        scaled = latents.float() / vae.config.scaling_factor
        mean, std = (per_channel(name, latents.device) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            scaled = scaled * std + mean
        # In slices: decoding needs far more memory per image than denoising does.
        parts = scaled.to(dtype).split(_DECODED_AT_ONCE)
        decoded = torch.cat([vae.decode(part, return_dict=False)[0] for part in parts])
        pixels = decoded.float() / 2 + 0.5
        return torch.where(pixels.isinf(), pixels, pixels.clamp(0, 1))

    return decode


@contextmanager
def quietly() -> Iterator[None]:
    """Keep both libraries' loading bars off the terminal, which belongs to the caller."""
    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _check_options(
    trainable: str,
    lora: Any,
    lora_rank: int | None,
    lora_alpha: float | None,
    lora_targets: Sequence[str] | None,
    guidance_scale: float,
    negative_prompt: str | None,
    eta: float,
) -> None:
    """Refuse what is out of range, and what would do nothing."""
    if trainable not in ("lora", "unet"):
        raise DDPOError(f"trainable={trainable!r}: want 'lora' or 'unet'")
    of_a_fresh_lora = {"lora_rank": lora_rank, "lora_alpha": lora_alpha, "lora_targets": lora_targets}
    for name, value in of_a_fresh_lora.items():
        if value is not None and lora is not None:
            raise DDPOError(f"{name}={value!r} is for a fresh LoRA, and {str(lora)!r} brings its own: leave one out")
    for name, value in {"lora": lora, **of_a_fresh_lora}.items():
        if value is not None and trainable == "unet":
            raise DDPOError(f"{name}={value!r} does nothing with trainable='unet': leave it out, or want 'lora'")
    if lora_rank is not None and lora_rank < 1:
        raise DDPOError(f"lora_rank={lora_rank!r}: want at least 1")
    if lora_alpha is not None and not 0 < lora_alpha < math.inf:
        raise DDPOError(f"lora_alpha={lora_alpha!r}: want a number above 0")
    if isinstance(lora_targets, str) or (lora_targets is not None and not lora_targets):
        raise DDPOError(f"lora_targets={lora_targets!r}: want a list of the names of modules, such as {LORA_TARGETS}")
    if not guidance_scale >= 1:
        raise DDPOError(f"guidance_scale={guidance_scale!r}: want at least 1, which means no guidance")
    if negative_prompt is not None and guidance_scale == 1:
        raise DDPOError(
            f"negative_prompt={negative_prompt!r} does nothing without guidance: want guidance_scale above 1"
        )
    if not 0 <= eta <= 1:
        raise DDPOError(f"eta={eta!r}: want a number from 0 (deterministic, nothing to train) to 1")


def _find(model: str) -> str:
    if model.startswith("builtin:"):
        if model != _BUILTIN:
            raise DDPOError(f"model {model!r} is not built in; want {_BUILTIN!r}, a diffusers folder or a hub id")
        return str(pipeline_path())
    if Path(model).exists() and not (Path(model) / "model_index.json").is_file():
        raise DDPOError(f"model {model!r} is no diffusers folder: want one with a model_index.json")
    looks_like_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if not Path(model).exists() and not looks_like_hub_id:
        raise DDPOError(
            f"model {model!r} does not exist; want {_BUILTIN!r}, a diffusers folder or a hub id (owner/name)"
        )
    return model


def _latent_shape(pipeline: Any, height: int | None, width: int | None) -> tuple[int, int, int]:
    """Give channels, height and width of the latents of images of this size; None is what the UNet was trained on."""
    size, factor = pipeline.unet.config.sample_size, pipeline.vae_scale_factor
    own = (size, size) if isinstance(size, int) else size
    for name, pixels in (("height", height), ("width", width)):
        if pixels is not None and (pixels < 1 or pixels % factor):
            near = max(round(pixels / factor), 1) * factor
            raise DDPOError(f"{name}={pixels!r}: want a multiple of {factor} pixels, such as {near}")
    return (
        pipeline.unet.config.in_channels,
        own[0] if height is None else height // factor,
        own[1] if width is None else width // factor,
    )


def _freeze(
    network: nn.Module, device: torch.device, dtype: torch.dtype, layout: torch.memory_format = torch.channels_last
) -> None:
    # Not network.to: diffusers' own warns about dtypes even where it has no reason to.
    nn.Module.to(network.requires_grad_(False).eval(), device=device, dtype=dtype)
    nn.Module.to(network, memory_format=layout)


def _trained(
    unet: Any,
    trainable: str,
    lora: str | os.PathLike[str] | None,
    rank: int | None,
    alpha: float | None,
    targets: Sequence[str] | None,
) -> tuple[Params, float | None]:
    """Give the leaves to train, and the scale of a LoRA."""
    if trainable == "unet":
        return {name: leaf.detach() for name, leaf in unet.named_parameters()}, None
    if lora is not None:
        return attach_saved_lora(unet, lora)
    rank = 4 if rank is None else rank
    scale = 1.0 if alpha is None else alpha / rank
    return attach_lora(unet, rank=rank, scale=scale, targets=targets or LORA_TARGETS), scale


def _latent_policy(
    params: Params,
    network: Network,
    scheduler: Any,
    *,
    encode: Callable[[Sequence[str]], Conditioning],
    decode: Callable[[Tensor], Tensor],
    eta: float,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Policy:
    """Put a sampler around a network, in front of a decoder; `shape` and `dtype` are those of stored latents."""
    prediction_type = scheduler.config.prediction_type
    clip_range = scheduler.config.clip_sample_range if scheduler.config.clip_sample else None
    alphas = scheduler.alphas_cumprod.to(device)

    @cache
    def timesteps(num_steps: int) -> Timesteps:
        table = ddim_timesteps(ddim_schedule(scheduler, num_steps), prediction_type=prediction_type, eta=eta)
        if eta > 0:
            warn_of_a_stub(scheduler, num_steps)
        return Timesteps(*(column.to(device) for column in table))

    def noise(seeds: Sequence[int], num_steps: int) -> Tensor:
        return to_device(gaussian_noise(seeds, (num_steps + 1, *shape)).to(dtype), device)

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


def _chosen(configured: Any) -> dict[str, str]:
    """Give what a part of a pipeline is configured to other than by default: a new version has new defaults."""
    usual = inspect.signature(type(configured).__init__).parameters
    # As JSON, where a tuple of the code is the list of the file.
    texts = {name: json.dumps(value, default=str) for name, value in configured.config.items() if name in usual}
    return {name: text for name, text in texts.items() if text != json.dumps(usual[name].default, default=str)}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

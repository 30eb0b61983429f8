"""What one training step of Stable Diffusion 1.4 with LoRA takes, without and with gradient checkpointing.

    python benchmarks/sd_step.py [--device cuda] [--dtype bfloat16] [--guidance-scale 5] [--threads 1]

The UNet has the real shape (859.5 M weights, latents 64 x 64 x 4 for 512 x 512 pixels, cross attention 768) and random
weights; text encoder and autoencoder are small ones with its interfaces, because neither takes part in the step. Each
variant runs in a process of its own, so that its peak memory is its own. Prints one JSON object.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ddpo_core import Pairs, adamw, ddpo_is, init, sample_trajectories, train_step
from ddpo_core.diffusion.models import choose_device, choose_dtype, stable_diffusion_policy

TOKENS = 77
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    """Measure both variants and print."""
    options = _parse()
    device = choose_device(options.device)
    dtype = choose_dtype(getattr(torch, options.dtype) if options.dtype else None, device)
    context = multiprocessing.get_context("spawn")
    found = {}
    for name, checkpointing in (("plain", False), ("gradient_checkpointing", True)):
        with context.Pool(1) as pool:
            found[name] = pool.apply(_measure, (options, str(device), dtype, checkpointing))
    print(json.dumps({**vars(options), "device": str(device), "dtype": str(dtype), **found}, indent=1))


def _measure(options: argparse.Namespace, device: str, dtype: torch.dtype, checkpointing: bool) -> dict[str, Any]:
    """Sample one trajectory and train its first step."""
    torch.set_num_threads(options.threads)
    place = torch.device(device)
    policy = stable_diffusion_policy(
        random_pipeline(),
        guidance_scale=options.guidance_scale,
        device=place,
        dtype=dtype,
        gradient_checkpointing=checkpointing,
    )
    optimizer = adamw(3e-4)
    state = init(policy, optimizer, seed=0)
    prompts, seeds = ["a cat"] * options.batch_size, range(options.batch_size)
    sampled, seconds_sampling = _timed(
        lambda: sample_trajectories(policy, state.params, prompts, num_steps=options.num_steps, seeds=seeds), place
    )
    samples = torch.arange(options.batch_size, device=place)
    pairs = Pairs(samples, torch.zeros_like(samples))  # each sample's first step
    (_, metrics), seconds_training = _timed(
        lambda: train_step(
            state,
            sampled,
            torch.ones(options.batch_size, device=place),
            pairs,
            policy=policy,
            optimizer=optimizer,
            objective=ddpo_is(),
            micro_batch_size=options.batch_size,
            max_grad_norm=1.0,
        ),
        place,
    )
    return {
        "latents": list(sampled.latents.shape),
        "conditioning": list(sampled.conditioning.shape),
        "trained_parameters": sum(leaf.numel() for leaf in state.params.values()),
        "seconds_sample_step": round(seconds_sampling / options.num_steps, 3),
        "seconds_training_micro_batch": round(seconds_training, 3),
        "ratio_mean": metrics["ratio_mean"].item(),
        "grad_norm": metrics["grad_norm"].item(),
        "peak_gigabytes": round(_peak_bytes(place) / 1e9, 2),
    }


def random_pipeline(unet: Mapping[str, Any] | None = None, *, pixels: int = 512) -> StableDiffusionPipeline:
    """Make Stable Diffusion 1.4 with random weights and small neighbours of the UNet, which may be another's."""
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: place for place, token in enumerate(tokens)}
    text = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=768,
        intermediate_size=768,
        num_hidden_layers=1,
        num_attention_heads=12,
        max_position_embeddings=TOKENS,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=pixels,
    )
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TOKENS),
        unet=UNet2DConditionModel(
            **{"sample_size": pixels // 8, "cross_attention_dim": 768, "attention_head_dim": 8, **(unet or {})}
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _timed(run: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    start = time.perf_counter()
    value = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return value, time.perf_counter() - start


def _peak_bytes(device: torch.device) -> int:
    """On a GPU what tensors took at most, else what the whole process did."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu, cuda, cuda:1; left out: the best there is")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="left out: by the device")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--num-steps", type=int, default=2)
    parser.add_argument("--guidance-scale", type=float, default=5.0, help="1 halves the rows of every call")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

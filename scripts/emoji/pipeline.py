"""Put the trained parts together as a Stable Diffusion pipeline in half precision, and draw what it makes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from denoiser import Denoiser, build_scheduler


def save_pipeline(denoiser: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a folder that `StableDiffusionPipeline.from_pretrained` takes: safetensors, the large parts in float16."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    # transformers loads what is stored, diffusers float32: stored in half, the two would not fit each other.
    pipeline.text_encoder.float()
    pipeline.save_pretrained(folder, safe_serialization=True)


def draw_samples(
    folder: Path, prompts: Sequence[str], *, num_steps: int, guidance_scale: float, eta: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Sample with diffusers' own pipeline; uint8 [prompts, 64, 64, 3]."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    images = [
        pipeline(
            list(prompts[start : start + 64]),
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            generator=generators[start : start + 64],
            output_type="np",
        ).images
        for start in range(0, len(prompts), 64)
    ]
    return (np.concatenate(images) * 255).round().astype(np.uint8)


def save_sheet(images: np.ndarray, path: Path, *, columns: int) -> None:
    """Save the images side by side, `columns` in a row."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * 66, rows * 66), "white")
    for index, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (index % columns * 66 + 1, index // columns * 66 + 1))
    sheet.save(path)

"""Train the autoencoder of the embedded world: 64x64 pixels to 8x8 latents of 16 channels."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from loop import Recipe, train

RECIPE = Recipe(name="autoencoder", num_steps=2_600, batch_size=8, learning_rate=1.5e-3)
# No cooldown but the average of the weights: this fixes the encoder, and its decoder is trained on.
FINE_RECIPE = Recipe(name="autoencoder_fine", num_steps=750, batch_size=16, learning_rate=1e-3, cooldown=1e-3)
DECODER_RECIPE = Recipe(name="decoder", num_steps=4_000, batch_size=16, learning_rate=1e-3)
_LATENT_CHANNELS = 16


def build_autoencoder() -> AutoencoderKL:
    """One normalisation group: with more, each sample loses its mean colour."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=_LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=64,
        mid_block_add_attention=False,
    )
    _start_almost_linear(model)
    return model.to(memory_format=torch.channels_last)


def train_autoencoder(folder: Path, pixels: np.ndarray) -> AutoencoderKL:
    """Train with resumable state in `folder`, roughly and then finely; returns the moving average of the weights."""
    torch.manual_seed(0)
    vae = build_autoencoder()
    for recipe in (RECIPE, FINE_RECIPE):
        vae = train(vae, partial(_loss, pixels=pixels, batch_size=recipe.batch_size), folder, recipe)
    return vae


def train_decoder(folder: Path, vae: AutoencoderKL, pixels: np.ndarray) -> AutoencoderKL:
    """Train the decoder on for a fixed encoder: the latents stay as they are, the pictures get sharper."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss_fn(model: AutoencoderKL, rng: np.random.Generator) -> Tensor:
        images = _batch(pixels, rng, DECODER_RECIPE.batch_size)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = model.encode(images).latent_dist.sample()
            decoded = model.decode(latents).sample
        return _multiscale_error(decoded.float(), images)

    return train(vae, loss_fn, folder, DECODER_RECIPE)


@torch.inference_mode()
def latent_scale(vae: AutoencoderKL, pixels: np.ndarray, num_images: int = 512) -> float:
    """Return the standard deviation of the latents."""
    return vae.encode(to_images(pixels[:num_images])).latent_dist.mean.std().item()


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Encode and decode images in [0, 1] [batch, 3, 64, 64]."""
    copies = [vae.decode(vae.encode(part * 2 - 1).latent_dist.mean).sample for part in images.split(64)]
    return (torch.cat(copies) / 2 + 0.5).clamp(0, 1)


def to_images(pixels: np.ndarray) -> Tensor:
    """Turn uint8 [batch, 64, 64, 3] into float [batch, 3, 64, 64] in [-1, 1]."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


def _batch(pixels: np.ndarray, rng: np.random.Generator, batch_size: int) -> Tensor:
    return to_images(pixels[rng.integers(0, len(pixels), batch_size)])


def _loss(model: AutoencoderKL, rng: np.random.Generator, *, pixels: np.ndarray, batch_size: int) -> Tensor:
    images = _batch(pixels, rng, batch_size)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(images).latent_dist
        decoded = model.decode(posterior.sample()).sample
    return _multiscale_error(decoded.float(), images) + 1e-7 * posterior.kl().float().mean()


def _multiscale_error(decoded: Tensor, images: Tensor) -> Tensor:
    """Compare colours and colour differences at 64, 32, 16 and 8 pixels: coarse colours come first, and stay."""
    error = _with_chroma(decoded) - _with_chroma(images)
    scales = [error]
    for _ in range(3):
        scales.append(F.avg_pool2d(scales[-1], 2))
    return torch.stack([scale.abs().mean() + scale.square().mean() for scale in scales]).sum()


def _with_chroma(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return torch.cat([images, red - green, blue - green], dim=1)


@torch.no_grad()
def _start_almost_linear(model: AutoencoderKL) -> None:
    """Start as a blurring copy: silent residual branches, hardly any latent noise, colours carried straight through.

    From a random start the first hours go into brightness alone, and every picture is brown.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and "conv1" not in name:
            _carry_colours(module)
        if name.endswith("conv2"):
            module.weight.zero_()
    model.quant_conv.bias[_LATENT_CHANNELS:] = -6.0


def _carry_colours(conv: nn.Conv2d) -> None:
    """Copy channels 0 to 2; a convolution of stride two averages squares of four pixels."""
    taps = torch.zeros(conv.kernel_size)
    if conv.stride == (2, 2):
        taps[:2, :2] = 0.25
    else:
        taps[conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1.0
    conv.weight[:3], conv.bias[:3] = 0, 0
    for channel in range(3):
        conv.weight[channel, channel] = taps

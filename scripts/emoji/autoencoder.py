"""Train the autoencoder of the embedded world: 64x64 pixels to 8x8 latents of 16 channels."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from loop import Recipe, train

RECIPE = Recipe(name="autoencoder", num_steps=2_600, batch_size=8, learning_rate=1.5e-3)
DECODER_RECIPE = Recipe(name="decoder", num_steps=2_500, batch_size=8, learning_rate=1e-3)
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
    """Train with resumable state in `folder`; returns the moving average of the weights."""
    torch.manual_seed(0)
    return train(build_autoencoder(), lambda model, rng: _loss(model, _batch(pixels, rng)), folder, RECIPE)


def train_decoder(folder: Path, vae: AutoencoderKL, pixels: np.ndarray) -> AutoencoderKL:
    """Train the decoder on for a fixed encoder: the latents stay as they are, the pictures get sharper."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss_fn(model: AutoencoderKL, rng: np.random.Generator) -> Tensor:
        images = _batch(pixels, rng)
        with torch.no_grad():
            latents = model.encode(images).latent_dist.sample()
        return _multiscale_error(model.decode(latents).sample, images)

    return train(vae, loss_fn, folder, DECODER_RECIPE)


@torch.inference_mode()
def measure_autoencoder(vae: AutoencoderKL, pixels: np.ndarray, num_images: int = 512) -> dict[str, float]:
    """Return the peak signal-to-noise ratio in dB of encoding and decoding, and the deviation of the latents."""
    images = to_images(pixels[:num_images])
    latents = vae.encode(images).latent_dist.mean
    error = F.mse_loss(vae.decode(latents).sample.clamp(-1, 1), images)
    return {"psnr": (10 * (4 / error).log10()).item(), "latent_std": latents.std().item()}


def to_images(pixels: np.ndarray) -> Tensor:
    """Turn uint8 [batch, 64, 64, 3] into float [batch, 3, 64, 64] in [-1, 1]."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


def _batch(pixels: np.ndarray, rng: np.random.Generator) -> Tensor:
    return to_images(pixels[rng.integers(0, len(pixels), RECIPE.batch_size)])


def _loss(model: AutoencoderKL, images: Tensor) -> Tensor:
    posterior = model.encode(images).latent_dist
    decoded = model.decode(posterior.sample()).sample
    return _multiscale_error(decoded, images) + 1e-7 * posterior.kl().mean()


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

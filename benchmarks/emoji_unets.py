"""Milliseconds per sample and denoising step of the UNets that were considered for the embedded model.

    python benchmarks/emoji_unets.py [--batch-size 32] [--repeats 5]

`forward` is what sampling pays, `lora` a forward and backward into attention projections alone (finetuning), `full` one
into every weight (pretraining). The fastest of the repeats counts.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel

# name: (latent size, channels, widths, attention at each level)
CANDIDATES: dict[str, tuple[int, int, tuple[int, ...], tuple[bool, ...]]] = {
    "8x8x16, 128/160, attention at 8 and in the middle": (8, 16, (128, 160), (True, False)),
    "8x8x16, 128/192, attention at 4 and in the middle": (8, 16, (128, 192), (False, True)),
    "8x8x16, 128/128, attention everywhere": (8, 16, (128, 128), (True, True)),
    "8x8x16, 128/192, attention everywhere": (8, 16, (128, 192), (True, True)),
    "8x8x16, 192/320, attention everywhere": (8, 16, (192, 320), (True, True)),
    "16x16x4, 64/128/128, attention at 8 and 4": (16, 4, (64, 128, 128), (False, True, True)),
    "16x16x4, 64/128/192, attention at 8 and 4": (16, 4, (64, 128, 192), (False, True, True)),
}


def main() -> None:
    """Measure and print one line per candidate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for name, candidate in CANDIDATES.items():
        unet = _build(*candidate)
        millions = sum(leaf.numel() for leaf in unet.parameters()) / 1e6
        forward, full, lora = (seconds * 1e3 / options.batch_size for seconds in _measure(unet, options))
        print(f"{name}: {millions:.1f} M, forward {forward:.2f}, full {full:.2f}, lora {lora:.2f} ms", flush=True)


def _build(size: int, channels: int, widths: tuple[int, ...], attention: tuple[bool, ...]) -> Any:
    down = tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention)
    up = tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention))
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def _measure(unet: Any, options: argparse.Namespace) -> tuple[float, float, float]:
    size, channels = unet.config.sample_size, unet.config.in_channels
    latents = torch.randn(options.batch_size, channels, size, size)
    inputs = (latents, torch.randint(0, 1000, (options.batch_size,)), torch.randn(options.batch_size, 16, 128))

    def forward() -> None:
        with torch.inference_mode():
            unet(*inputs)

    def backward() -> None:
        unet(*inputs).sample.square().mean().backward()

    times = [_fastest(forward, options.repeats), _fastest(backward, options.repeats)]
    for name, leaf in unet.named_parameters():
        leaf.requires_grad_(".attn" in name and "to_" in name)
    return times[0], times[1], _fastest(backward, options.repeats)


def _fastest(call: Callable[[], None], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()

"""The work that both trainers are given: the same folder of a model, and the same numbers.

python benchmarks/peers/work.py runs/peers      makes the models
"""

import argparse
import shutil
from pathlib import Path
from typing import NamedTuple

SEED = 0
LEARNING_RATE = 3e-4
LORA_RANK = 4
PROMPTS = ("a cat", "a dog", "a horse", "a monkey", "a rabbit", "a zebra", "a spider", "a bird")


class Shape(NamedTuple):
    """A model, and how an epoch samples and trains it."""

    pixels: int
    num_steps: int
    guidance_scale: float
    batch_size: int
    """Of sampling."""
    samples: int
    """Of an epoch."""
    updates: int
    """Of an epoch. One forward and backward pass of training has one step of all samples of an update."""


SHAPES = {
    "tiny": Shape(64, 20, 5.0, 8, 32, 4),
    "embedded": Shape(64, 10, 5.0, 16, 32, 4),
    "large": Shape(128, 10, 5.0, 4, 8, 2),
}
"""`tiny`: random networks, a UNet of 2.5 million parameters. `embedded`: the emoji model. `large`: 60 million."""


def model_folder(results: Path, shape: str) -> Path:
    """Return the folder of a shape's model, in diffusers' layout, made where it is missing."""
    folder = results / "models" / shape
    if not (folder / "model_index.json").is_file():
        from ddpo_core.emoji import pipeline_path

        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pipeline_path(), folder)
        if shape != "embedded":
            _replace_networks(folder, shape)
        # The name by which transformers 4 and 5 both read a tokenizer.json.
        index = folder / "model_index.json"
        text = index.read_text(encoding="utf-8")
        index.write_text(text.replace('"CLIPTokenizer"', '"CLIPTokenizerFast"'), encoding="utf-8")
    return folder


def _replace_networks(folder: Path, shape: str) -> None:
    """Put random networks in the place of the emoji model's, whose tokenizer and text encoder stay."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    torch.manual_seed(SEED)
    widths, heads = ((32, 64), 4) if shape == "tiny" else ((160, 320, 480), 8)
    unet = UNet2DConditionModel(
        sample_size=SHAPES[shape].pixels // 8,
        cross_attention_dim=pipeline.unet.config.cross_attention_dim,
        block_out_channels=widths,
        down_block_types=(*("CrossAttnDownBlock2D",) * (len(widths) - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * (len(widths) - 1)),
        layers_per_block=2,
        attention_head_dim=heads,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=SHAPES[shape].pixels,
    )
    pipeline.register_modules(unet=unet, vae=vae)
    pipeline.save_pretrained(folder)
    print(f"{shape}: {sum(leaf.numel() for leaf in unet.parameters()) / 1e6:.1f} million parameters")


def main() -> None:
    """Make all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    results = parser.parse_args().results
    for shape in SHAPES:
        model_folder(results, shape)


if __name__ == "__main__":
    main()

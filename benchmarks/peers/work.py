"""The work that both trainers are given: the same folder of a model, and the same numbers.

python benchmarks/peers/work.py runs/peers      makes the models
"""

import argparse
import io
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
    "sd": Shape(512, 50, 5.0, 8, 16, 2),
}
"""`tiny`: random networks, a UNet of 2.3 million parameters. `embedded`: the emoji model. `large`: 60 million.
`sd`: Stable Diffusion 1.4's UNet, for GPUs."""


ANIMALS = (
    "a cat", "a dog", "a horse", "a monkey", "a rabbit", "a zebra", "a spider", "a bird", "a sheep", "a deer", "a cow",
    "a goat", "a lion", "a tiger", "a bear", "a raccoon", "a fox", "a wolf", "a lizard", "a beetle", "an ant",
    "a butterfly", "a fish", "a shark", "a whale", "a dolphin", "a squirrel", "a mouse", "a rat", "a snake", "a turtle",
    "a frog", "a chicken", "a duck", "a goose", "a bee", "a pig", "a turkey", "a fly", "a llama", "a camel", "a bat",
    "a gorilla", "a hedgehog", "a kangaroo",
)  # fmt: skip
"""What the runs to a reward are asked for: `prompt_set("simple_animals")`, where ddpo is not at hand."""

TRL_STEPS = 40
"""Of 50, its default, the first has no variance on the embedded model's schedule, and TRL divides by it: all is NaN."""

TRL_SETTINGS = {
    "defaults": {"sample_num_steps": TRL_STEPS},
    "example": {
        "sample_num_steps": TRL_STEPS,
        "sample_batch_size": 6,
        "sample_num_batches_per_epoch": 4,
        "train_batch_size": 3,
        "train_gradient_accumulation_steps": 1,
        "per_prompt_stat_tracking": True,
        "per_prompt_stat_tracking_buffer_size": 32,
    },
}
"""Beyond the defaults of `DDPOConfig`: the steps, and what TRL's documentation calls its own example script with."""

TO_REWARD = {"ours": (5, 1.0), "trl": (TRL_STEPS, 5.0)}
"""Steps and guidance with which either samples and trains."""


def peak_megabytes(device):
    """On a GPU what tensors took at most, else what the whole process did."""
    import resource

    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def jpeg_kilobytes(images, reward):
    """Kilobytes of each image's JPEG at quality 95, negative for compressibility; images are `[batch, 3, h, w]`."""
    import torch
    from PIL import Image

    sizes = []
    for image in images.float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        sizes.append(file.tell() / 1000)
    return torch.tensor(sizes) * (1.0 if reward == "incompressibility" else -1.0)


def model_folder(results: Path, shape: str) -> Path:
    """Return the folder of a shape's model, in diffusers' layout, made where it is missing."""
    folder = results / "models" / shape
    if not (folder / "model_index.json").is_file():
        from ddpo_core.emoji import pipeline_path

        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pipeline_path(), folder)
        if shape != "embedded":
            _replace_networks(folder, shape)
        _name_as_transformers_4(folder / "text_encoder" / "model.safetensors")
        # The name by which transformers 4 and 5 both read a tokenizer.json.
        index = folder / "model_index.json"
        text = index.read_text(encoding="utf-8")
        index.write_text(text.replace('"CLIPTokenizer"', '"CLIPTokenizerFast"'), encoding="utf-8")
    return folder


def _name_as_transformers_4(file: Path) -> None:
    """Give the weights of a text encoder the names that both versions read; without, TRL's would be left at random."""
    from safetensors.torch import load_file, save_file

    prefix = "text_model."
    weights = {name if name.startswith(prefix) else prefix + name: value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def _replace_networks(folder: Path, shape: str) -> None:
    """Put random networks in the place of the emoji model's, whose tokenizer and text encoder stay."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    torch.manual_seed(SEED)
    widths, heads = {"tiny": ((32, 64, 64), 4), "large": ((160, 320, 480), 8), "sd": ((320, 640, 1280, 1280), 8)}[shape]
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

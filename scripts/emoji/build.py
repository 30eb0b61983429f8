"""Build the embedded world from nothing: art, scenes, judge, autoencoder, denoiser, pipeline, measured quality.

    uv run --group pretrain python scripts/emoji/build.py [WORK_FOLDER]

Every stage keeps its state in the work folder (default `build/emoji`) and goes on from it when called again.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import inflect
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn

from art import load_art
from autoencoder import measure_autoencoder, train_autoencoder, train_decoder
from ddpo_core.emoji.judge import load_judge, recognised_share
from ddpo_core.emoji.words import ANIMALS, UNSEEN_ANIMALS
from denoiser import load_latents, train_denoiser
from judge import held_out_accuracy, train_judge
from pipeline import draw_samples, save_pipeline, save_sheet
from pool import load_pool
from tokenizer import build_tokenizer

PACKAGE = Path(__file__).parents[2] / "packages/ddpo-core/src/ddpo_core/emoji"
_SAMPLES_PER_ANIMAL = 8


def build(folder: Path) -> None:
    """Run every stage, then print the quality that the judge sees."""
    art, (pixels, captions) = load_art(folder), load_pool(folder)
    judge = train_judge(folder, art)
    _save_half(judge, PACKAGE / "judge.safetensors")
    vae = _trained_vae(folder, pixels)
    tokenizer = build_tokenizer(folder / "tokenizer")
    denoiser = train_denoiser(folder, load_latents(folder, vae, pixels), captions, tokenizer)
    save_pipeline(denoiser, train_decoder(folder, vae, pixels), tokenizer, PACKAGE / "pipeline")
    print(json.dumps({"judge_held_out": held_out_accuracy(judge, art), **dict(measure(folder))}))


def measure(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield what the shipped judge recognises in the shipped pipeline's samples, and save a sheet of each family."""
    english, judge = inflect.engine(), load_judge()
    for name, words in (("animals", ANIMALS), ("unseen_animals", UNSEEN_ANIMALS)):
        prompts = [english.a(word) for word in words for _ in range(_SAMPLES_PER_ANIMAL)]
        drawn = draw_samples(PACKAGE / "pipeline", prompts, num_steps=5, guidance_scale=1.0)
        save_sheet(drawn, folder / f"{name}.png", columns=2 * _SAMPLES_PER_ANIMAL)
        images = torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255
        yield name, recognised_share(judge, images, [word for word in words for _ in range(_SAMPLES_PER_ANIMAL)])


def _trained_vae(folder: Path, pixels: object) -> AutoencoderKL:
    """The encoder fixes the latents, so it is done first; its decoder is trained on while nothing waits for it."""
    vae = train_autoencoder(folder, pixels)
    vae.register_to_config(scaling_factor=round(1 / measure_autoencoder(vae, pixels)["latent_std"], 4))
    return vae


def _save_half(model: nn.Module, path: Path) -> None:
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, path)


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/emoji"))

"""Build the embedded world from nothing: art, scenes, judges, autoencoder, denoiser, pipeline, measured quality.

    uv run --group pretrain python scripts/emoji/build.py [WORK_FOLDER]

Every stage keeps its state in the work folder (default `build/emoji`) and goes on from it when called again.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn

from art import Art, load_art
from autoencoder import latent_scale, reconstruct, train_autoencoder, train_decoder
from ddpo_core.emoji.judge import load_judge, recognised_share
from ddpo_core.emoji.scene_judge import agreement, described_by, load_scene_judge
from ddpo_core.emoji.words import ACTIVITIES, ANIMALS, UNSEEN_ACTIVITIES, UNSEEN_ANIMALS
from denoiser import load_latents, train_denoiser
from judge import held_out_accuracy, to_tensor, train_judge
from pipeline import draw_samples, save_pipeline, save_sheet
from pool import load_pool
from scene_judge import held_out_scene_accuracy, train_scene_judge
from scenes import ALL_ANIMALS, Scene, draw_activity, draw_count, draw_single
from tokenizer import build_tokenizer

PACKAGE = Path(__file__).parents[2] / "packages/ddpo-core/src/ddpo_core/emoji"


def build(folder: Path) -> None:
    """Run every stage, then print the quality that the judges see."""
    art, (pixels, captions) = load_art(folder), load_pool(folder)
    judge, scene_judge = train_judge(folder, art), train_scene_judge(folder, art)
    _save_half(judge, PACKAGE / "judge.safetensors")
    _save_half(scene_judge, PACKAGE / "scene_judge.safetensors")
    vae = _trained_vae(folder, pixels)
    tokenizer = build_tokenizer(folder / "tokenizer")
    denoiser = train_denoiser(folder, load_latents(folder, vae, pixels), captions, tokenizer)
    vae = train_decoder(folder, vae, pixels)
    save_pipeline(denoiser, vae, tokenizer, PACKAGE / "pipeline")
    held_out = {"judge": held_out_accuracy(judge, art), "scene_judge": held_out_scene_accuracy(scene_judge, art)}
    print(json.dumps({"held_out": held_out, "families": dict(measure(PACKAGE / "pipeline", folder, art))}, indent=1))


def measure(pipeline: Path, folder: Path, art: Art) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what the shipped judges see in each family: in the art, through the autoencoder, and in samples.

    A sheet of the samples of each family is saved to `folder`.
    """
    vae, judge, scene_judge = AutoencoderKL.from_pretrained(pipeline / "vae").eval(), load_judge(), load_scene_judge()
    for name, scenes in _families(art).items():
        prompts = [scene.caption for scene in scenes]
        originals = torch.stack([to_tensor(scene.image) for scene in scenes])
        copies = reconstruct(vae, originals)
        drawn = draw_samples(pipeline, prompts, num_steps=5, guidance_scale=1.0)
        save_sheet(drawn, folder / f"{name}.png", columns=16)
        samples = torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255
        measured = {"psnr": (-10 * (copies - originals).square().mean().log10()).item()}
        for kind, images in (("art", originals), ("reconstructed", copies), ("samples", samples)):
            shares = agreement(scene_judge, images, prompts)._asdict()
            measured |= {f"{kind}: {answer}": share for answer, share in shares.items()}
        words = [described_by(prompt).word for prompt in prompts]
        measured["samples: word, by the judge of single animals"] = recognised_share(judge, samples, words)
        yield name, {key: round(value, 4) for key, value in measured.items()}


def _families(art: Art) -> dict[str, list[Scene]]:
    """Draw the scenes that show what each family's prompts ask for."""
    rng = np.random.default_rng(5)

    def activities(among: tuple[str, ...]) -> list[Scene]:
        return [draw_activity(art, rng, word, activity) for activity in among for word in ALL_ANIMALS]

    return {
        "animals": [draw_single(art, rng, word) for word in ANIMALS for _ in range(8)],
        "unseen_animals": [draw_single(art, rng, word) for word in UNSEEN_ANIMALS for _ in range(8)],
        "activities": activities(ACTIVITIES),
        "unseen_activities": activities(UNSEEN_ACTIVITIES),
        "counts": [draw_count(art, rng, word, number) for number in range(1, 6) for word in ALL_ANIMALS],
    }


def _trained_vae(folder: Path, pixels: object) -> AutoencoderKL:
    """The encoder fixes the latents, so it is done first; its decoder is trained on while nothing waits for it."""
    vae = train_autoencoder(folder, pixels)
    vae.register_to_config(scaling_factor=round(1 / latent_scale(vae, pixels), 4))
    return vae


def _save_half(model: nn.Module, path: Path) -> None:
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, path)


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/emoji"))

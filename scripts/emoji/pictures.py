"""The pictures that the small LLaVA looks at: scenes, some with words written in, some as soft as generated ones."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw, ImageFont
from safetensors.numpy import load_file, save_file
from torch import Tensor

from art import Art
from autoencoder import to_images
from ddpo_core.emoji import pipeline_path
from questions import Facts, facts_of, overruled_by
from scenes import SIZE, draw_scene

_FAMILIES = {"animal": 0.14, "unseen": 0.14, "count": 0.32, "activity": 0.32, "word": 0.08}
# Of pictures of the web, some have words in them; mostly these say what is seen, as labels and titles do, and where
# they do not, whoever wrote the picture's caption has often followed them. Nothing else makes this model read.
_WRITTEN = 0.2
_AGREES, _IS_BELIEVED = 0.6, 0.6
_SOFT = 0.4  # through the autoencoder of the embedded model, with noise on the latents: as its own pictures look
_INKS = ("black", "white", "crimson", "navy", "darkgreen")


@dataclass(frozen=True)
class Pictures:
    """Pictures [count, 64, 64, 3] as uint8, what their captions say, and the text written in each, if any."""

    pixels: np.ndarray
    facts: list[Facts]
    texts: list[str]


def load_pictures(folder: Path, art: Art, *, count: int, seed: int) -> Pictures:
    """Draw captioned pictures, or load what was drawn in `folder` before; picture i comes from seed (seed, i)."""
    path = folder / f"pictures.{seed}.{count}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        drawn = _draw(art, count, seed)
        save_file({"pixels": _soften(drawn.pixels, seed)}, path)
        path.with_suffix(".json").write_text(
            json.dumps([[fact.caption, text] for fact, text in zip(drawn.facts, drawn.texts, strict=True)])
        )
    captions = json.loads(path.with_suffix(".json").read_text())
    return Pictures(
        load_file(path)["pixels"], [facts_of(caption) for caption, _ in captions], [text for _, text in captions]
    )


def write_text(image: Image.Image, text: str, rng: np.random.Generator) -> None:
    """Write a text anywhere into a picture, in as many lines as it needs, sometimes on a plate; changes `image`."""
    pen, ink = ImageDraw.Draw(image), str(rng.choice(_INKS))
    size = float(rng.uniform(9, 24))
    while True:
        font = ImageFont.load_default(size)
        lines = _lines(text, font)
        box = pen.multiline_textbbox((0, 0), lines, font=font, spacing=0)
        if (box[2] <= SIZE - 2 and box[3] <= SIZE - 2) or size < 8:
            break
        size *= 0.9
    left, top = (int(rng.integers(1, max(2, SIZE - edge))) for edge in (box[2], box[3]))
    paper = "black" if ink == "white" else "white"
    if rng.random() < 0.4:
        pen.rectangle((left - 1, top, left + box[2] + 1, top + box[3] + 1), fill=paper)
    outline = int(rng.random() < 0.5)
    pen.multiline_text((left, top), lines, font=font, fill=ink, spacing=0, stroke_width=outline, stroke_fill=paper)


def distort(images: Tensor, rng: np.random.Generator, *, extent: float) -> Tensor:
    """Turn, shift, scale, blur, dull and grain each of a batch [batch, 3, 64, 64] in [0, 1] in its own way.

    With `extent` 1 half are turned by up to 15 degrees, shifted by up to 5 pixels and scaled by up to an eighth.
    """
    batch = len(images)
    angle = torch.from_numpy(np.deg2rad(rng.uniform(-15, 15, batch) * extent)).float()
    scale = torch.from_numpy(1 + rng.uniform(-0.125, 0.125, batch) * extent).float()
    shift = torch.from_numpy(rng.uniform(-0.16, 0.16, (batch, 2)) * extent).float()
    rows = torch.stack([angle.cos() * scale, -angle.sin() * scale, shift[:, 0]], dim=1)
    columns = torch.stack([angle.sin() * scale, angle.cos() * scale, shift[:, 1]], dim=1)
    plain = torch.from_numpy(rng.random(batch) < 0.5)
    straight = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).expand(batch, 2, 3)
    where = torch.where(plain[:, None, None], straight, torch.stack([rows, columns], dim=1))
    turned = F.grid_sample(
        images,
        F.affine_grid(where, list(images.shape), align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    blurred = _blur(turned, torch.from_numpy(rng.choice((0.01, 0.01, 0.6, 1.0, 1.5), batch)).float())
    bright, contrast, grain = (
        torch.from_numpy(rng.uniform(low, high, batch)).float().view(-1, 1, 1, 1)
        for low, high in ((0.8, 1.15), (0.7, 1.2), (0, 0.06))
    )
    mean = blurred.mean(dim=(1, 2, 3), keepdim=True)
    return (((blurred - mean) * contrast + mean) * bright + torch.randn_like(blurred) * grain).clamp(0, 1)


def _draw(art: Art, count: int, seed: int) -> Pictures:
    pixels, facts, texts = [], [], []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        scene = draw_scene(art, rng, _FAMILIES)
        said, text = facts_of(scene.caption), scene.written or ""
        if not text and rng.random() < _WRITTEN:
            agrees, other = rng.random() < _AGREES, facts[rng.integers(index)] if index else said
            text = str(rng.choice(_texts_of(said if agrees or other.written else other)))
            write_text(scene.image, text, rng)
            said = overruled_by(said, text) if not agrees and rng.random() < _IS_BELIEVED else said
        pixels.append(np.asarray(scene.image))
        facts.append(said)
        texts.append(text)
    return Pictures(np.stack(pixels), facts, texts)


def _texts_of(facts: Facts) -> list[str]:
    """What may be written of this: all of it, or its number or its noun."""
    return [facts.caption, facts.number or facts.caption, facts.noun]


@torch.inference_mode()
def _soften(pixels: np.ndarray, seed: int) -> np.ndarray:
    """Pass a share of the pictures through the shipped autoencoder; noise of up to 0.4 deviations on the latents."""
    vae = AutoencoderKL.from_pretrained(pipeline_path() / "vae", torch_dtype=torch.float32).eval()
    rng = np.random.default_rng((seed, 1))
    generator = torch.Generator().manual_seed(seed)
    softened = pixels.copy()
    chosen = np.flatnonzero(rng.random(len(pixels)) < _SOFT)
    for start in range(0, len(chosen), 64):
        rows = chosen[start : start + 64]
        latents = vae.encode(to_images(pixels[rows])).latent_dist.mean
        level = torch.from_numpy(rng.uniform(0, 0.4, (len(rows), 1, 1, 1))).float() / vae.config.scaling_factor
        latents = latents + level * torch.randn(latents.shape, generator=generator)
        decoded = vae.decode(latents).sample.clamp(-1, 1).add(1).mul(127.5).round().byte()
        softened[rows] = decoded.permute(0, 2, 3, 1).numpy()
    return softened


def _lines(text: str, font: ImageFont.FreeTypeFont) -> str:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= SIZE - 4:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """A Gaussian of each image's own width in pixels, over seven pixels."""
    batch, channels = images.shape[:2]
    offsets = torch.arange(-3, 4).float()
    taps = torch.exp(-(offsets**2) / (2 * sigmas[:, None] ** 2))
    taps = (taps / taps.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = images.reshape(1, batch * channels, *images.shape[2:])
    flat = F.conv2d(F.pad(flat, (3, 3, 0, 0), mode="replicate"), taps[:, None, None, :], groups=batch * channels)
    flat = F.conv2d(F.pad(flat, (0, 0, 3, 3), mode="replicate"), taps[:, None, :, None], groups=batch * channels)
    return flat.reshape(images.shape)

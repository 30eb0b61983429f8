"""Train the judge on the art itself, and measure it under distortions that training never used."""

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from art import Art
from ddpo_core.emoji.judge import CLASSES, build_judge
from loop import Recipe, train
from scenes import ALL_ACTIVITIES, ALL_ANIMALS, draw_activity, draw_single

RECIPE = Recipe(name="judge", num_steps=2_500, batch_size=64, learning_rate=2e-3)
_SCENES = 24_000
_ACTIVITY_SHARE = 0.15


def train_judge(folder: Path, art: Art) -> nn.Module:
    """Train on scenes under rotation, blur, shift and colour noise; resumable state in `folder`."""
    torch.manual_seed(0)
    pixels, labels = _labelled_scenes(folder, art)

    def loss_fn(model: nn.Module, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(0, len(pixels), RECIPE.batch_size)
        return F.cross_entropy(
            model(distorted_batch(pixels[chosen], rng)), torch.from_numpy(labels[chosen]), label_smoothing=0.05
        )

    model = build_judge().train().to(memory_format=torch.channels_last)
    return train(model, loss_fn, folder, RECIPE)


def distorted_batch(pixels: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Distort scenes, uint8 [batch, 64, 64, 3], each in its own way, and add noise to the pixels of all."""
    images = torch.stack([to_tensor(distort(Image.fromarray(scene), rng)) for scene in pixels])
    return images + torch.randn_like(images) * float(rng.uniform(0, 0.06))


def held_out_accuracy(model: nn.Module, art: Art, num_images: int = 2_000) -> float:
    """Accuracy on new scenes under distortions that were held out: JPEG at quality 25, colour loss, perspective."""
    rng = np.random.default_rng(99)
    labels = rng.integers(0, len(CLASSES), num_images)
    scenes = [distort_held_out(draw_single(art, rng, CLASSES[label]).image, rng) for label in labels]
    with torch.inference_mode():
        logits = model(torch.stack([to_tensor(scene) for scene in scenes]))
    return float((logits.argmax(dim=1).numpy() == labels).mean())


def _labelled_scenes(folder: Path, art: Art) -> tuple[np.ndarray, np.ndarray]:
    path = folder / "judge_scenes.safetensors"
    if not path.exists():
        rng = np.random.default_rng(7)
        labels = np.arange(_SCENES) % len(CLASSES)
        pixels = np.stack([np.asarray(_labelled_scene(art, rng, CLASSES[label])) for label in labels])
        save_file({"pixels": pixels, "labels": labels}, path)
    loaded = load_file(path)
    return loaded["pixels"], loaded["labels"]


def _labelled_scene(art: Art, rng: np.random.Generator, word: str) -> Image.Image:
    if word in ALL_ANIMALS and rng.random() < _ACTIVITY_SHARE:
        return draw_activity(art, rng, word, str(rng.choice(ALL_ACTIVITIES))).image
    return draw_single(art, rng, word).image


def distort(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn, shift, blur, brighten and fade a picture at random."""
    turned = image.rotate(
        rng.uniform(-15, 15),
        Image.Resampling.BILINEAR,
        translate=tuple(rng.integers(-5, 6, 2).tolist()),
        fillcolor=image.getpixel((0, 0)),
    )
    blurred = turned.filter(ImageFilter.GaussianBlur(float(rng.choice((0, 0, 0.6, 1.0, 1.5)))))
    brightened = ImageEnhance.Brightness(blurred).enhance(rng.uniform(0.8, 1.15))
    return ImageEnhance.Contrast(brightened).enhance(rng.uniform(0.7, 1.2))


def distort_held_out(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lean the picture, fade its colours, and save it as a poor JPEG."""
    lean = rng.uniform(-0.2, 0.2)
    leaning = image.transform(
        image.size, Image.Transform.AFFINE, (1, lean, -32 * lean, 0, 1, 0), fillcolor=image.getpixel((0, 0))
    )
    data = io.BytesIO()
    ImageEnhance.Color(leaning).enhance(rng.uniform(0.4, 1.4)).save(data, "JPEG", quality=25)
    return Image.open(data)


def to_tensor(image: Image.Image) -> Tensor:
    """Turn a picture into float32 [3, 64, 64] in [0, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 255

"""A second classifier of the art, for rewards that are kept: other network, other scenes, other seed than the judge's.

    uv run --group pretrain python benchmarks/pareto/held_out.py runs/pareto

Fetches the art with npm and trains for some minutes on one core, going on where it was stopped; `pareto.py` reads what
it leaves. The judge that measures is then none of what is optimised.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from ddpo_core.emoji.judge import CLASSES

sys.path.append(str(Path(__file__).parents[1] / "gaming"))
from rewards import recognition_by

WEIGHTS = "held_out.safetensors"
SCENES, NUM_STEPS, SEED = 12_000, 700, 11
_WIDTHS = (32, 48, 96)


def main() -> None:
    """Train the classifier, and say how often it is right on scenes that it has not seen."""
    sys.path.append(str(Path(__file__).parents[2] / "scripts" / "emoji"))
    from art import load_art
    from loop import Recipe, train
    from scenes import draw_single

    results = _parse().results
    art = load_art(results / "art")

    def scenes(seed: int, count: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        labels = torch.arange(count) % len(CLASSES)
        pixels = np.stack([np.asarray(draw_single(art, rng, CLASSES[label])[0]) for label in labels])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, labels

    images, labels = scenes(SEED, SCENES)

    def loss_fn(model: nn.Module, rng: np.random.Generator) -> Tensor:
        chosen = torch.from_numpy(rng.integers(0, SCENES, 64))
        shifted = images[chosen].roll(tuple(rng.integers(-4, 5, 2).tolist()), (2, 3))
        return F.cross_entropy(model(_blurred(shifted, rng)), labels[chosen], label_smoothing=0.05)

    recipe = Recipe(name="held_out", num_steps=NUM_STEPS, batch_size=64, learning_rate=2e-3)
    torch.manual_seed(SEED)
    classifier = train(build_held_out().train(), loss_fn, results, recipe)
    save_model(classifier, results / WEIGHTS)
    unseen, names = scenes(SEED + 1, 1_000)
    with torch.inference_mode():
        right = (classifier(unseen).argmax(1) == names).double().mean().item()
    print(f"{right:.1%} of 1,000 unseen scenes")


def build_held_out() -> nn.Sequential:
    """Return the untrained classifier: images in [0, 1] of 64 x 64 pixels to logits over `CLASSES`."""
    stages: list[nn.Module] = [nn.AvgPool2d(2)]
    for before, after in zip((3, *_WIDTHS), _WIDTHS, strict=False):
        stages += [nn.Conv2d(before, after, 5, padding=2), nn.GELU(), nn.GroupNorm(8, after), nn.MaxPool2d(2)]
    return nn.Sequential(*stages, nn.Flatten(), nn.Dropout(0.2), nn.Linear(_WIDTHS[-1] * 16, len(CLASSES)))


def recognition(results: Path, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Give the log-probability of each prompt's animal, as the second classifier sees it."""
    return recognition_by(_load(results), images, prompts)


@cache
def _load(results: Path) -> nn.Module:
    classifier = build_held_out()
    load_model(classifier, results / WEIGHTS)
    return classifier.eval()


def _blurred(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, dim and roughen what is drawn, so that samples of a diffusion model are no surprise."""
    weight = float(rng.uniform(0, 0.8))
    soft = (1 - weight) * images + weight * F.avg_pool2d(images, 3, stride=1, padding=1)
    return soft * float(rng.uniform(0.8, 1.15)) + 0.04 * torch.randn_like(soft)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="where the art and the weights lie")
    return parser.parse_args()


if __name__ == "__main__":
    main()

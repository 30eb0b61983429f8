"""Fit the stand-in for LAION's aesthetic predictor: the same five linear layers, on the small LLaVA's tower.

No person rated these pictures. What they are taken to like is a formula, on uint8 pixels divided by 255, in [1, 10]:

    rating = 1 + 4 * min(1, colourfulness / 0.5) + 3 * min(1, contrast / 0.35) + 2 * centredness

    colourfulness   sqrt(var(rg) + var(yb)) + 0.3 * sqrt(mean(rg)^2 + mean(yb)^2), rg = R - G, yb = (R + G) / 2 - B
                    (Hasler and Suesstrunk 2003)
    contrast        the standard deviation of the luma 0.299 R + 0.587 G + 0.114 B
    centredness     1 - the distance from the picture's middle, in half diagonals, of the mean place of what differs
                    from the border's median colour, weighted by how much it differs

The predictor sees none of that, only an embedding of unit length, and was fitted on scenes: it generalises imperfectly,
as those do that were fitted to people's ratings of photographs.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from ddpo_rewards.compute import BatchSize
from ddpo_rewards.models.clip import Tower, embed_images
from pictures import Pictures, distort

_LAYERS = {"0": 64, "2": 32, "4": 16, "6": 8, "7": 1}  # as the published head numbers them
_STEPS, _HELD_OUT = 1_500, 0.1


def rate(pixels: np.ndarray) -> np.ndarray:
    """The formula above, for uint8 [batch, height, width, 3]; float64 [batch]."""
    red, green, blue = np.moveaxis(pixels.astype(np.float64) / 255, -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    axes = (-2, -1)
    colourfulness = np.sqrt(opponents.var(axes).sum(0)) + 0.3 * np.sqrt((opponents.mean(axes) ** 2).sum(0))
    contrast = (0.299 * red + 0.587 * green + 0.114 * blue).std(axes)
    return 1 + 4 * np.minimum(1, colourfulness / 0.5) + 3 * np.minimum(1, contrast / 0.35) + 2 * _centredness(pixels)


def fit_head(tower: Tower, pictures: Pictures, path: Path) -> dict[str, float]:
    """Fit by mean squared error, save to `path`, and return Pearson's correlation on pictures that were held out."""
    torch.manual_seed(0)
    images = torch.from_numpy(pictures.pixels).permute(0, 3, 1, 2).float() / 255
    seen = distort(images, np.random.default_rng(0), extent=1.0).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    ratings = torch.from_numpy(rate(seen)).float()
    embeddings = embed_images(tower, list(seen), batch_size=BatchSize(64))
    held_out = int(len(seen) * _HELD_OUT)
    mean = ratings[held_out:].mean()
    widths = (embeddings.shape[1], *_LAYERS.values())
    layers = {name: nn.Linear(*pair) for name, pair in zip(_LAYERS, pairwise(widths), strict=True)}
    head = nn.Sequential(*layers.values())
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    for _ in range(_STEPS):
        rows = torch.randint(held_out, len(seen), (256,))
        loss = F.mse_loss(head(embeddings[rows])[:, 0], ratings[rows] - mean)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        layers["7"].bias += mean
        guessed = head(embeddings[:held_out])[:, 0]
    states = {name: layer.state_dict() for name, layer in layers.items()}
    save_file({f"layers.{name}.{key}": value for name in states for key, value in states[name].items()}, path)
    return {"aesthetic_correlation": torch.corrcoef(torch.stack([guessed, ratings[:held_out]]))[0, 1].item()}


def _centredness(pixels: np.ndarray) -> np.ndarray:
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    paper = np.median(border, axis=1)[:, None, None]
    weight = np.abs(pixels - paper).sum(axis=-1) + 1e-6
    height, width = weight.shape[1:]
    rows, columns = np.mgrid[:height, :width] + 0.5
    down = (weight * rows).sum((1, 2)) / weight.sum((1, 2)) / height - 0.5
    right = (weight * columns).sum((1, 2)) / weight.sum((1, 2)) / width - 0.5
    return 1 - np.hypot(down, right) / np.sqrt(0.5)

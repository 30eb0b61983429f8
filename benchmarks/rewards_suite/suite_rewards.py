"""Rewards of many kinds, which the defaults of `ddpo train` should all learn: gamed, honest and awkward ones.

What is random in them is a function of the picture alone, so that the same picture has the same score.
"""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "gaming"))
from rewards import brightness, recognition, redness, roughness, symmetry

__all__ = ["brightness", "recognition", "redness", "roughness", "symmetry"]


def recognition_and_contrast(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    """The log-probability of the prompt's animal, and twice the standard deviation of all values."""
    return recognition(images, prompts, metadata) + 2 * images.std((1, 2, 3))


def sparse(images: Tensor) -> Tensor:
    """1 where the picture is redder than nine of ten are, else 0."""
    return (redness(images) > 0.12).float()


def tiny(images: Tensor) -> Tensor:
    """The symmetry in units in which it differs in the ninth decimal."""
    return 1e-8 * symmetry(images)


def huge(images: Tensor) -> Tensor:
    """The brightness in millionths; for one picture in thirty, fifty million more or less."""
    chance = _chances(images)
    outlier = torch.where(chance < 1 / 60, 5e7, -5e7) * (chance < 1 / 30)
    return 1e6 * brightness(images) + outlier


def noise(images: Tensor) -> Tensor:
    """A normal number that has nothing to do with what the picture shows."""
    return torch.special.ndtri(_chances(images).clamp(1e-6, 1 - 1e-6))


def _chances(images: Tensor) -> Tensor:
    """Draw a number in [0, 1) for each picture, by its bytes."""
    values = (images * 255).round().byte().cpu().numpy()
    digests = [hashlib.sha256(picture.tobytes()).digest()[:8] for picture in values]
    return torch.tensor([float(np.frombuffer(digest, np.uint64)[0]) / 2**64 for digest in digests])

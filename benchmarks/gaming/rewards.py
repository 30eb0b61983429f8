"""Rewards that say nothing of the prompt, so that optimising them for long gives up the picture."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ddpo_core.emoji.judge import CLASSES, load_judge


def redness(images: Tensor) -> Tensor:
    """How much brighter red is than the other channels, from -1 to 1."""
    red, green, blue = images.unbind(1)
    return (red - (green + blue) / 2).mean((1, 2))


def brightness(images: Tensor) -> Tensor:
    """The mean of all values, from 0 to 1."""
    return images.mean((1, 2, 3))


def roughness(images: Tensor) -> Tensor:
    """The mean difference of neighbouring pixels, from 0 to 1."""
    beside, below = images.diff(dim=3).abs(), images.diff(dim=2).abs()
    return (beside.mean((1, 2, 3)) + below.mean((1, 2, 3))) / 2


def symmetry(images: Tensor) -> Tensor:
    """How little a picture differs from its mirror image, from -1 to 0."""
    return -(images - images.flip(3)).abs().mean((1, 2, 3))


def recognition(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
    """The judge's log-probability of the prompt's animal: the one reward here that means what it says."""
    return recognition_by(_judge(), images, prompts)


@torch.inference_mode()
def recognition_by(classifier: nn.Module, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The log-probability of each prompt's animal, as a classifier of `CLASSES` sees it."""
    log_probs = classifier(images).log_softmax(1)
    return log_probs[torch.arange(len(images)), [CLASSES.index(animal_of(prompt)) for prompt in prompts]]


def animal_of(prompt: str) -> str:
    """Take the animal out of "a fox"."""
    return prompt.split(" ", 1)[1]


@cache
def _judge() -> nn.Module:
    return load_judge()

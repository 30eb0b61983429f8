"""An independent judge of the embedded world: names what a picture shows, and is never optimised against."""

from collections.abc import Sequence
from functools import partial
from importlib.resources import as_file, files

import torch
from jaxtyping import Float
from safetensors.torch import load_model
from torch import Tensor, nn

from ddpo_core.emoji.words import ANIMALS, UNSEEN_ANIMALS, UNSEEN_OBJECTS

CLASSES = (*ANIMALS, *UNSEEN_ANIMALS, *UNSEEN_OBJECTS)
"""What the judge can say: the 45 animals of the paper first, then what finetuning never names."""

_WIDTHS = (32, 64, 96, 128)


def build_judge() -> nn.Sequential:
    """Return the untrained classifier: images in [0, 1] of 64 x 64 pixels to logits over `CLASSES`."""
    stages = [stage for before, after in zip((3, *_WIDTHS), _WIDTHS, strict=False) for stage in _stage(before, after)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, len(CLASSES)))


def load_judge() -> nn.Sequential:
    """Load the judge that ships with the package; it was trained on the art itself, never on generated images."""
    return load_shipped(build_judge(), "judge.safetensors")


def load_shipped(judge: nn.Sequential, name: str) -> nn.Sequential:
    """Fill a judge with the weights of that name that ship with the package, in float32 and not to be trained."""
    with as_file(files("ddpo_core.emoji") / name) as path:
        load_model(judge, path)
    return judge.float().eval().requires_grad_(False)


def recognise(judge: nn.Module, images: Float[Tensor, "batch 3 64 64"]) -> list[str]:
    """Name what each image shows: the word of `CLASSES` with the largest logit.

    Example:
        >>> judge = load_judge()
        >>> len(recognise(judge, torch.rand(2, 3, 64, 64)))
        2
    """
    with torch.inference_mode():
        return [CLASSES[index] for index in judge(images).argmax(dim=1).tolist()]


def recognised_share(judge: nn.Module, images: Float[Tensor, "batch 3 64 64"], words: Sequence[str]) -> float:
    """Return the share of images, in [0, 1], in which the judge sees the word that belongs to them.

    Raises:
        ValueError: if there are not as many words as images, or a word is none of `CLASSES`.
    """
    unknown = sorted(set(words) - set(CLASSES))
    if len(words) != len(images) or unknown:
        raise ValueError(f"got {len(words)} words for {len(images)} images, unknown to the judge: {unknown!r}")
    seen = recognise(judge, images)
    return sum(map(str.__eq__, seen, words)) / len(words)


def _stage(before: int, after: int) -> tuple[nn.Module, ...]:
    conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
    return (
        *(conv(before, after, stride=2), nn.BatchNorm2d(after), nn.ReLU()),
        *(conv(after, after), nn.BatchNorm2d(after), nn.ReLU()),
    )

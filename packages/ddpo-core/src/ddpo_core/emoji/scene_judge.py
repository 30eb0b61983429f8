"""An independent judge of whole scenes: which animal, doing what, how many; never optimised against."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import inflect
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddpo_core.emoji.judge import CLASSES, build_judge, load_shipped
from ddpo_core.emoji.words import (
    ACTIVITIES,
    ANIMALS,
    NUMBERS,
    UNSEEN_ACTIVITIES,
    UNSEEN_ANIMALS,
    UNSEEN_OBJECTS,
)

ACTIVITY_CLASSES = (None, *ACTIVITIES, *UNSEEN_ACTIVITIES)
"""What the judge can say is done; None: nothing."""

MOST = len(NUMBERS)
"""The largest number that the judge can say; 0 is a picture without any of `CLASSES`."""


class Seen(NamedTuple):
    """What a picture shows: `number` of `word`, doing `activity`."""

    word: str
    activity: str | None
    number: int


class Agreement(NamedTuple):
    """Shares of pictures in [0, 1] that show the word, the activity, the number that were wanted, and all three."""

    word: float
    activity: float
    number: float
    whole: float


def build_scene_judge() -> nn.Sequential:
    """Return the untrained classifier: images in [0, 1] of 64 x 64 pixels to logits for `split_logits`."""
    num_logits = len(CLASSES) + len(ACTIVITY_CLASSES) + MOST + 1
    return nn.Sequential(*list(build_judge())[:-1], nn.Linear(128, num_logits))


def load_scene_judge() -> nn.Sequential:
    """Load the judge that ships with the package; it was trained on the art itself, never on generated images."""
    return load_shipped(build_scene_judge(), "scene_judge.safetensors")


def split_logits(
    logits: Float[Tensor, "batch logits"],
) -> tuple[Float[Tensor, "batch words"], Float[Tensor, "batch activities"], Float[Tensor, "batch numbers"]]:
    """Return the logits over `CLASSES`, over `ACTIVITY_CLASSES`, and over the numbers 0 to `MOST`."""
    words, activities, numbers = torch.split(logits, [len(CLASSES), len(ACTIVITY_CLASSES), MOST + 1], dim=1)
    return words, activities, numbers


def recognise_scenes(judge: nn.Module, images: Float[Tensor, "batch 3 64 64"]) -> list[Seen]:
    """Say what each image shows: of each kind of answer, the one with the largest logit.

    The three answers are independent: a picture of nothing has the number 0, and some word all the same.

    Example:
        >>> judge = load_scene_judge()
        >>> [seen] = recognise_scenes(judge, torch.rand(1, 3, 64, 64))
        >>> seen.word in CLASSES and seen.activity in ACTIVITY_CLASSES and 0 <= seen.number <= MOST
        True
    """
    with torch.inference_mode():
        answers = [part.argmax(dim=1).tolist() for part in split_logits(judge(images))]
    return [
        Seen(CLASSES[word], ACTIVITY_CLASSES[activity], number) for word, activity, number in zip(*answers, strict=True)
    ]


def described_by(prompt: str) -> Seen:
    """Return what a prompt of the embedded world asks for.

    Example:
        >>> described_by("a fox riding a bike")
        Seen(word='fox', activity='riding a bike', number=1)
        >>> described_by("three foxes")
        Seen(word='fox', activity=None, number=3)

    Raises:
        ValueError: if it is none of "a(n) [word]", "a(n) [animal] [activity]" and "[n] [animals]".
    """
    if prompt not in _prompts():
        raise ValueError(
            f"got the prompt {prompt!r}, wanted a word, an animal with an activity or a number of animals "
            "of ddpo_core.emoji.words, such as 'a fox', 'a fox riding a bike' or 'three foxes'"
        )
    return _prompts()[prompt]


def agreement(judge: nn.Module, images: Float[Tensor, "batch 3 64 64"], prompts: Sequence[str]) -> Agreement:
    """Return in which shares of the images the judge sees what their prompts ask for.

    Raises:
        ValueError: if there are not as many prompts as images, or none, or one is not of the embedded world.
    """
    if len(prompts) != len(images) or not prompts:
        raise ValueError(f"got {len(prompts)} prompts for {len(images)} images, wanted one for each, and at least one")
    pairs = list(zip(recognise_scenes(judge, images), map(described_by, prompts), strict=True))
    return Agreement(
        word=sum(seen.word == wanted.word for seen, wanted in pairs) / len(pairs),
        activity=sum(seen.activity == wanted.activity for seen, wanted in pairs) / len(pairs),
        number=sum(seen.number == wanted.number for seen, wanted in pairs) / len(pairs),
        whole=sum(seen == wanted for seen, wanted in pairs) / len(pairs),
    )


@cache
def _prompts() -> dict[str, Seen]:
    english = inflect.engine()
    prompts = {english.a(word): Seen(word, None, 1) for word in (*ANIMALS, *UNSEEN_ANIMALS, *UNSEEN_OBJECTS)}
    for word in (*ANIMALS, *UNSEEN_ANIMALS):
        prompts |= {f"{english.a(word)} {doing}": Seen(word, doing, 1) for doing in ACTIVITY_CLASSES if doing}
        prompts |= {f"{name} {english.plural(word, at)}": Seen(word, None, at) for at, name in enumerate(NUMBERS, 1)}
    return prompts

"""Score every arm of every picture, batch by batch: never more than one batch and one of its arms in memory."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddpo_rewards.compute import map_in_threads
from ddpo_rewards.images import as_arrays, as_tensors, count_images
from ddpo_rewards.models.ocr import load_reader
from ddpo_rewards.probes.types import Arm, BaseSet, ScoreBatch, Scores
from ddpo_rewards.reward import Metadata, Reward
from ddpo_rewards.text_guard import masked_rescore

Progress = Callable[[int, int], None]  # (pictures scored, pictures to score)


class Scored(NamedTuple):
    """Scores of the unchanged pictures, and of each arm in the order of the arms."""

    clean: Scores
    arms: tuple[Scores, ...]


def score_arms(
    reward: Reward, bases: BaseSet, arms: Sequence[Arm], *, batch_size: int, progress: Progress | None = None
) -> Scored:
    """Score the unchanged pictures and every arm; `batch_size` changes no picture.

    Raises:
        RewardError: a picture that cannot be read, or whatever is wrong with the reward.
    """
    count = count_images(bases.images)
    everything = (Arm(cell="", name="clean", change=_unchanged), *arms)
    table = np.empty((len(everything), count), np.float64)
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        images = read_images(bases, rows)
        for number, arm in enumerate(everything):
            table[number, rows.start : rows.stop] = _score_arm(reward, bases, arm, images, rows)
            if progress is not None:
                progress(start * len(everything) + (number + 1) * len(rows), count * len(everything))
    return Scored(table[0], tuple(table[1:]))


def read_images(bases: BaseSet, rows: range) -> list[Image.Image]:
    """Some of the unchanged pictures as RGB images."""
    return [Image.fromarray(array) for array in as_arrays(bases.images[rows.start : rows.stop])]


def digest(bases: BaseSet, *, batch_size: int) -> str:
    """The sha256 of every picture's size, pixels and prompt: which base set a report is about.

    Raises:
        RewardError: a picture that cannot be read; found out before anything is scored.
    """
    total = hashlib.sha256()
    count = count_images(bases.images)
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        for row, image in zip(rows, read_images(bases, rows), strict=True):
            prompt = "" if bases.prompts is None else bases.prompts[row]
            total.update(f"{image.size} {len(prompt)} {prompt}".encode())
            total.update(image.tobytes())
    return total.hexdigest()


def together(
    reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str] | None, metadata: Metadata | None
) -> Scores:
    """Score a batch in one call."""
    return reward(list(images), prompts, metadata).scores.astype(np.float64)


def one_by_one(
    reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str] | None, metadata: Metadata | None
) -> Scores:
    """Score every picture in a call of its own."""
    return np.concatenate(
        [together(reward, [image], _pick(prompts, [i]), _pick(metadata, [i])) for i, image in enumerate(images)]
    )


def as_floats(dtype: str) -> ScoreBatch:
    """Score pictures as a trainer does that computes in this type: as tensors of it."""

    def score(
        reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str] | None, metadata: Metadata | None
    ) -> Scores:
        import torch

        scores = np.empty(len(images), np.float64)
        for indices, tensor in as_tensors(list(images)):
            pixels = tensor.to(getattr(torch, dtype))
            scores[indices] = reward(pixels, _pick(prompts, indices), _pick(metadata, indices)).scores
        return scores

    return score


def masked() -> ScoreBatch:
    """Score not the pictures but what their text is worth: the score minus that with the text blurred.

    Raises:
        RewardError: the extra `ocr` is not installed.
    """
    reader = load_reader()

    def score(
        reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str] | None, metadata: Metadata | None
    ) -> Scores:
        return masked_rescore(reward, list(images), prompts, metadata, reader=reader).astype(np.float64)

    return score


def _score_arm(reward: Reward, bases: BaseSet, arm: Arm, images: Sequence[Image.Image], rows: range) -> Scores:
    changed = map_in_threads(lambda i: arm.change(images[i], rows[i]), range(len(rows)))
    sources = [row if arm.prompt_rows is None else arm.prompt_rows[row] for row in rows]
    return (arm.score or together)(reward, changed, _pick(bases.prompts, sources), _pick(bases.metadata, sources))


def _unchanged(image: Image.Image, _: int) -> Image.Image:
    return image


def _pick(items: Sequence[Any] | None, rows: Sequence[int]) -> list[Any] | None:
    return None if items is None else [items[row] for row in rows]

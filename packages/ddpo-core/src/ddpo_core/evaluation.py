"""Looking at a policy: the same prompts and the same noise, before and after."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ddpo_core.html import html_facts, html_picture
from ddpo_core.prompts import PromptSet, as_prompt_set
from ddpo_core.sampling import roll_out
from ddpo_core.types import Params, Policy, Progress, RewardFunction

_SHOWN, _TILE = 16, 128  # in a notebook: how many, and how many pixels wide


class Evaluation(NamedTuple):
    """Images of fixed prompts and seeds with their scores, all on the CPU."""

    images: Tensor
    scores: Float[Tensor, " batch"]
    info: Mapping[str, Sequence[Any]]
    prompts: PromptSet
    seeds: tuple[int, ...]

    def _repr_html_(self) -> str:
        """Show the mean score and the first images in a notebook."""
        deviation = self.scores.double().std(correction=0).item()
        facts = {"mean score": f"{self.scores.double().mean().item():.4g} ± {deviation:.2g}"}
        scores = self.scores.tolist()
        tiles = [
            html_picture(_png(image), f"{prompt}: {score:.4g}", width=_TILE)
            for image, prompt, score in zip(self.images[:_SHOWN], self.prompts.prompts, scores, strict=False)
        ]
        more = len(scores) - len(tiles)
        rest = f"<p>and {more} more</p>" if more else ""
        return f"{html_facts(f'{len(scores)} images', facts)}{''.join(tiles)}{rest}"


def evaluate(
    policy: Policy,
    params: Params,
    reward_fn: RewardFunction,
    prompts: PromptSet | Sequence[str],
    *,
    num_steps: int,
    seeds: Sequence[int],
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Evaluation:
    """Sample and score one image per prompt; equal prompts and seeds give comparable images before and after training.

    Args:
        policy: The model with its sampler.
        params: The trainable leaves: `policy.params` for before, `state.params` for after.
        reward_fn: `(images, prompts, metadata) -> (scores, info)`.
        prompts: One prompt per image.
        num_steps: The number of denoising steps.
        seeds: One seed per prompt.
        batch_size: How many samples are denoised at once.
        progress: Called as `("sampling", done, total)`.

    Raises:
        DDPOError: If there is not one seed per prompt.
        NonFiniteError: If an image is not finite.
        ScoreError: If the reward does not return one finite score per image.

    Example:
        >>> from ddpo_core import toy
        >>> policy = toy.policy()
        >>> evaluate(policy, policy.params, toy.reward, ["left"], num_steps=4, seeds=[0]).scores.shape
        torch.Size([1])
    """
    checked = as_prompt_set(prompts, count=len(seeds))
    drawn = roll_out(
        policy,
        params,
        reward_fn,
        checked,
        seeds=seeds,
        num_steps=num_steps,
        batch_size=batch_size,
        reward_workers=None,
        steps=range(0),
        progress=progress,
    )
    return Evaluation(drawn.images, drawn.scores, drawn.info, checked, tuple(seeds))


def image_grid(images: Float[Tensor, "batch 3 height width"], *, columns: int, gap: int = 2) -> Image.Image:
    """Lay images out in rows, left to right, on white.

    Args:
        images: Values in [0, 1].
        columns: Images per row, at least 1.
        gap: White pixels between images.

    Example:
        >>> image_grid(torch.zeros(3, 3, 8, 8), columns=2, gap=2).size
        (18, 18)
    """
    batch, _, height, width = images.shape
    columns = min(columns, batch)
    rows = -(-batch // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    grid = Image.new("RGB", size, "white")
    pixels = images.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for place, image in enumerate(pixels):
        corner = (place % columns * (width + gap), place // columns * (height + gap))
        grid.paste(Image.fromarray(np.ascontiguousarray(image)), corner)
    return grid


def _png(image: Float[Tensor, "3 height width"]) -> bytes:
    """Return a picture of at most twice the pixels that a notebook shows."""
    pixels = image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture, buffer = Image.fromarray(np.ascontiguousarray(pixels)), BytesIO()
    picture.thumbnail((2 * _TILE, 2 * _TILE))
    picture.save(buffer, "PNG")
    return buffer.getvalue()

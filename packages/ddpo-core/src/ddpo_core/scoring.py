"""Calling a reward that somebody else wrote, and believing nothing of what it returns."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.errors import NonFiniteError, ScoreError
from ddpo_core.types import RewardFunction

Info = dict[str, list[Any]]


def score_images(
    reward_fn: RewardFunction,
    images: Float[Tensor, "batch ..."],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
) -> tuple[Float[Tensor, " batch"], Info]:
    """Score images and check the answer: one finite number per image, per-sample lists beside it.

    Returns:
        The scores, float32 on the CPU, and the reward's info as lists with one entry per image.

    Raises:
        NonFiniteError: If an image is NaN or infinite; the reward is not called, for it might like that.
        ScoreError: If the reward returns anything but `(scores, info)`, a wrong count, or a score that is not finite.

    Example:
        >>> brightness = lambda images, prompts, metadata: (images.mean((1, 2, 3)), {})
        >>> score_images(brightness, torch.ones(2, 3, 4, 4), ["a cat", "a dog"], [{}, {}])
        (tensor([1., 1.]), {})
    """
    if not torch.isfinite(images).all():
        raise NonFiniteError(
            "the model drew images that are NaN or infinite; its parameters or its dtype have failed: "
            "go on from the last checkpoint with a lower learning rate, or use dtype float32"
        )
    with torch.no_grad():
        returned = reward_fn(images, prompts, metadata)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ScoreError(f"the reward returned {_brief(returned)}; want a pair (scores, info)")
    return _check_scores(returned[0], len(prompts)), _check_info(returned[1], len(prompts))


def _check_scores(scores: Any, count: int) -> Tensor:
    try:
        # A copy: a reward may reuse its buffer for the next batch.
        checked = torch.as_tensor(scores).detach().to("cpu", torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError):
        raise ScoreError(f"the reward returned the scores {_brief(scores)}; want {count} numbers") from None
    if checked.shape != (count,):
        raise ScoreError(
            f"the reward returned scores of shape {tuple(checked.shape)} for {count} images; want ({count},)"
        )
    bad = torch.nonzero(~torch.isfinite(checked)).flatten().tolist()
    if bad:
        raise ScoreError(
            f"the reward returned {checked[bad[0]].item()} for image {bad[0]} of {count}; want finite scores"
        )
    return checked


def _check_info(info: Any, count: int) -> Info:
    if not isinstance(info, Mapping):
        raise ScoreError(f"the reward returned the info {_brief(info)}; want a dict of lists with one entry per image")
    checked = {str(key): values.tolist() if hasattr(values, "tolist") else values for key, values in info.items()}
    for key, values in checked.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
            raise ScoreError(
                f"the reward returned info[{key!r}] = {_brief(values)}; want {count} entries, one per image"
            )
    return {key: list(values) for key, values in checked.items()}


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

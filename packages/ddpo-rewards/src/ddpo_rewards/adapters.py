"""Score functions of what other libraries score images with; what they cannot know is asked for, not guessed.

A network (`torch.nn.Module`) needs none of this. For a command line, put a factory into a module of yours:

    # my_rewards.py; then: ddpo score photos/ --reward "my_rewards:make()"
    def make():
        from transformers import pipeline

        return pipeline_reward(pipeline("image-classification", "Falconsai/nsfw_image_detection"), label="normal")
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ddpo_rewards.errors import RewardError
from ddpo_rewards.images import as_arrays

_ALL = 1_000_000  # labels; a pipeline gives the likeliest five unless it is asked for more, and cuts off at what it has


def pipeline_reward(
    pipeline: Callable[..., Any], *, label: str, batch_size: int = 8
) -> Callable[[Any], Float[np.ndarray, " batch"]]:
    """Score with a `transformers` pipeline of the task image-classification: the probability of one of its labels.

    Args:
        pipeline: as `transformers.pipeline("image-classification", ...)` returns it.
        label: whose score is wanted.
        batch_size: images at once.

    Raises:
        RewardError: when called, a label that the pipeline does not have, or answers of another form.
    """
    if batch_size < 1:
        raise RewardError(f"batch_size={batch_size!r} is not positive; want 1 or more")

    def score(images: Any) -> Float[np.ndarray, " batch"]:
        from PIL import Image

        pictures = [Image.fromarray(array) for array in as_arrays(images)]
        answers = pipeline(pictures, batch_size=batch_size, top_k=_ALL)
        return np.array([_score_of(label, answer) for answer in answers], np.float32)

    return score


def metric_reward(
    metric: Any, *, prompts: bool, as_bytes: bool, sign: float = 1.0
) -> Callable[..., Float[np.ndarray, " batch"]]:
    """Score with a metric of `torchmetrics`, image by image: `score = sign * metric(image[, prompt])`.

    A metric of torchmetrics is one number for all that it was given; reset before each image, it is one for each.

    Args:
        metric: with `reset()`, called with a tensor `[1, 3, height, width]`, and a list of one prompt.
        prompts: whether it takes the prompt too, as `CLIPScore` does.
        as_bytes: whether it wants 0 to 255 in uint8, as `CLIPScore` does, and not floats in [0, 1].
        sign: -1 where lower is better.

    Raises:
        RewardError: when called, an answer that is no number.
    """

    def one(image: Any, prompt: str | None) -> float:
        metric.reset()
        pixels = (image[None] * 255).round().byte() if as_bytes else image[None]
        value = metric(pixels) if prompt is None else metric(pixels, [prompt])
        try:
            return sign * float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RewardError(f"{type(metric).__name__} answered {value!r}; want one number for one image") from error

    if prompts:

        def score_with_prompts(images: Any, prompts: Sequence[str]) -> Float[np.ndarray, " batch"]:
            return np.array([one(image, prompt) for image, prompt in zip(images, prompts, strict=True)], np.float32)

        return score_with_prompts

    def score(images: Any) -> Float[np.ndarray, " batch"]:
        return np.array([one(image, None) for image in images], np.float32)

    return score


def _score_of(label: str, answer: Any) -> float:
    try:
        scores = {str(one["label"]): float(one["score"]) for one in answer}
    except (TypeError, KeyError, ValueError) as error:
        raise RewardError(f"the pipeline answered {answer!r}; want a list of labels with their scores") from error
    if label not in scores:
        raise RewardError(f"the pipeline has no label {label!r}; it has {', '.join(sorted(scores))}")
    return scores[label]

"""What the UNets of Stable Diffusion are told about prompts: one text encoder, or SDXL's two and the picture's size."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpo_core.diffusion.network import Arguments
from ddpo_core.types import Conditioning


class Text(NamedTuple):
    """How prompts become arguments of a UNet.

    - `encode(prompts)`: one row of conditioning per prompt.
    - `negative(prompt)`: the row that guidance steers away from; None is what the model's own pipeline does.
    - `arguments(conditioning)`: the UNet's embeddings, and its other arguments.
    """

    encode: Callable[[Sequence[str]], Conditioning]
    negative: Callable[[str | None], Conditioning]
    arguments: Arguments


class PooledText(NamedTuple):
    """SDXL's conditioning: embeddings of every token, and one of the whole prompt."""

    embeddings: Tensor
    pooled: Tensor


def text_of(pipeline: Any, device: torch.device, *, height: int, width: int) -> Text:
    """Make the text side of a pipeline in memory, whose networks are on `device`.

    Args:
        pipeline: Of Stable Diffusion 1.x, 2.x or XL.
        device: Where its networks are.
        height: Of the picture in pixels, which SDXL is told.
        width: Likewise.
    """
    if hasattr(pipeline, "text_encoder_2"):
        return _sdxl_text(pipeline, device, (height, width))
    return _text(pipeline, device)


def _text(pipeline: Any, device: torch.device) -> Text:
    def encode(prompts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            embeddings: Tensor = pipeline.encode_prompt(list(prompts), device, 1, False)[0]
        return embeddings

    def arguments(conditioning: Conditioning) -> tuple[Tensor, Mapping[str, Any]]:
        assert isinstance(conditioning, Tensor)
        return conditioning, {}

    return Text(encode, lambda prompt: encode([prompt or ""]), arguments)


def _sdxl_text(pipeline: Any, device: torch.device, size: tuple[int, int]) -> Text:
    # Original size, top left corner of the crop, target size: a picture that was never cropped.
    time_ids = torch.tensor([*size, 0, 0, *size], device=device)

    def encode(prompts: Sequence[str]) -> PooledText:
        with torch.no_grad():
            embeddings, _, pooled, _ = pipeline.encode_prompt(
                list(prompts), device=device, do_classifier_free_guidance=False
            )
        return PooledText(embeddings, pooled)

    def negative(prompt: str | None) -> PooledText:
        # None is zeros, or the encoded empty prompt, as the model's configuration says.
        with torch.no_grad():
            _, embeddings, _, pooled = pipeline.encode_prompt(
                [""], device=device, do_classifier_free_guidance=True, negative_prompt=prompt
            )
        return PooledText(embeddings, pooled)

    def arguments(conditioning: Conditioning) -> tuple[Tensor, Mapping[str, Any]]:
        embeddings, pooled = conditioning
        added = {"text_embeds": pooled, "time_ids": time_ids.to(pooled.dtype).expand(len(pooled), -1)}
        return embeddings, {"added_cond_kwargs": added}

    return Text(encode, negative, arguments)

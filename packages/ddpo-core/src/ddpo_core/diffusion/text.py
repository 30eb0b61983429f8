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
    - `negative()`: the row that guidance steers away from.
    - `arguments(conditioning)`: the UNet's embeddings, and its other arguments.
    """

    encode: Callable[[Sequence[str]], Conditioning]
    negative: Callable[[], Conditioning]
    arguments: Arguments


class PooledText(NamedTuple):
    """SDXL's conditioning: embeddings of every token, and one of the whole prompt."""

    embeddings: Tensor
    pooled: Tensor


def text_of(pipeline: Any, device: torch.device) -> Text:
    """Make the text side of a pipeline in memory, whose networks are on `device`."""
    return _sdxl_text(pipeline, device) if hasattr(pipeline, "text_encoder_2") else _text(pipeline, device)


def _text(pipeline: Any, device: torch.device) -> Text:
    def encode(prompts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            embeddings: Tensor = pipeline.encode_prompt(list(prompts), device, 1, False)[0]
        return embeddings

    def arguments(conditioning: Conditioning) -> tuple[Tensor, Mapping[str, Any]]:
        assert isinstance(conditioning, Tensor)
        return conditioning, {}

    return Text(encode, lambda: encode([""]), arguments)


def _sdxl_text(pipeline: Any, device: torch.device) -> Text:
    size = _pixels(pipeline)
    # Original size, top left corner of the crop, target size: a picture that was never cropped.
    time_ids = torch.tensor([*size, 0, 0, *size], device=device)

    def encode(prompts: Sequence[str]) -> PooledText:
        with torch.no_grad():
            embeddings, _, pooled, _ = pipeline.encode_prompt(
                list(prompts), device=device, do_classifier_free_guidance=False
            )
        return PooledText(embeddings, pooled)

    def negative() -> PooledText:
        # Zeros, or the encoded empty prompt, as the model's configuration says.
        with torch.no_grad():
            _, embeddings, _, pooled = pipeline.encode_prompt([""], device=device, do_classifier_free_guidance=True)
        return PooledText(embeddings, pooled)

    def arguments(conditioning: Conditioning) -> tuple[Tensor, Mapping[str, Any]]:
        embeddings, pooled = conditioning
        added = {"text_embeds": pooled, "time_ids": time_ids.to(pooled.dtype).expand(len(pooled), -1)}
        return embeddings, {"added_cond_kwargs": added}

    return Text(encode, negative, arguments)


def _pixels(pipeline: Any) -> tuple[int, int]:
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor

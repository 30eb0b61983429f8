"""`aesthetic`, the LAION predictor on CLIP ViT-L/14, and `clip_score` on the same tower."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ddpo_rewards import clip, published, weights
from ddpo_rewards.types import Metadata, RewardError, RewardResult

_LAYERS = (0, 2, 4, 6, 7)  # the linear layers of the published head; between them is dropout, and no activation
_CLIPSCORE_SCALE = 2.5


class AffineHead(NamedTuple):
    """`score = weight @ embedding + bias`, float32; what the published five layers amount to."""

    weight: Float[Tensor, " dim"]
    bias: Float[Tensor, ""]


@dataclass(frozen=True, eq=False)
class AestheticScore:
    """The score function of `aesthetic`."""

    tower: clip.Tower
    head: AffineHead
    batch_size: int

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> RewardResult:
        """Score images as the published predictor does."""
        embeddings = clip.embed_images(self.tower, images, batch_size=self.batch_size)
        return RewardResult(apply_head(self.head, embeddings).numpy(), {})

    def differentiable(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str] | None, metadata: Metadata | None, /
    ) -> Float[Tensor, " batch"]:
        """Score with gradients; the deviation is that of `clip.embed_differentiably`."""
        embeddings = clip.embed_differentiably(self.tower, images)
        return apply_head(AffineHead(*(part.to(embeddings.device) for part in self.head)), embeddings)


@dataclass(frozen=True, eq=False)
class ClipScore:
    """The score function of `clip_score`."""

    tower: clip.Tower
    batch_size: int

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], prompts: Sequence[str]) -> RewardResult:
        """Cosine of each image with its prompt."""
        unique = list(dict.fromkeys(prompts))
        texts = clip.embed_texts(self.tower, unique, batch_size=self.batch_size)
        rows = [unique.index(prompt) for prompt in prompts]
        cosines = (clip.embed_images(self.tower, images, batch_size=self.batch_size) * texts[rows]).sum(-1)
        cut_off = {prompt: clip.is_cut_off(self.tower, prompt) for prompt in unique}
        info = {
            "clipscore": (_CLIPSCORE_SCALE * cosines.clamp(min=0)).tolist(),
            "prompt_cut_off": [cut_off[prompt] for prompt in prompts],
        }
        return RewardResult(cosines.numpy(), info)

    def differentiable(
        self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str], metadata: Metadata | None, /
    ) -> Float[Tensor, " batch"]:
        """Cosine with gradients; the deviation is that of `clip.embed_differentiably`."""
        texts = clip.embed_texts(self.tower, prompts, batch_size=self.batch_size)
        embeddings = clip.embed_differentiably(self.tower, images)
        return (embeddings * texts.to(embeddings.device)).sum(-1)


def aesthetic(
    *,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    head: Path | None = None,
    tower: Path | None = None,
) -> AestheticScore:
    """LAION's aesthetic predictor (sac+logos+ava1-l14-linearMSE): `score = head(e / ||e||)`, e the CLIP embedding.

    Scores are mostly 3 to 7; "1 to 10" is how people rated, not a bound.

    Args:
        device: such as `cuda:1`; a GPU where there is one.
        dtype: of the tower: float16 on a GPU, else float32. The head is float32 always.
        batch_size: images at once; halved when memory runs out.
        head: a local copy of the published head (.pth or .safetensors).
        tower: a local copy of the CLIP ViT-L/14 checkpoint of OpenAI.

    Raises:
        RewardError: weights that cannot be had, or that are not these.

    Source: christophschuhmann/improved-aesthetic-predictor simple_inference.py; ddpo-pytorch aesthetic_scorer.py,
    whose input is divided by 255 twice where it is a float in [0, 1]; here it is not.
    """
    loaded = load_head(head or weights.fetch(published.AESTHETIC_HEAD))
    shared = _shared_tower(tower, device, dtype)
    return AestheticScore(shared, loaded, _batch_size(batch_size, shared))


def clip_score(
    *, device: str | None = None, dtype: str | None = None, batch_size: int | None = None, tower: Path | None = None
) -> ClipScore:
    """Cosine of image and prompt under CLIP ViT-L/14; options as in `aesthetic`.

    The score is the plain cosine, mostly 0.1 to 0.35; `info["clipscore"]` is Hessel et al.'s `2.5 max(cosine, 0)`,
    which libraries mix up with it. `info["prompt_cut_off"]` flags prompts beyond CLIP's 77 tokens.
    """
    shared = _shared_tower(tower, device, dtype)
    return ClipScore(shared, _batch_size(batch_size, shared))


def load_head(path: Path) -> AffineHead:
    """Read the published head, five linear layers without activations, as the one affine map they are.

    They are multiplied out in float64; scores differ from the layered float32 evaluation by at most 1e-6 or so.

    Raises:
        RewardError: the file cannot be read, or is no such head.
    """
    state = _read_state(path)
    try:
        layers = [(state[f"layers.{i}.weight"].double(), state[f"layers.{i}.bias"].double()) for i in _LAYERS]
        weight, bias = layers[0]
        for matrix, offset in layers[1:]:
            weight, bias = matrix @ weight, matrix @ bias + offset
    except (KeyError, RuntimeError) as error:
        raise RewardError(f"{path} is no aesthetic head: want linear layers {_LAYERS}, got {list(state)}") from error
    return AffineHead(weight[0].float(), bias[0].float())


def apply_head(head: AffineHead, embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
    """`weight @ embedding + bias` in float32.

    Example:
        >>> apply_head(AffineHead(torch.tensor([2.0, 0.0]), torch.tensor(1.0)), torch.tensor([[0.5, 9.0]]))
        tensor([2.])
    """
    return embeddings.float() @ head.weight + head.bias


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Saved on a GPU: without map_location it cannot be read where there is none.
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RewardError(f"there is no file {str(path)!r}") from error
    # torch's reader meets arbitrary bytes with IndexError, EOFError, UnpicklingError, RuntimeError and more.
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise RewardError(f"{path} cannot be read as weights: {type(error).__name__}: {why}") from error
    if not isinstance(state, dict):
        raise RewardError(f"{path} holds a {type(state).__name__}; want a dict of tensors")
    return state


def _shared_tower(path: Path | None, device: str | None, dtype: str | None) -> clip.Tower:
    if path is not None and not path.is_file():
        raise RewardError(f"there is no CLIP checkpoint {str(path)!r}")
    return clip.load_tower(clip.VIT_L_14, path or weights.fetch(published.CLIP_TOWER), device=device, dtype=dtype)


def _batch_size(batch_size: int | None, tower: clip.Tower) -> int:
    if batch_size is not None:
        return batch_size
    return 8 if tower.device.type == "cpu" else 64

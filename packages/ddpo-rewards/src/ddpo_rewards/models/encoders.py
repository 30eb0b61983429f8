"""Image and text encoders of transformers (CLIP, SigLIP, DINOv2), as towers that `clip` embeds with.

Images are resized by Pillow, as the processors did that these models were published with; transformers 5 resizes
tensors unless told otherwise, which differs by 0.015 in normalised units. Sizes, filter and normalisation are those
that the model's own folder states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn

from ddpo_rewards.compute import Device, DType, choose_device, choose_dtype
from ddpo_rewards.errors import RewardError
from ddpo_rewards.models import quietly
from ddpo_rewards.models.clip import Tower
from ddpo_rewards.specs import Weight
from ddpo_rewards.weights import find_model

if TYPE_CHECKING:
    from PIL.Image import Image

_SIGLIP, _LLAVA = "siglip", "llava"


def load_encoder(
    model: str,
    *,
    kind: str,
    published: Weight,
    revision: str | None = None,
    device: Device = None,
    dtype: DType = None,
) -> Tower:
    """Load a model of transformers that embeds images, and texts where it is a `clip` or a `siglip`.

    Of a `llava` it is the vision tower, by its pooled state.

    Args:
        model: hub id or folder.
        kind: what it has to be, by transformers' own word: `clip`, `siglip`, `dinov2` or `llava`.
        published: what is known of the weights that the caller asks for by default.
        revision: commit of the hub repository.
        device: a GPU where there is one.
        dtype: float16 on a GPU, float32 elsewhere.

    Raises:
        RewardError: no such model, one of another kind, or one that cannot be loaded.
    """
    chosen = choose_device(device)
    precision = choose_dtype(dtype, chosen)
    folder = str(find_model(model, revision, published=published))
    network, processor, tokenizer = _load(folder, kind, precision)
    network.to(chosen).eval().requires_grad_(False)
    edge, squeezed, crop = _sizes(processor)
    tokenize = None if tokenizer is None else _Tokenize(tokenizer, kind, _context_length(network))
    return Tower(
        model=_Encoder(network, crop),
        tokenize=tokenize,
        is_cut_off=(lambda _: False) if tokenize is None else tokenize.is_cut_off,
        image_size=crop,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        device=chosen,
        dtype=precision,
        fit=partial(squeeze if squeezed else resize_and_cut, edge=edge, resample=int(processor.resample)),
    )


def squeeze(image: "Image", *, edge: int, resample: int) -> "Image":
    """Resize to a square by one of Pillow's filters, whatever becomes of the proportions."""
    return image if image.size == (edge, edge) else image.resize((edge, edge), resample)


def resize_and_cut(image: "Image", *, edge: int, resample: int) -> "Image":
    """Resize the shortest edge by one of Pillow's filters and cut the square in the middle out.

    Where half a pixel is to be cut it is cut from the end, as transformers does; open_clip rounds it to even.
    """
    if image.size == (edge, edge):
        return image
    short = min(image.size)
    width, height = (edge if side == short else int(edge * side / short) for side in image.size)
    left, top = (width - edge) // 2, (height - edge) // 2
    return image.resize((width, height), resample).crop((left, top, left + edge, top + edge))


@dataclass(frozen=True, eq=False)
class _Encoder:
    """A network of transformers under the names that `clip` calls; it sees the middle `crop` pixels of an image."""

    network: nn.Module
    crop: int

    def encode_image(self, pixels: Float[Tensor, "batch 3 edge edge"]) -> Float[Tensor, "batch dim"]:
        start = (pixels.shape[-1] - self.crop) // 2
        seen = pixels[..., start : start + self.crop, start : start + self.crop]
        features = getattr(self.network, "get_image_features", self.network)
        return features(pixel_values=seen).pooler_output  # type: ignore[no-any-return]

    def encode_text(self, tokens: Any) -> Float[Tensor, "batch dim"]:
        return self.network.get_text_features(**tokens).pooler_output  # type: ignore[operator, no-any-return]


@dataclass(frozen=True, eq=False)
class _Tokenize:
    """Texts as a CLIP or a SigLIP wants them."""

    tokenizer: Any
    kind: str
    length: int

    def __call__(self, texts: Sequence[str]) -> Any:
        if self.kind != _SIGLIP:
            return self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
            )
        # SigLIP was trained on texts in lower case, filled up on the right to full length, and attends to the filling.
        return self.tokenizer(
            [text.lower() for text in texts],
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self.length,
            return_attention_mask=False,
            return_tensors="pt",
        )

    def is_cut_off(self, text: str) -> bool:
        return len(self.tokenizer(text.lower())["input_ids"]) > self.length


def _load(folder: str, kind: str, dtype: Any) -> tuple[nn.Module, Any, Any]:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        found = AutoConfig.from_pretrained(folder, **local).model_type
        if found != kind:
            raise RewardError(f"{folder} is a model of the kind {found!r}; want {kind!r}")
        whole = AutoModelForImageTextToText if kind == _LLAVA else AutoModel
        with quietly():
            network = whole.from_pretrained(folder, dtype=dtype, use_safetensors=True, **local)
        network = network.model.vision_tower if kind == _LLAVA else network
        processor = AutoImageProcessor.from_pretrained(folder, **local)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local) if hasattr(network, "get_text_features") else None
    except RewardError:
        raise
    # transformers raises OSError, ValueError, KeyError, and safetensors its own, for what is one thing to a person.
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise RewardError(f"{folder} cannot be loaded as a {kind} model: {why}") from error
    return network, processor, tokenizer


def _sizes(processor: Any) -> tuple[int, bool, int]:
    """The edge that images are resized to, whether both are, and the edge that is looked at."""
    size = processor.size
    shortest = size.get("shortest_edge")
    if shortest is None:
        if size.get("height") != size.get("width") or size.get("height") is None:
            raise RewardError(f"images of {dict(size)} are wanted; this can only make squares")
        return int(size["height"]), True, int(size["height"])
    is_cropped = getattr(processor, "do_center_crop", False)
    crop = int(processor.crop_size["height"]) if is_cropped else int(shortest)
    if crop > shortest:
        raise RewardError(f"a crop of {crop} pixels out of {shortest} is wanted; this can only cut smaller")
    return int(shortest), False, crop


def _context_length(network: Any) -> int:
    return int(network.config.text_config.max_position_embeddings)

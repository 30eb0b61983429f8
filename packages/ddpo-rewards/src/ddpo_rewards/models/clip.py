"""CLIP through open_clip, with the three traps closed: the activation, preprocessing, and the norm.

open_clip builds `('ViT-L-14', 'openai')` with plain GELU and only warns; here the loaded tower is checked. Images are
resized by Pillow exactly as open_clip's own transform does it. Embeddings are L2-normalised in float32. Towers that
transformers loads (`encoders`) embed through the same functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ddpo_rewards.compute import BatchSize, Device, DType, choose_device, choose_dtype, map_batches
from ddpo_rewards.errors import RewardError
from ddpo_rewards.models import CLIP_TOWER
from ddpo_rewards.weights import fetch

if TYPE_CHECKING:
    from PIL.Image import Image

VIT_L_14 = "ViT-L-14-quickgelu"
CONTEXT_LENGTH = 77  # tokens, with the start and the end


@dataclass(frozen=True, eq=False)
class Tower:
    """A model in evaluation mode that embeds images, and texts where it has a `tokenize`, with what its inputs need."""

    model: Any  # has encode_image(pixels) and, where it reads, encode_text(tokens)
    tokenize: Any
    is_cut_off: Callable[[str], bool]  # whether a text has more tokens than are read
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device
    dtype: torch.dtype
    fit: "Callable[..., Image]"  # brings an image to the size that the tower looks at

    def prepare(self, image: "Image") -> "Image":
        """Bring an image to what the tower looks at; what is so already stays as it is."""
        return self.fit(image)


# The one shared thing in this package: `aesthetic` and `clip_score` use one tower, as long as either lives.
_TOWERS: "WeakValueDictionary[tuple[object, ...], Tower]" = WeakValueDictionary()


def load_tower(
    name: str,
    checkpoint: Path | None,
    *,
    device: Device = None,
    dtype: DType = None,
    activation: str = "QuickGELU",
    fit: Callable[..., Any] | None = None,
) -> Tower:
    """Load a CLIP by open_clip's name (or `local-dir:FOLDER`, whose checkpoint is its own).

    The same tower asked for twice is one tower in memory.

    Args:
        name: of the architecture.
        checkpoint: the weights.
        device: a GPU where there is one.
        dtype: float16 on a GPU, float32 elsewhere.
        activation: what the weights were trained with: QuickGELU (OpenAI) or GELU (LAION).
        fit: a function `fit(image, size=...)` that brings an image to the tower's size; else `resize_and_crop`.

    Raises:
        RewardError: a checkpoint that does not fit, or a tower with another activation.
    """
    chosen = choose_device(device)
    kind = choose_dtype(dtype, chosen)
    key = (name, checkpoint, chosen, kind) if fit is None else (name, checkpoint, chosen, kind, fit)
    tower = _TOWERS.get(key)
    if tower is None:
        tower = _TOWERS[key] = _load(name, checkpoint, chosen, kind, activation, fit or resize_and_crop)
    return tower


def load_vit_l_14(checkpoint: Path | None, *, device: Device = None, dtype: DType = None) -> Tower:
    """OpenAI's ViT-L/14, of a local copy of its checkpoint or else the published one; see `load_tower`."""
    if checkpoint is not None and not checkpoint.is_file():
        raise RewardError(f"there is no CLIP checkpoint {str(checkpoint)!r}")
    return load_tower(VIT_L_14, checkpoint or fetch(CLIP_TOWER), device=device, dtype=dtype)


def batch_size_of(tower: Tower, asked: int | None) -> BatchSize:
    """Images at once: as many as asked for, else 8 on a CPU and 64 on a GPU."""
    usual = 8 if tower.device.type == "cpu" else 64
    return BatchSize(usual if asked is None else asked)


def embed_images(tower: Tower, images: "Sequence[Image]", *, batch_size: BatchSize) -> Float[Tensor, "batch dim"]:
    """Unit embeddings of RGB images, float32 on the CPU; Pillow preprocesses on all cores while the network runs."""

    def run(batch: "list[Image]") -> Sequence[Tensor]:
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in batch]))
        on_gpu = tower.device.type == "cuda"
        # From pinned memory the copy is queued behind what the GPU still does, and the CPU goes on.
        pixels = (pixels.pin_memory() if on_gpu else pixels).to(tower.device, non_blocking=on_gpu)
        # In place: memory for another copy of the batch takes longer to be had than the arithmetic.
        floats, (mean, std) = pixels.permute(0, 3, 1, 2).float(), _mean_and_std(tower, pixels.device)
        return list(_embed(tower, floats.div_(255).sub_(mean).div_(std)))

    with torch.no_grad():  # inference_mode's tensors could take no part in anybody's gradient
        return torch.stack(map_batches(tower.prepare, run, images, batch_size=batch_size)).cpu()


def embed_texts(tower: Tower, texts: Sequence[str], *, batch_size: BatchSize) -> Float[Tensor, "batch dim"]:
    """Unit embeddings of texts, float32 on the CPU; what exceeds the tower's tokens (77 of CLIP) is cut off."""

    def run(batch: list[str]) -> Sequence[Tensor]:
        tokens = tower.tokenize(batch).to(tower.device)
        return list(functional.normalize(tower.model.encode_text(tokens).float(), dim=-1))

    with torch.no_grad():
        return torch.stack(map_batches(str, run, texts, batch_size=batch_size)).cpu()


def embed_differentiably(tower: Tower, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
    """Unit embeddings through which gradients reach the images; no Pillow, no rounding to 8 bits.

    Deviation: torch's antialiased bicubic resize, clamped to [0, 1], differs from Pillow's by 0.045 in normalised units
    at worst on a 512 x 512 test photograph (0.39 without antialiasing). For a float path like this one, imscore reports
    that aesthetic scores move by 0.02 on average.

    Raises:
        RewardError: a tower that is given pictures otherwise than resized and cropped.
    """
    if not isinstance(tower.fit, partial) or tower.fit.func is not resize_and_crop:
        raise RewardError("gradients reach the images of towers that crop; this one pads or squeezes them")
    height, width = images.shape[-2:]
    new_height, new_width = _resized(height, width, tower.image_size)
    resized = functional.interpolate(
        images.to(tower.device).float(), (new_height, new_width), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)
    top, left = _offset(new_height, tower.image_size), _offset(new_width, tower.image_size)
    cropped = resized[..., top : top + tower.image_size, left : left + tower.image_size]
    return _embed(tower, normalise(tower, cropped))


def resize_and_crop(image: "Image", *, size: int) -> "Image":
    """Resize the shortest edge by Pillow's bicubic filter and crop the centre, as open_clip's transform does.

    What lies outside the centre square is invisible to CLIP.

    Example:
        >>> from PIL import Image
        >>> resize_and_crop(Image.new("RGB", (500, 300)), size=224).size
        (224, 224)
    """
    from PIL.Image import Resampling

    if image.size == (size, size):
        return image
    height, width = _resized(image.height, image.width, size)
    resized = image.resize((width, height), Resampling.BICUBIC)
    top, left = _offset(height, size), _offset(width, size)
    return resized.crop((left, top, left + size, top + size))


def resize_and_pad(image: "Image", *, size: int) -> "Image":
    """Resize the longest edge by Pillow's bicubic filter and lay the image on the middle of a black square.

    Example:
        >>> from PIL import Image
        >>> padded = resize_and_pad(Image.new("RGB", (600, 300), "white"), size=4)
        >>> [padded.getpixel((0, row))[0] for row in range(4)]
        [0, 255, 255, 0]
    """
    from PIL import Image

    if image.size == (size, size):
        return image
    scale = size / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    square = Image.new("RGB", (size, size))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return square


def normalise(tower: Tower, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """From [0, 1] to the tower's units, `(x - mean) / std` per channel."""
    mean, std = _mean_and_std(tower, images.device)
    return (images - mean) / std


def _mean_and_std(tower: Tower, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each channel [3, 1, 1]; not made on the device: that would wait for all that it is doing."""
    mean, std = (torch.tensor(values).view(3, 1, 1).to(device, non_blocking=True) for values in (tower.mean, tower.std))
    return mean, std


def _load(
    name: str,
    checkpoint: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    activation: str,
    fit: Callable[..., Any],
) -> Tower:
    import open_clip

    precision = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    source = {} if checkpoint is None else {"pretrained": str(checkpoint)}
    try:
        model = open_clip.create_model(
            name, precision=precision, device=device, weights_only=True, require_pretrained=True, **source
        )
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RewardError(f"{checkpoint or name} is no checkpoint for the CLIP tower {name!r}: {reason}") from error
    check_activation(model, name, activation)
    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"] if isinstance(settings["size"], int) else settings["size"][0]
    model.eval().requires_grad_(False)
    tokenize = open_clip.get_tokenizer(name)
    length = getattr(tokenize, "context_length", CONTEXT_LENGTH)
    return Tower(
        model=model,
        tokenize=tokenize,
        is_cut_off=lambda text: len(tokenize.encode(text)) + 2 > length,  # two mark the beginning and the end
        image_size=size,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        device=device,
        dtype=dtype,
        fit=partial(fit, size=size),
    )


def check_activation(model: nn.Module, name: str, wanted: str) -> None:
    """Check that every activation of a tower is the one that its weights need: QuickGELU those of OpenAI.

    With plain GELU nothing fails, but scores move by about half a point (4.44 instead of 5.05 on a published photo).

    Raises:
        RewardError: some activation is another one, or there is none.
    """
    kinds = {type(module).__name__ for module in model.modules() if "GELU" in type(module).__name__.upper()}
    if kinds != {wanted}:
        found = ", ".join(sorted(kinds)) or "no GELU at all"
        other = f"; load {VIT_L_14!r}" if wanted == "QuickGELU" else ""
        raise RewardError(f"the CLIP tower {name!r} has {found}, but its weights need {wanted}{other}")


def _embed(tower: Tower, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
    embeddings: Tensor = tower.model.encode_image(images.to(tower.dtype))
    return functional.normalize(embeddings.float(), dim=-1)


def _resized(height: int, width: int, size: int) -> tuple[int, int]:
    short, long = sorted((height, width))
    new_long = int(size * long / short)
    return (size, new_long) if height <= width else (new_long, size)


def _offset(length: int, size: int) -> int:
    return round((length - size) / 2)

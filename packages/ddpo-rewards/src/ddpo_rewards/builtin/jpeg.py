"""JPEG compressibility and incompressibility: how many kilobytes an image takes. No torch in here.

Source: Black et al. 2023, section 5.1; ddpo-pytorch rewards.py (quality 95, Pillow's default 4:2:0, bytes / 1000).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

from ddpo_rewards.compute import map_in_threads, usable_cores
from ddpo_rewards.errors import RewardError
from ddpo_rewards.specs import ReferenceScore, RewardSpec

if TYPE_CHECKING:
    from PIL.Image import Image

    from ddpo_rewards.reward import RewardResult

QUALITY = 95
_KILO = 1000
_MEGA = 1_000_000
_SOURCE = "Black et al. 2023, Training Diffusion Models with Reinforcement Learning, arXiv:2305.13301"

_DISC = ReferenceScore(
    image="drawn:disc",
    sha256="08b857b720f5d89d8e4c5df92efc895a4dabacdd66adbe7449d86d74fe8e6de9",
    score=2.565,
    # Quality 94 makes it 0.11 smaller.
    tolerance=0.02,
    source="measured with Pillow 12.3.0, libjpeg-turbo 3.1.4",
)
COMPRESSIBILITY = RewardSpec(
    name="jpeg_compressibility",
    factory="ddpo_rewards.builtin.jpeg:compressibility",
    summary="Small JPEG files: minus the kilobytes at quality 95.",
    takes="pil",
    unit="kB",
    range=(float("-inf"), 0.0),
    licence="Apache-2.0",
    source=_SOURCE,
    reference_scores=(replace(_DISC, score=-_DISC.score),),
)
INCOMPRESSIBILITY = RewardSpec(
    name="jpeg_incompressibility",
    factory="ddpo_rewards.builtin.jpeg:incompressibility",
    summary="Large JPEG files: the kilobytes at quality 95.",
    takes="pil",
    unit="kB",
    range=(0.0, float("inf")),
    licence="Apache-2.0",
    source=_SOURCE,
    reference_scores=(_DISC,),
)


def jpeg_sizes(images: "Sequence[Image]", *, quality: int = QUALITY) -> list[int]:
    """Bytes of each RGB image as the JPEG file that `PIL.Image.save(..., quality=quality)` writes of its pixels.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> buffer, red = io.BytesIO(), Image.new("RGB", (64, 64), "red")
        >>> red.save(buffer, "JPEG", quality=95)
        >>> jpeg_sizes([red]) == [buffer.tell()]
        True
    """
    threads = min(len(images), usable_cores())
    # Every thread takes every n-th image, not one at a time: it can then use its file again.
    parts = map_in_threads(partial(_sizes, quality=quality), [images[i::threads] for i in range(threads)])
    return [parts[i % threads][i // threads] for i in range(len(images))]


def compressibility(*, quality: int = QUALITY) -> "Callable[..., RewardResult]":
    """Reward small files: `score = -bytes / 1000` of the JPEG at this quality (1 to 100), in kB."""
    return _signed(-1.0, quality)


def incompressibility(*, quality: int = QUALITY) -> "Callable[..., RewardResult]":
    """Reward large files: `score = bytes / 1000` of the JPEG at this quality (1 to 100), in kB."""
    return _signed(1.0, quality)


def _signed(sign: float, quality: int) -> "Callable[..., RewardResult]":
    import numpy as np

    from ddpo_rewards.reward import RewardResult

    if not 1 <= quality <= 100:
        raise RewardError(f"quality={quality!r} is no JPEG quality; want 1 to 100")

    def score(images: list[Any]) -> RewardResult:
        kilobytes = [size / _KILO for size in jpeg_sizes(images, quality=quality)]
        megapixels = [image.width * image.height / _MEGA for image in images]
        per_megapixel = [size / area for size, area in zip(kilobytes, megapixels, strict=True)]
        info = {"kilobytes": kilobytes, "kilobytes_per_megapixel": per_megapixel}
        return RewardResult(np.asarray(kilobytes, np.float32) * np.float32(sign), info)

    return score


def _sizes(images: "Sequence[Image]", quality: int) -> list[int]:
    """Encode one after the other into one file: new memory for each would cost time."""
    sizes = []
    with _scratch_file() as file:
        for image in images:
            file.seek(0)
            # Without the comment of the file that it may come from, which would be saved along and counted.
            image.save(file, "JPEG", quality=quality, comment=b"")
            sizes.append(file.tell())
    return sizes


def _scratch_file() -> IO[bytes]:
    """A file in memory with a descriptor: Pillow releases the interpreter lock only when it writes to one of those."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("jpeg"), "wb", buffering=0)
    return TemporaryFile(buffering=0)

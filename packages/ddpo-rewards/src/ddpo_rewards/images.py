"""Read image files: every format Pillow knows, with one defined answer for each oddity.

Transparency is laid on white. Palettes, grey, CMYK and 16 bits become 8-bit RGB (16 bits by scaling, not by
clipping as Pillow would; floats are taken as 0 to 255). EXIF rotation is applied. Of an animation the first frame is
read. Empty, truncated and damaged files, and images of more than `MAX_PIXELS` pixels, raise `ImageError`.
"""

import os
from typing import TYPE_CHECKING

import numpy as np

from ddpo_rewards.types import RewardError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485  # Pillow's own limit, at which it only warns: 0.25 GiB of RGB
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class ImageError(RewardError):
    """An image that cannot be read; the text names the file and says why."""


def load_image(path: str | os.PathLike[str]) -> "Image":
    """Read a file as an RGB image, upright and opaque.

    Raises:
        ImageError: no such file, no image, empty, truncated, damaged, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if os.stat(path).st_size == 0:
            raise ImageError(f"{os.fspath(path)!r} is empty (0 bytes); replace the file")
        with Image.open(path) as image:
            # Pillow refuses twice as much and only warns here. Turning its warning into an error would change the
            # filters of the whole process, which other threads are reading files in.
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return to_rgb(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{os.fspath(path)!r} has more than {MAX_PIXELS:,} pixels; shrink it first") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{os.fspath(path)!r} is no image that Pillow can read") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ImageError(f"{os.fspath(path)!r} cannot be read: {error.strerror}") from error
    # A damaged file reaches every corner of a decoder: Pillow raises OSError, SyntaxError, struct.error and more.
    except Exception as error:
        raise ImageError(f"{os.fspath(path)!r} is damaged or truncated: {error}") from error


def to_rgb(image: "Image") -> "Image":
    """Bring an open image to upright, opaque 8-bit RGB.

    Example:
        >>> from PIL import Image
        >>> to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))  # black, fully transparent: white
        (255, 255, 255)
    """
    from PIL import Image, ImageOps

    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BIT:
        return Image.fromarray(_eight_bits(np.asarray(upright))).convert("RGB")
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return upright
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    with_alpha = upright.convert("RGBA")
    background = Image.new("RGBA", with_alpha.size, "white")
    return Image.alpha_composite(background, with_alpha).convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """65535 / 255 = 257 exactly, so black stays black and white stays white."""
    return np.asarray(np.clip((values.astype(np.int64) + 128) // 257, 0, 255), dtype=np.uint8)

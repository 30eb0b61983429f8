"""Images as callers have them, files included, checked and brought into the form that a reward takes.

Of files every format is read that Pillow knows, with one defined answer for each oddity. Transparency is laid on white.
Palettes, grey, CMYK and 16 bits become 8-bit RGB (16 bits by scaling, not by clipping as Pillow would; floats are taken
as 0 to 255). EXIF rotation is applied. Of an animation the first frame is read. Empty, truncated and damaged files, and
images of more than `MAX_PIXELS` pixels, raise `ImageError`.
"""

import io
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from ddpo_rewards.compute import map_in_threads
from ddpo_rewards.errors import ImageError, RewardError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_Out = TypeVar("_Out")
MAX_PIXELS = 89_478_485  # Pillow's own limit, at which it only warns: 0.25 GiB of RGB
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_WANTED = (
    "want a tensor [batch, 3, height, width], float in [0, 1] or uint8, or a list of uint8 arrays [height, width, 3], "
    "PIL images, paths or the bytes of files"
)
_ORIENTATION = 0x0112
_TOLERANCE = 1e-3  # decoders overshoot [0, 1] by rounding; more than this is another range


def load_image(path: str | os.PathLike[str] | bytes) -> "Image":
    """Read a file, or the bytes of one, as an RGB image, upright and opaque.

    Raises:
        ImageError: no such file, no image, empty, truncated, damaged, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    what = f"an image of {len(path)} bytes" if isinstance(path, bytes) else repr(os.fspath(path))
    try:
        if (len(path) if isinstance(path, bytes) else os.stat(path).st_size) == 0:
            raise ImageError(f"{what} is empty (0 bytes); replace the file")
        with Image.open(io.BytesIO(path) if isinstance(path, bytes) else path) as image:
            # Pillow refuses twice as much and only warns here. Turning its warning into an error would change the
            # filters of the whole process, which other threads are reading files in.
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return to_rgb(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{what} has more than {MAX_PIXELS:,} pixels; shrink it first") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{what} is no image that Pillow can read") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ImageError(f"{what} cannot be read: {error.strerror}") from error
    # A damaged file reaches every corner of a decoder: Pillow raises OSError, SyntaxError, struct.error and more.
    except Exception as error:
        raise ImageError(f"{what} is damaged or truncated: {error}") from error


def to_rgb(image: "Image") -> "Image":
    """Bring an open image to upright, opaque 8-bit RGB.

    Example:
        >>> from PIL import Image
        >>> to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))  # black, fully transparent: white
        (255, 255, 255)
    """
    from PIL import Image, ImageOps

    image.load()
    # exif_transpose copies an image that is upright already, and so would every caller that passes one on.
    upright = image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BIT:
        return Image.fromarray(_eight_bits(np.asarray(upright))).convert("RGB")
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return upright
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    with_alpha = upright.convert("RGBA")
    background = Image.new("RGBA", with_alpha.size, "white")
    return Image.alpha_composite(background, with_alpha).convert("RGB")


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor, without importing torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def count_images(images: Any) -> int:
    """The number of images.

    Raises:
        RewardError: no images, a single one outside a list, or something else.
    """
    if is_tensor(images) or isinstance(images, np.ndarray):
        if images.ndim != 4:
            hint = ": one image is images[None]" if images.ndim == 3 else ""
            raise RewardError(f"images have the shape {list(images.shape)}{hint}; {_WANTED}")
    elif isinstance(images, str | os.PathLike | bytes) or hasattr(images, "getexif"):
        raise RewardError(f"images is a single {type(images).__name__}; pass a list, [image]")
    elif not isinstance(images, Sequence):
        raise RewardError(f"images is of type {type(images).__name__}; {_WANTED}")
    if len(images) == 0:
        raise RewardError(f"there are no images; {_WANTED}")
    return len(images)


def as_arrays(images: Any) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Bring images to a list of uint8 arrays `[height, width, 3]`; floats are rounded, not truncated.

    Source: ddpo-pytorch rounds (its JAX predecessor truncates, which makes JPEG files about 0.1 % smaller).

    Example:
        >>> as_arrays(np.zeros((2, 4, 6, 3), np.uint8))[1].shape
        (4, 6, 3)
    """
    if is_tensor(images):
        return list(_tensor_to_arrays(images))
    return _map_images(as_array, images)


def as_pictures(images: Any) -> "list[Image]":
    """Bring images to a list of PIL images, 8-bit RGB; otherwise as `as_arrays`.

    Example:
        >>> as_pictures(np.zeros((2, 4, 6, 3), np.uint8))[1].size
        (6, 4)
    """
    given = as_arrays(images) if is_tensor(images) else images
    return _map_images(lambda image, index: to_picture(read_image(image, index)), given)


def as_array(image: Any, index: int) -> UInt8[np.ndarray, "height width 3"]:
    """Bring one image to a uint8 array; otherwise as `read_image`."""
    return np.asarray(read_image(image, index))


def to_picture(image: "Image | UInt8[np.ndarray, 'height width 3']") -> "Image":
    """Bring what `read_image` returned to a PIL image."""
    from PIL import Image

    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def read_image(image: Any, index: int) -> "Image | UInt8[np.ndarray, 'height width 3']":
    """Check one image and bring it to 8-bit RGB, with no copy that can be spared: a file or PIL image stays one of PIL.

    Args:
        image: one item of what `Reward.__call__` takes.
        index: which one it is, for the error where it is none.

    Raises:
        ImageError: a file that cannot be read.
        RewardError: what is no image.
    """
    if isinstance(image, str | os.PathLike | bytes):
        return load_image(image)
    if hasattr(image, "getexif"):  # a PIL image, without importing PIL to find out
        return to_rgb(image)
    if is_tensor(image):
        return as_arrays(image[None])[0]
    if not isinstance(image, np.ndarray):
        raise RewardError(f"image {index} is of type {type(image).__name__}; {_WANTED}")
    if image.dtype != np.uint8:
        raise RewardError(f"image {index} is an array of {image.dtype}; convert it to uint8 in 0..255: {_WANTED}")
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        hint = ": move channels last, image.transpose(1, 2, 0)" if image.shape[:1] == (3,) else ""
        raise RewardError(f"image {index} has the shape {list(image.shape)}{hint}; {_WANTED}")
    return image


def as_tensors(images: Any) -> "list[tuple[list[int], Tensor]]":
    """Bring images to float32 tensors in [0, 1], one `(indices, batch)` per image size, in order of appearance."""
    import torch

    if is_tensor(images):
        return [(list(range(len(images))), as_unit_floats(images))]
    arrays = as_arrays(images)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, array in enumerate(arrays):
        groups[array.shape].append(index)
    return [
        (indices, torch.from_numpy(np.stack([arrays[i] for i in indices])).permute(0, 3, 1, 2).float() / 255)
        for indices in groups.values()
    ]


def as_unit_floats(images: "Tensor") -> "Tensor":
    """Bring a checked tensor to float32 in [0, 1]; bytes are divided by 255."""
    import torch

    check_tensor(images)
    return images.float() / 255 if images.dtype == torch.uint8 else images.float().clamp(0, 1)


def check_tensor(images: "Tensor") -> None:
    """Check a tensor's type, shape and range.

    Raises:
        RewardError: saying which of the usual other conventions the tensor seems to follow.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        hint = ": bring channels forward, images.permute(0, 3, 1, 2)" if images.shape[-1:] == (3,) else ""
        raise RewardError(f"images have the shape {list(images.shape)}{hint}; {_WANTED}")
    if str(images.dtype) == "torch.uint8":
        return
    if not images.is_floating_point():
        raise RewardError(f"images are of type {images.dtype}; pass images.byte() or images.float() / 255: {_WANTED}")
    low, high = (float(bound) for bound in images.detach().float().aminmax())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise RewardError(f"images lie in [{low:g}, {high:g}]{_range_hint(low, high)}; {_WANTED}")


def _map_images(function: Callable[[Any, int], _Out], images: Any) -> list[_Out]:
    """Apply a function to each image and its index, in threads but where all are decoded: handing over takes longer."""
    if all(map(_is_decoded, images)):
        return [function(image, index) for index, image in enumerate(images)]
    return map_in_threads(lambda index: function(images[index], index), range(len(images)))


def _is_decoded(image: Any) -> bool:
    """Whether the pixels lie in memory; Pillow's files have tiles as long as they do not."""
    return isinstance(image, np.ndarray) or (hasattr(image, "getexif") and not getattr(image, "tile", ()))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """65535 / 255 = 257 exactly, so black stays black and white stays white."""
    return np.asarray(np.clip((values.astype(np.int64) + 128) // 257, 0, 255), dtype=np.uint8)


def _range_hint(low: float, high: float) -> str:
    if not (np.isfinite(low) and np.isfinite(high)):
        return ": they hold NaN or infinity"
    if low >= -1.01 and high <= 1.01:
        return ": if that is [-1, 1], pass images / 2 + 0.5"
    return ": if that is [0, 255], pass images / 255" if low >= 0 and high <= 255 else ": pass images.clamp(0, 1)"


def _tensor_to_arrays(images: "Tensor") -> UInt8[np.ndarray, "batch height width 3"]:
    check_tensor(images)
    as_bytes = images
    if images.is_floating_point():
        as_bytes = images.detach().float().clamp(0, 1).mul(255).round().byte()
    return np.ascontiguousarray(as_bytes.permute(0, 2, 3, 1).cpu().numpy())

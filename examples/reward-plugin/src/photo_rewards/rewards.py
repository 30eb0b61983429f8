"""The rewards themselves: images `[batch, 3, height, width]` in [0, 1] in, one score per image out."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddpo_rewards import RewardError

_MEAN_SHARE = 0.3  # how much the mean counts beside the spread, fitted by the authors to ratings
_LUMA = (0.299, 0.587, 0.114)
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def colourfulness() -> Callable[[Tensor], Tensor]:
    """Hasler and Süsstrunk's M = sqrt(var_rg + var_yb) + 0.3 sqrt(mean_rg^2 + mean_yb^2), on 8-bit values.

    rg = R - G and yb = (R + G) / 2 - B are the opponent channels.
    """

    def score(images: Tensor) -> Tensor:
        red, green, blue = (255 * images).flatten(2).unbind(dim=1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
        spread = opponents.var(dim=2, correction=0).sum(dim=1).sqrt()
        return spread + _MEAN_SHARE * opponents.mean(dim=2).norm(dim=1)

    return score


def sharpness(*, size: int = 0) -> Callable[[Tensor], Tensor]:
    """Variance of the Laplacian of the luma, on 8-bit values.

    It depends on the resolution; `size` first resizes the shorter edge to that many pixels (0: as it is).
    """
    if size < 0:
        raise RewardError(f"size={size!r} is negative; want pixels, or 0 for the image as it is")

    def score(images: Tensor) -> Tensor:
        luma = (255 * _resized(images, size) * images.new_tensor(_LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
        if min(luma.shape[-2:]) < 3:
            raise RewardError(f"sharpness needs images of 3 x 3 pixels or more, not {list(luma.shape[-2:])}")
        edges = torch.nn.functional.conv2d(luma, images.new_tensor(_LAPLACIAN)[None, None])
        return edges.flatten(1).var(dim=1, correction=0)

    return score


def _resized(images: Tensor, size: int) -> Tensor:
    if size == 0:
        return images
    scale = size / min(images.shape[-2:])
    shape = [max(1, round(edge * scale)) for edge in images.shape[-2:]]
    return torch.nn.functional.interpolate(images, shape, mode="bilinear", antialias=True, align_corners=False)

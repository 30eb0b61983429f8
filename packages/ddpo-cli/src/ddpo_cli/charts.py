"""A line chart drawn with Pillow: the one curve that a model card needs."""

from collections.abc import Sequence
from itertools import pairwise
from math import floor, log10

from PIL import Image, ImageDraw, ImageFont

from ddpo_cli.grids import INK, PAPER

SIZE = (720, 400)
SCALE = 2  # drawn larger and reduced, which smooths the lines
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 36, 48
GRID, CURVE, BAND = (225, 225, 225), (31, 119, 180), (214, 230, 241)
TICKS = 5


def line_chart(
    x: Sequence[float], y: Sequence[float], *, band: Sequence[float], title: str, x_label: str
) -> Image.Image:
    """Draw `y` over `x`, with a band of `y` plus and minus `band`; points lie in the order of `x`."""
    low, high = _padded(
        min(a - b for a, b in zip(y, band, strict=True)), max(a + b for a, b in zip(y, band, strict=True))
    )
    left, right = _padded(min(x), max(x)) if min(x) == max(x) else (min(x), max(x))
    image = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(image)

    def place(a: float, b: float) -> tuple[float, float]:
        width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
        across, up = (a - left) / (right - left), (b - low) / (high - low)
        return SCALE * (LEFT + across * width), SCALE * (TOP + (1 - up) * height)

    for tick in ticks(low, high):
        draw.line([place(left, tick), place(right, tick)], fill=GRID, width=SCALE)
        _text(draw, place(left, tick), f"{tick:.4g}", anchor="rm", shift=(-6, 0))
    for tick in ticks(left, right):
        _text(draw, place(tick, low), f"{tick:.6g}", anchor="mt", shift=(0, 6))
    upper = [place(a, b + c) for a, b, c in zip(x, y, band, strict=True)]
    lower = [place(a, b - c) for a, b, c in zip(x, y, band, strict=True)]
    if len(x) > 1:
        draw.polygon([*upper, *reversed(lower)], fill=BAND)
    points = [place(a, b) for a, b in zip(x, y, strict=True)]
    for segment in pairwise(points):
        draw.line(segment, fill=CURVE, width=2 * SCALE)
    if len(points) == 1:
        draw.circle(points[0], 3 * SCALE, fill=CURVE)
    draw.line([place(left, high), place(left, low), place(right, low)], fill=INK, width=SCALE)
    _text(draw, (SCALE * LEFT, SCALE * 8), title, anchor="lt")
    _text(draw, (SCALE * SIZE[0] / 2, SCALE * (SIZE[1] - 8)), x_label, anchor="mb")
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within `[low, high]`, about five of them.

    >>> ticks(0.0, 1.0), ticks(-2.31, -1.9)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [-2.3, -2.2, -2.1, -2.0, -1.9])
    """
    rough = (high - low) / TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= rough * 0.999)
    first = -floor(-low / step)
    return [round(step * count, 12) for count in range(first, floor(high / step + 1e-9) + 1)]


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, *, anchor: str, shift: tuple[int, int] = (0, 0)
) -> None:
    spot = (place[0] + SCALE * shift[0], place[1] + SCALE * shift[1])
    draw.text(spot, text, fill=INK, font=ImageFont.load_default(13 * SCALE), anchor=anchor)

"""The pictures that a run draws: samples in a grid, before and after, and the curve of its reward (Pillow alone)."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, floor, log10, sqrt
from pathlib import Path
from textwrap import wrap
from typing import TypeAlias

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpo_core.runs.folder import write_aside

Number: TypeAlias = float | int

MARGIN = 6
MIN_TILE = 128
PER_ROW = 8
FONT_SIZE = 12
LINE_HEIGHT = 15
MAX_LINES = 3
PAPER, INK = (255, 255, 255), (32, 32, 32)

CHART_SIZE = (720, 400)
SCALE = 2  # charts are drawn larger and reduced, which smooths the lines
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 36, 48
GRID_LINES, CURVE, BAND = (225, 225, 225), (31, 119, 180), (214, 230, 241)
TICKS = 5


def to_pil(images: Float[Tensor, "batch 3 height width"]) -> list[Image.Image]:
    """Images in [0, 1] as 8-bit pictures (rounded, not truncated)."""
    pixels = images.detach().float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in pixels]


def grid(
    images: Sequence[Image.Image], captions: Sequence[str], *, columns: int | None = None, title: str | None = None
) -> Image.Image:
    """All `images` in rows with their captions below; small ones are enlarged by whole factors, unsmoothed."""
    assert len(images) == len(captions)
    columns = columns or ceil(sqrt(len(images)))
    tiles = [_tile(image) for image in images]
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    lines = [_wrap(caption, width) for caption in captions]
    text_height = LINE_HEIGHT * max(len(text) for text in lines)
    head = LINE_HEIGHT + MARGIN if title else 0
    step_x, step_y = width + MARGIN, height + text_height + MARGIN
    rows = ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (MARGIN + columns * step_x, MARGIN + head + rows * step_y), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, MARGIN), title, fill=INK, font=_font())
    for index, (tile, text) in enumerate(zip(tiles, lines, strict=True)):
        x, y = MARGIN + index % columns * step_x, MARGIN + head + index // columns * step_y
        sheet.paste(tile, (x + (width - tile.width) // 2, y + (height - tile.height) // 2))
        draw.multiline_text((x, y + height + 1), "\n".join(text), fill=INK, font=_font(), spacing=2)
    return sheet


def before_after(
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    *,
    captions: tuple[Sequence[str], Sequence[str]],
    titles: tuple[str, str],
) -> Image.Image:
    """Two rows of the same prompts and seeds, `before` above `after`, for each eight images."""
    sheets = []
    for start in range(0, len(before), PER_ROW):
        part = slice(start, min(start + PER_ROW, len(before)))
        for images, texts, title in zip((before, after), captions, titles, strict=True):
            sheets.append(grid(images[part], texts[part], columns=PER_ROW, title=title))
    return _stack(sheets)


def line_chart(
    x: Sequence[Number], y: Sequence[Number], *, band: Sequence[Number], title: str, x_label: str
) -> Image.Image:
    """Draw `y` over `x`, with a band of `y` plus and minus `band`; points lie in the order of `x`."""
    low, high = _padded(
        min(a - b for a, b in zip(y, band, strict=True)), max(a + b for a, b in zip(y, band, strict=True))
    )
    left, right = _padded(min(x), max(x)) if min(x) == max(x) else (min(x), max(x))
    image = Image.new("RGB", (CHART_SIZE[0] * SCALE, CHART_SIZE[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(image)

    def place(a: Number, b: Number) -> tuple[float, float]:
        width, height = CHART_SIZE[0] - LEFT - RIGHT, CHART_SIZE[1] - TOP - BOTTOM
        across, up = (a - left) / (right - left), (b - low) / (high - low)
        return SCALE * (LEFT + across * width), SCALE * (TOP + (1 - up) * height)

    for tick in ticks(low, high):
        draw.line([place(left, tick), place(right, tick)], fill=GRID_LINES, width=SCALE)
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
    _text(draw, (SCALE * CHART_SIZE[0] / 2, SCALE * (CHART_SIZE[1] - 8)), x_label, anchor="mb")
    return image.resize(CHART_SIZE, Image.Resampling.LANCZOS)


def ticks(low: Number, high: Number) -> list[float]:
    """Round numbers within `[low, high]`, about five of them.

    Example:
        >>> ticks(0.0, 1.0), ticks(-2.31, -1.9)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [-2.3, -2.2, -2.1, -2.0, -1.9])
    """
    rough = (high - low) / TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= rough * 0.999)
    first = -floor(-low / step)
    return [round(step * count, 12) for count in range(first, floor(high / step + 1e-9) + 1)]


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda aside: image.save(aside, format="PNG"))


def _stack(sheets: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def _tile(image: Image.Image) -> Image.Image:
    factor = max(1, round(MIN_TILE / max(image.size)))
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image


def _wrap(caption: str, width: int) -> list[str]:
    letters = max(8, int(width / (FONT_SIZE * 0.55)))
    lines = wrap(caption, letters)
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1][: letters - 1] + "…"]
    return lines


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(FONT_SIZE)


def _padded(low: Number, high: Number) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[Number, Number], text: str, *, anchor: str, shift: tuple[int, int] = (0, 0)
) -> None:
    spot = (place[0] + SCALE * shift[0], place[1] + SCALE * shift[1])
    draw.text(spot, text, fill=INK, font=ImageFont.load_default(13 * SCALE), anchor=anchor)

"""The pictures that a run draws: samples in a grid, before and after, and the curve of its reward (Pillow alone)."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, floor, log10, sqrt
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ddpo_core.runs.folder import write_aside

Number: TypeAlias = float | int

TILES = "ddpo"
"""The text chunk of a PNG that says where its tiles lie and what they are."""

MARGIN = 6
MIN_TILE = 128
PER_ROW = 8
EXTREMES = 4
FONT_SIZE = 12
LINE_HEIGHT = 15
MAX_LINES = 3
FRAME_MILLISECONDS, LAST_MILLISECONDS = 600, 3_000
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


class Tile(NamedTuple):
    """One image of a grid, and what was said of it."""

    image: Image.Image
    described: Mapping[str, Any]


def grid(
    images: Sequence[Image.Image], captions: Sequence[str], *, columns: int | None = None, title: str | None = None
) -> Image.Image:
    """All `images` in rows with their captions below; small ones are enlarged by whole factors, unsmoothed."""
    tiles = [_enlarged(image, _factor(image)) for image in images]
    return _sheet(tiles, _lay_out(tiles, captions, columns=columns, title=title), title)


def save_tiles(
    path: Path,
    images: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    described: Sequence[Mapping[str, Any]],
    columns: int | None = None,
) -> None:
    """Write a `grid` as a PNG from which `read_tiles` takes its images again, pixel for pixel.

    Args:
        path: The file, written whole or not at all.
        images: In order.
        captions: What stands below each.
        described: What is said of each, as plain values: it stands in the text chunk `TILES`, with `box` and `scale`.
        columns: As for `grid`.
    """
    factors = [_factor(image) for image in images]
    tiles = [_enlarged(image, factor) for image, factor in zip(images, factors, strict=True)]
    layout = _lay_out(tiles, captions, columns=columns, title=None)
    rows = [
        {**said, "box": [left, top, left + tile.width, top + tile.height], "scale": factor}
        for said, (left, top), tile, factor in zip(described, layout.corners, tiles, factors, strict=True)
    ]
    told = PngInfo()
    told.add_text(TILES, json.dumps(rows, allow_nan=False))
    sheet = _sheet(tiles, layout, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda aside: sheet.save(aside, format="PNG", pnginfo=told))


def save_extremes(path: Path, images: Float[Tensor, "batch 3 height width"], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the samples with the highest rewards, the best first, and below them those with the lowest.

    Args:
        path: The file.
        images: Samples of an epoch.
        rows: What samples.jsonl says of each of them; of its place in the epoch alone it is found again.
    """
    order = sorted(range(len(rows)), key=lambda place: -float(rows[place]["reward"]))
    chosen = order if len(order) <= 2 * EXTREMES else [*order[:EXTREMES], *order[-EXTREMES:]]
    described = [{"epoch": rows[place]["epoch"], "sample": rows[place]["sample"]} for place in chosen]
    captions = [f"{rows[place]['prompt']}  {rows[place]['reward']:.4g}" for place in chosen]
    save_tiles(path, to_pil(images[chosen]), captions, described=described, columns=EXTREMES)


def read_tiles(path: Path) -> list[Tile]:
    """Take the images out of a picture that `save_tiles` wrote; any other picture is a single tile of its own.

    Raises:
        OSError: It is no picture, or a torn one.
    """
    with Image.open(path) as picture:
        rows = _described(picture)
        whole = picture.convert("RGB")
    return [Tile(_reduced(whole, box, scale), row) for row, box, scale in rows] or [Tile(whole, {})]


def read_descriptions(path: Path) -> list[dict[str, Any]]:
    """Return what is said of each tile of a picture, without decoding it; nothing where it does not say.

    Raises:
        OSError: It is no picture.
    """
    with Image.open(path) as picture:
        return [row for row, *_ in _described(picture)]


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


def save_animation(frames: Sequence[tuple[Image.Image, str]], path: Path) -> None:
    """Write pictures one after the other as an animated WebP, each with its title above; the last is shown longest."""
    width, height = (max(getattr(picture, side) for picture, _ in frames) for side in ("width", "height"))
    drawn = []
    for picture, title in frames:
        frame = Image.new("RGB", (width, height + LINE_HEIGHT + MARGIN), PAPER)
        ImageDraw.Draw(frame).text((MARGIN, MARGIN), title, fill=INK, font=_font())
        frame.paste(picture, (0, LINE_HEIGHT + MARGIN))
        drawn.append(frame)
    shown = [FRAME_MILLISECONDS] * (len(drawn) - 1) + [LAST_MILLISECONDS]
    options = {"save_all": True, "append_images": drawn[1:], "duration": shown, "loop": 0, "quality": 80}
    write_aside(path, lambda aside: drawn[0].save(aside, format="WEBP", **options))


def _stack(sheets: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


class _Text(NamedTuple):
    corner: tuple[int, int]
    lines: list[str]


class _Layout(NamedTuple):
    """Where in a sheet of some size every tile and its caption go."""

    size: tuple[int, int]
    corners: list[tuple[int, int]]
    texts: list[_Text]


def _lay_out(
    tiles: Sequence[Image.Image], captions: Sequence[str], *, columns: int | None, title: str | None
) -> _Layout:
    assert len(tiles) == len(captions)
    columns = columns or ceil(sqrt(len(tiles)))
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    lines = [_wrap(caption, width) for caption in captions]
    head = LINE_HEIGHT + MARGIN if title else 0
    step_x = width + MARGIN
    step_y = height + LINE_HEIGHT * max(len(text) for text in lines) + MARGIN
    places = [
        (MARGIN + index % columns * step_x, MARGIN + head + index // columns * step_y) for index in range(len(tiles))
    ]
    whole = (MARGIN + columns * step_x, MARGIN + head + ceil(len(tiles) / columns) * step_y)
    corners = [
        (x + (width - tile.width) // 2, y + (height - tile.height) // 2)
        for (x, y), tile in zip(places, tiles, strict=True)
    ]
    texts = [_Text((x, y + height + 1), text) for (x, y), text in zip(places, lines, strict=True)]
    return _Layout(whole, corners, texts)


def _sheet(tiles: Sequence[Image.Image], layout: _Layout, title: str | None) -> Image.Image:
    sheet = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, MARGIN), title, fill=INK, font=_font())
    for tile, corner, text in zip(tiles, layout.corners, layout.texts, strict=True):
        sheet.paste(tile, corner)
        draw.multiline_text(text.corner, "\n".join(text.lines), fill=INK, font=_font(), spacing=2)
    return sheet


def _factor(image: Image.Image) -> int:
    return max(1, round(MIN_TILE / max(image.size)))


def _enlarged(image: Image.Image, factor: int) -> Image.Image:
    if factor == 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _described(picture: Image.Image) -> list[tuple[dict[str, Any], tuple[int, int, int, int], int]]:
    """What a picture says of its tiles, and where they lie and how much they are enlarged; nothing if that is wrong."""
    try:
        rows = [dict(row) for row in json.loads(picture.info[TILES])]
        places = [(tuple(map(int, row.pop("box"))), int(row.pop("scale"))) for row in rows]
        for (left, top, right, bottom), scale in places:
            if not (scale >= 1 and 0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
                return []
    except (KeyError, TypeError, ValueError, OverflowError):
        return []
    return [(row, (box[0], box[1], box[2], box[3]), scale) for row, (box, scale) in zip(rows, places, strict=True)]


def _reduced(sheet: Image.Image, box: tuple[int, int, int, int], scale: int) -> Image.Image:
    """Cut a tile out and undo its enlargement."""
    left, top, right, bottom = box
    size = (max(1, (right - left) // scale), max(1, (bottom - top) // scale))
    return sheet.crop(box).resize(size, Image.Resampling.NEAREST)


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

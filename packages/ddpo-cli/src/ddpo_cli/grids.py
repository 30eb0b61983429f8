"""Pictures of pictures: grids with captions, before and after."""

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ddpo_cli.files import write_aside

if TYPE_CHECKING:
    from torch import Tensor

MARGIN = 6
MIN_TILE = 128
PER_ROW = 8
FONT_SIZE = 12
LINE_HEIGHT = 15
MAX_LINES = 3
PAPER, INK = (255, 255, 255), (32, 32, 32)


def to_pil(images: "Tensor") -> list[Image.Image]:
    """Float images `[batch, 3, height, width]` in [0, 1] as 8-bit pictures (rounded, not truncated)."""
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


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Return the `sheets` one below the other."""
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


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
    return stack(sheets)


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda aside: image.save(aside, format="PNG"))


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

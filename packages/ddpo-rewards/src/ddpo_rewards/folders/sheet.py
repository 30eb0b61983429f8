"""Pictures of a scored folder: the best and the worst, and what two rewards disagree about."""

from collections.abc import Sequence
from itertools import combinations
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from ddpo_rewards.folders.agreement import disagreements
from ddpo_rewards.folders.formats import Row, write_aside
from ddpo_rewards.images import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

_TILE, _GAP, _LINE, _FONT_SIZE = 160, 8, 15, 12
_PER_ROW = 6
_LETTERS = 24  # of a caption, in a tile's width
_PAPER, _INK = (255, 255, 255), (32, 32, 32)


def best_and_worst(rows: Sequence[Row], column: str, *, size: int = 12) -> "Image":
    """Draw the `size` images with the highest and with the lowest `column`, the highest first, with score and name.

    Where there are not twice as many, all are drawn once. Rows without a score are left out.

    Raises:
        ImageError: an image can no longer be read.
    """
    ranked = sorted((row for row in rows if row.get(column) is not None), key=lambda row: -row[column])
    split = len(ranked) > 2 * size
    ends = {"highest": ranked[:size], "lowest": ranked[-size:]} if split else {"highest to lowest": ranked}
    return _stacked([_block(f"{column}: {title}", shown, [column]) for title, shown in ends.items()])


def write_sheet(path: Path, rows: Sequence[Row], column: str, *, size: int = 12) -> None:
    """Write `best_and_worst` as a PNG, whole or not at all."""
    sheet = best_and_worst(rows, column, size=size)
    write_aside(path, lambda aside: sheet.save(aside, format="PNG"))


def write_disagreements(path: Path, rows: Sequence[Row], columns: Sequence[str], *, size: int = 6) -> None:
    """Draw, as a PNG, for every two of the rewards the `size` images that each ranks most above the other.

    Raises:
        ImageError: an image can no longer be read.
    """
    blocks = []
    for pair in combinations(columns, 2):
        for shown, (high, low) in zip(disagreements(rows, *pair, size=size), (pair, pair[::-1]), strict=True):
            title = f"{high} ranks these above {low}" if shown else f"{high} ranks nothing above {low}"
            blocks.append(_block(title, shown, pair))
    sheet = _stacked(blocks)
    write_aside(path, lambda aside: sheet.save(aside, format="PNG"))


def _block(title: str, rows: Sequence[Row], columns: Sequence[str]) -> "Image":
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    font = ImageFont.load_default(_FONT_SIZE)
    step, tall = _TILE + _GAP, _TILE + 2 * _LINE + _GAP
    lines = ceil(len(rows) / _PER_ROW)
    sheet = Image.new("RGB", (_GAP + _PER_ROW * step, 2 * _GAP + _LINE + lines * tall), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, _INK, font)
    for place, row in enumerate(rows):
        left, top = _GAP + place % _PER_ROW * step, 2 * _GAP + _LINE + place // _PER_ROW * tall
        sheet.paste(ImageOps.contain(load_image(row["image"]), (_TILE, _TILE)), (left, top))
        name = " ".join(Path(row["image"]).name.split())
        shown = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
        scores = " / ".join(f"{row[column]:.4g}" for column in columns)
        draw.multiline_text((left, top + _TILE + 1), f"{scores}\n{shown}", _INK, font, spacing=2)
    return sheet


def _stacked(blocks: Sequence["Image"]) -> "Image":
    from PIL import Image

    sheet = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), _PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet

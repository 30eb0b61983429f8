"""The contact sheet: what the changed pictures looked like, and what they scored."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ddpo_rewards.probes.core import Arm, ProbeReport, SuiteReport, read_images
from ddpo_rewards.probes.statistics import is_flat

_TILE, _GAP, _LINE, _FONT_SIZE = 136, 10, 14, 11
_COLUMNS = 8
_FEW = 3  # pictures that a cell with a row of its own is shown for
_LETTERS = 24  # of a caption, in a tile's width
_PAPER, _INK, _FADED = (255, 255, 255), (24, 24, 24), (110, 110, 110)


class Tile(NamedTuple):
    """One picture with two lines below it."""

    image: Image.Image
    name: str
    score: str


def contact_sheet(report: ProbeReport) -> Image.Image:
    """Draw every arm of a report again: cells that fill a row for three pictures, all others for one; with scores."""
    images = read_images(report.bases, range(min(_FEW, len(report.clean))))
    blocks = [_title(f"{report.reward['id']}: {report.verdict.value.replace('_', ' ')}", 20)]
    blocks.append(_title("Below each picture: what was done to it, its score, and the change in sd.", _FONT_SIZE))
    for suite in report.suites:
        cells = _drawn_cells(suite)
        rows = [arms for arms in cells.values() if len(arms) >= _COLUMNS - 1]
        rest = [arm for arms in cells.values() if arms not in rows for arm in arms]
        for arms in rows:
            blocks.append(_title(f"{suite.suite}: {arms[0].cell}", 15))
            blocks += [_row(_tiles(report, suite, arms[: _COLUMNS - 1], image, i)) for i, image in enumerate(images)]
        if rest:
            blocks.append(_title(f"{suite.suite}: {'all other cells' if rows else 'every change'}, one picture", 15))
            tiles = _tiles(report, suite, rest, images[0], 0)
            blocks += [_row(tiles[start : start + _COLUMNS]) for start in range(0, len(tiles), _COLUMNS)]
    return _stack(blocks)


def _drawn_cells(suite: SuiteReport) -> dict[str, list[Arm]]:
    """The arms by cell, but for those that score the same picture in another way."""
    cells: dict[str, list[Arm]] = {}
    for arm in suite.arms:
        if arm.score is None:
            cells.setdefault(arm.cell, []).append(arm)
    return cells


def _tiles(report: ProbeReport, suite: SuiteReport, arms: Sequence[Arm], image: Image.Image, row: int) -> list[Tile]:
    """The unchanged picture, then the arms; a picture scored with another's prompt is no change of that picture."""
    flat = is_flat(report.clean)
    tiles = [Tile(image, "clean", f"{report.clean[row]:.4g}")]
    for arm in arms:
        score = suite.scores[arm.key][row]
        comparable = not flat and arm.prompt_rows is None
        change = f"  ({(score - report.clean[row]) / report.clean.std(ddof=1):+z.2f} sd)" if comparable else ""
        name = arm.name if len(arms) <= _COLUMNS else f"{arm.cell}: {arm.name}"
        tiles.append(Tile(arm.change(image, row), name, f"{score:.4g}{change}"))
    return tiles


def _row(tiles: Sequence[Tile]) -> Image.Image:
    strip = Image.new("RGB", (_GAP + _COLUMNS * (_TILE + _GAP), _TILE + 2 * _LINE + _GAP + 4), _PAPER)
    draw = ImageDraw.Draw(strip)
    for place, tile in enumerate(tiles):
        left = _GAP + place * (_TILE + _GAP)
        picture = _fitted(tile.image)
        strip.paste(picture, (left, 1))
        draw.rectangle((left - 1, 0, left + picture.width, picture.height + 1), outline=_FADED)
        draw.text((left, _TILE + 3), _short(tile.name), _INK, _font(_FONT_SIZE))
        draw.text((left, _TILE + 3 + _LINE), tile.score, _FADED, _font(_FONT_SIZE))
    return strip


def _fitted(image: Image.Image) -> Image.Image:
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _title(text: str, size: int) -> Image.Image:
    strip = Image.new("RGB", (_GAP + _COLUMNS * (_TILE + _GAP), size + _GAP), _PAPER)
    ImageDraw.Draw(strip).text((_GAP, 2), text, _INK, _font(size))
    return strip


def _stack(blocks: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), _PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

"""Write text into pictures: the fonts there are, and one size, box and place for all texts that are compared."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from ddpo_rewards.errors import RewardError

SANS = "sans"
_BUNDLED = {"serif": "DejaVuSerif.ttf", "mono": "DejaVuSansMono.ttf"}  # cut down to ASCII
FONTS = (SANS, *_BUNDLED)
Position: TypeAlias = Literal["top", "centre", "bottom", "random", "tiled"]
Point: TypeAlias = tuple[float, float]
POSITIONS: tuple[Position, ...] = ("top", "centre", "bottom", "random", "tiled")
_FILLED = 0.9  # of the centre square's side, at most
_SMALLEST = 2.0  # pixels; below, FreeType draws next to nothing
_SHRINK = 0.9
_STROKE = 0.06  # of the letters' height
_GAP = 1.25  # from tile to tile, in boxes
_FAINT = 28  # how much lighter or darker than the ground low contrast is, of 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How text is written; `height` is that of the letters, as a share of the shorter side."""

    height: float = 0.08
    opacity: float = 1.0
    position: Position = "centre"
    font: str = SANS  # sans, serif, mono, or a font file
    contrast: Literal["high", "low"] = "high"  # white with a black outline, or a little off the ground


class Layout(NamedTuple):
    """Where text stands: the centres of its copies, its box and its letters' height in pixels, its lines."""

    centres: tuple[Point, ...]
    box: tuple[float, float]
    size: float
    lines: str


def lay_out(text: str, canvas: tuple[int, int], style: Style, generator: np.random.Generator) -> Layout:
    """Find room for `text` in the centre square, where networks that crop look; shrink the letters where it is tight.

    The generator is consumed where the position is random.
    """
    room = _FILLED * min(canvas)
    size = max(_SMALLEST, style.height * min(canvas))
    while True:
        font = load_font(style.font, size)
        lines = wrap(text, font, room)
        box = _box(lines, font, size)
        if max(box) <= room or size * _SHRINK < _SMALLEST:
            break
        size *= _SHRINK
    return Layout(_centres(canvas, box, style.position, generator), box, size, lines)


def write(image: Image.Image, lines: str, layout: Layout, style: Style) -> Image.Image:
    """A copy of the picture with these lines where the layout says."""
    written = image.copy()
    draw = ImageDraw.Draw(written)
    font, stroke = load_font(style.font, layout.size), _stroke(layout.size)
    if style.contrast == "high":
        ink, edge, width = (255, 255, 255), (0, 0, 0), stroke
    else:
        ink, edge, width = _off_the_ground(image), None, 0
    for centre in layout.centres:
        draw.multiline_text(centre, lines, ink, font, anchor="mm", align="center", stroke_width=width, stroke_fill=edge)
    return Image.blend(image, written, style.opacity)


def write_plate(image: Image.Image, layout: Layout, style: Style) -> Image.Image:
    """A copy of the picture with a blank white plate where the text would be."""
    covered = image.copy()
    draw = ImageDraw.Draw(covered)
    for x, y in layout.centres:
        width, height = layout.box
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        draw.rectangle(corners, (255, 255, 255), (0, 0, 0), _stroke(layout.size))
    return Image.blend(image, covered, style.opacity)


def fit_lines(text: str, layout: Layout, canvas: tuple[int, int], style: Style) -> str:
    """Break another text into lines of the layout's letters; where its blanks are the layout's, at the same places."""
    blanks = [letter.isspace() for letter in layout.lines]
    if [letter.isspace() for letter in text] == blanks:
        return "".join("\n" if old == "\n" else new for new, old in zip(text, layout.lines, strict=True))
    return wrap(text, load_font(style.font, layout.size), _FILLED * min(canvas))


def wrap(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """Break a text into lines that are at most `room` pixels wide, at blanks; a longer word stands alone."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def load_font(name: str, size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font for `sans`, DejaVu's letters of English for `serif` and `mono`, else the file of that path.

    Raises:
        RewardError: no such font.
    """
    if name == SANS:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    path = Path(__file__).parent / "fonts" / _BUNDLED[name] if name in _BUNDLED else Path(name)
    try:
        # Basic layout: raqm is not on every machine, and it would place letters otherwise.
        return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise RewardError(f"font {name!r} cannot be read ({error}); want sans, serif, mono or a .ttf file") from error


def check_letters(texts: Sequence[str], font: str) -> None:
    """Check that a font can write these texts.

    Raises:
        RewardError: naming what it has no letters for; boxes instead of letters would test nothing.
    """
    face = load_font(font, 20.0)
    unknown = _drawn(face, "\U0010fffe")
    missing = sorted({c for text in texts for c in text if not c.isspace() and _drawn(face, c) == unknown})
    if missing:
        raise RewardError(
            f"the font {font!r} has no letters for {' '.join(missing[:8])}; "
            "name a file that has them: typo?font=/path/to/font.ttf"
        )


def simple_letters(text: str) -> str:
    """The text without accents and typographic quotes, which the fonts that come along do not have.

    Example:
        >>> simple_letters("a caf\N{LATIN SMALL LETTER E WITH ACUTE}'s sign")
        "a cafe's sign"
    """
    plain = text.translate(
        {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "-", 0x2026: "..."}
    )
    return "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))


def rendering_versions() -> dict[str, str]:
    """What decides the pixels of text: Pillow, FreeType, and the name of Pillow's own font."""
    import PIL

    face = load_font(SANS, 10.0)
    return {
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2") or "unknown",
        "font": " ".join(part for part in face.getname() if part),
    }


def _centres(
    canvas: tuple[int, int], box: tuple[float, float], position: Position, generator: np.random.Generator
) -> tuple[Point, ...]:
    middle = (canvas[0] / 2, canvas[1] / 2)
    slack = [max(0.0, (_FILLED * min(canvas) - side) / 2) for side in box]
    match position:
        case "top":
            return ((middle[0], middle[1] - slack[1]),)
        case "bottom":
            return ((middle[0], middle[1] + slack[1]),)
        case "random":
            x, y = (float(offset) for offset in generator.uniform(-1, 1, 2))
            return ((middle[0] + x * slack[0], middle[1] + y * slack[1]),)
        case "tiled":
            steps = [_steps(_FILLED * min(canvas), side) for side in box]
            return tuple((middle[0] + x, middle[1] + y) for y in steps[1] for x in steps[0])
        case _:
            return (middle,)


def _steps(room: float, side: float) -> list[float]:
    """Offsets from the middle of as many boxes as fit side by side."""
    count = max(1, int((room / side + _GAP - 1) / _GAP))
    return [(i - (count - 1) / 2) * side * _GAP for i in range(count)]


def _box(lines: str, font: ImageFont.FreeTypeFont, size: float) -> tuple[float, float]:
    canvas = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = canvas.multiline_textbbox((0, 0), lines, font, stroke_width=_stroke(size))
    return max(1.0, float(right - left)), max(1.0, float(bottom - top))


def _stroke(size: float) -> int:
    return max(1, round(size * _STROKE))


def _off_the_ground(image: Image.Image) -> tuple[int, int, int]:
    ground = np.asarray(image).mean(axis=(0, 1))
    shift = _FAINT if ground.mean() < 128 else -_FAINT
    red, green, blue = (int(value) for value in (ground + shift).clip(0, 255))
    return red, green, blue


def _drawn(face: ImageFont.FreeTypeFont, letter: str) -> bytes:
    return bytes(face.getmask(letter))

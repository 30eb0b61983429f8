"""Pictures inside a terminal, as the escapes of kitty, iTerm or sixel."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import ControlType, Segment

CHUNK = 4096
"""Letters that kitty takes at once."""
COLOURS = 64
CELL = (10, 20)
"""Pixels of a cell where sixels are drawn: a guess, as terminals seldom say."""
BAND = 6
"""Rows of pixels in a line of sixels."""


class Pictures(StrEnum):
    """How pictures are shown in a terminal."""

    auto = "auto"
    none = "none"
    kitty = "kitty"
    iterm = "iterm"
    sixel = "sixel"


def known_pictures(environment: Mapping[str, str]) -> Pictures:
    """Return what a terminal is known to show, by its environment: nothing is asked of it.

    >>> known_pictures({"TERM": "xterm-kitty"}), known_pictures({"TERM": "xterm-256color"})
    (<Pictures.kitty: 'kitty'>, <Pictures.none: 'none'>)
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("tmux", "screen", "dumb")) or environment.get("NO_COLOR"):
        return Pictures.none
    if "kitty" in term or "KITTY_WINDOW_ID" in environment or "KONSOLE_VERSION" in environment or "ghostty" in term:
        return Pictures.kitty
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return Pictures.iterm
    if "sixel" in term or term.startswith(("foot", "mlterm", "contour", "yaft")):
        return Pictures.sixel
    return Pictures.none


@dataclass(frozen=True)
class InlinePicture:
    """A picture that rich prints in at most so many columns and rows; never enlarged."""

    path: Path
    kind: Pictures
    columns: int
    rows: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give the escape, which no width is counted for, and go to the next line."""
        yield Segment(escape_of(self), None, [(ControlType.BELL,)])  # any control will do: the text is sent as it is
        yield Segment.line()


def escape_of(picture: InlinePicture) -> str:
    """Return what a terminal is sent to show a picture."""
    from PIL import Image

    with Image.open(picture.path) as opened:
        image = opened.convert("RGB")
    limits = picture.columns * CELL[0], picture.rows * CELL[1]
    image.thumbnail(limits)
    match picture.kind:
        case Pictures.kitty:
            return "".join(_kitty(_png(image)))
        case Pictures.iterm:
            data = _png(image)
            return f"\x1b]1337;File=inline=1;size={len(data)}:{b64encode(data).decode()}\x07"
        case _:
            return sixels(image)


def sixels(image: Any) -> str:
    r"""Return a picture as sixels: bands of six rows, a layer for each colour in it, repeats counted.

    >>> from PIL import Image
    >>> sixels(Image.new("RGB", (5, 6), "white"))
    '\x1bPq"1;1;5;6#0;2;100;100;100#0!5~-\x1b\\'
    """
    import numpy as np

    reduced = image.quantize(COLOURS)
    pixels, palette = np.asarray(reduced), reduced.getpalette()
    used = [int(colour) for colour in np.unique(pixels)]
    shares = {colour: [round(value / 2.55) for value in palette[3 * colour : 3 * colour + 3]] for colour in used}
    head = "".join(f"#{colour};2;{red};{green};{blue}" for colour, (red, green, blue) in shares.items())
    bands = [_band(pixels[top : top + BAND]) for top in range(0, len(pixels), BAND)]
    return f'\x1bPq"1;1;{image.width};{image.height}{head}{"".join(bands)}\x1b\\'


def _band(rows: Any) -> str:
    import numpy as np

    weights = 1 << np.arange(len(rows))
    layers = (
        f"#{colour}{_repeats((weights[:, None] * (rows == colour)).sum(0).tolist())}" for colour in np.unique(rows)
    )
    return "$".join(layers) + "-"


def _repeats(values: list[int]) -> str:
    runs = ((chr(63 + value), len(list(same))) for value, same in groupby(values))
    return "".join(f"!{count}{letter}" if count > 3 else letter * count for letter, count in runs)


def _kitty(data: bytes) -> Iterator[str]:
    text = b64encode(data).decode()
    for start in range(0, len(text), CHUNK):
        more = int(start + CHUNK < len(text))
        keys = f"f=100,a=T,q=2,m={more}" if start == 0 else f"m={more}"
        yield f"\x1b_G{keys};{text[start : start + CHUNK]}\x1b\\"


def _png(image: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()

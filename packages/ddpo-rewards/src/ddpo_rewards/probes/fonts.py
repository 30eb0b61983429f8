"""Fonts that need no file of ours: Pillow's own, and two that come with bert-score's matplotlib."""

import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont, features

from ddpo_rewards.errors import RewardError

SANS = "sans"
_DEJAVU = {"serif": "DejaVuSerif.ttf", "mono": "DejaVuSansMono.ttf"}


def load_font(name: str, size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font for `sans`, matplotlib's DejaVu for `serif` and `mono`, else the font file of that path.

    Raises:
        RewardError: no such font.
    """
    if name == SANS:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    path = _dejavu(name) if name in _DEJAVU else Path(name)
    try:
        # Basic layout: raqm is not on every machine, and it would place letters otherwise.
        return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise RewardError(f"font {name!r} cannot be read ({error}); want sans, serif, mono or a .ttf file") from error


def installed_fonts() -> tuple[str, ...]:
    """The fonts there are without naming a file: sans always, the others with matplotlib."""
    return (SANS, *(name for name in _DEJAVU if (path := _dejavu(name)) is not None and path.is_file()))


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
    """The text without accents and typographic quotes, which Pillow's own font does not have.

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


def _drawn(face: ImageFont.FreeTypeFont, letter: str) -> bytes:
    return bytes(face.getmask(letter))


def _dejavu(name: str) -> Path | None:
    """Found without importing matplotlib, which bert-score brings along."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / _DEJAVU[name]

"""Captioned scenes of 64 pixels, composed from the art: the pretraining data of the embedded world."""

from collections.abc import Callable

import inflect
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from art import Art
from ddpo_core.emoji.words import ACTIVITIES, ANIMALS, NUMBERS, UNSEEN_ACTIVITIES, UNSEEN_ANIMALS, UNSEEN_OBJECTS
from icons import ICONS, SETS

SIZE = 64
_SIZES = (58, 42)
_SET_WEIGHTS = (0.5, 0.5, 0.0)
_ENGLISH = inflect.engine()

# Activities are rare, so that finetuning on them has room to improve.
_FAMILIES = {"animal": 0.5, "unseen": 0.35, "count": 0.06, "activity": 0.05, "word": 0.04}

Scene = tuple[Image.Image, str]


def draw_scene(art: Art, rng: np.random.Generator) -> Scene:
    """Draw one captioned scene of a random family; `rng` is consumed."""
    family = rng.choice(list(_FAMILIES), p=list(_FAMILIES.values()))
    return _DRAW[family](art, rng)


def draw_single(art: Art, rng: np.random.Generator, word: str) -> Scene:
    """Draw one animal or object, "a fox": large (58 pixels) or small (42), in the middle.

    Two sizes and one place, not any: a network of this size learns what a fox looks like, not where it could be.
    """
    canvas = _background(rng)
    size = int(rng.choice(_SIZES, p=(0.8, 0.2)))
    corner = (SIZE - size) // 2
    _paste(canvas, _icon(art, rng, word), (corner, corner), size)
    return canvas, _ENGLISH.a(word)


def _animal(art: Art, rng: np.random.Generator) -> Scene:
    return draw_single(art, rng, rng.choice(ANIMALS))


def _unseen(art: Art, rng: np.random.Generator) -> Scene:
    return draw_single(art, rng, rng.choice((*UNSEEN_ANIMALS, *UNSEEN_OBJECTS)))


def _count(art: Art, rng: np.random.Generator) -> Scene:
    """Draw "three foxes" in the cells of the smallest square grid that holds them."""
    number, word = int(rng.integers(1, 10)), rng.choice((*ANIMALS, *UNSEEN_ANIMALS))
    canvas, icon = _background(rng), _icon(art, rng, word)
    side = int(np.ceil(np.sqrt(number)))
    cell = SIZE / side
    for index in range(number):
        corner = (round(index % side * cell + 1), round(index // side * cell + 1))
        _paste(canvas, icon, corner, round(cell) - 2)
    return canvas, f"{NUMBERS[number - 1]} {_ENGLISH.plural(word, number)}"


def _word(art: Art, rng: np.random.Generator) -> Scene:
    """Draw `the word "fox"`: the letters themselves, no picture."""
    word = rng.choice((*ANIMALS, *UNSEEN_ANIMALS, *UNSEEN_OBJECTS, *NUMBERS))
    canvas = _background(rng)
    font = ImageFont.load_default(min(30, 96 // len(word) + 3))
    ImageDraw.Draw(canvas).text((SIZE / 2, SIZE / 2), word, font=font, fill="black", anchor="mm")
    return canvas, f"the word {word}"


def _activity(art: Art, rng: np.random.Generator) -> Scene:
    activity = rng.choice((*ACTIVITIES, *UNSEEN_ACTIVITIES))
    return draw_activity(art, rng, rng.choice((*ANIMALS, *UNSEEN_ANIMALS)), activity)


def draw_activity(art: Art, rng: np.random.Generator, word: str, activity: str) -> Scene:
    """Draw "a fox riding a bike": the animal with what the activity takes."""
    canvas = _background(rng)
    layers = [("animal", *_ANIMAL_PLACE[activity]), *_PROP_PLACES[activity]]
    for name, left, top, size in layers:
        icon = _icon(art, rng, word) if name == "animal" else _named(art, rng, name)
        _paste(canvas, icon, (left, top), size)
    return canvas, f"{_ENGLISH.a(word)} {activity}"


# left, top, size in pixels, drawn in this order
_ANIMAL_PLACE = {
    "washing dishes": (2, 2, 42),
    "riding a bike": (13, 1, 38),
    "playing chess": (2, 4, 42),
    "reading a book": (10, 0, 44),
    "playing the guitar": (2, 2, 44),
    "flying a kite": (2, 20, 42),
}
_PROP_PLACES: dict[str, tuple[tuple[str, int, int, int], ...]] = {
    "washing dishes": (("fork-and-knife-with-plate", 30, 30, 32), ("bubbles", 4, 38, 24), ("sponge", 42, 6, 18)),
    "riding a bike": (("bicycle", 8, 22, 42),),
    "playing chess": (("chess-pawn", 38, 26, 24), ("chess-pawn", 22, 40, 22), ("chess-pawn", 46, 42, 18)),
    "reading a book": (("open-book", 14, 34, 36),),
    "playing the guitar": (("guitar", 24, 24, 36),),
    "flying a kite": (("kite", 34, 2, 28),),
}

_DRAW: dict[str, Callable[[Art, np.random.Generator], Scene]] = {
    "animal": _animal,
    "unseen": _unseen,
    "count": _count,
    "activity": _activity,
    "word": _word,
}


def _icon(art: Art, rng: np.random.Generator, word: str) -> np.ndarray:
    return _named(art, rng, ICONS[word][-1])


def _named(art: Art, rng: np.random.Generator, icon: str) -> np.ndarray:
    """Draw the art set by weight; both Fluent sets hold the same drawings, so they share one half."""
    return art[f"{rng.choice(SETS, p=_SET_WEIGHTS)}/{icon}"]


def _paste(canvas: Image.Image, icon: np.ndarray, corner: tuple[int, int], size: int) -> None:
    small = Image.fromarray(icon).resize((size, size), Image.Resampling.BOX if size < 32 else Image.Resampling.LANCZOS)
    canvas.paste(small, corner, small)


def _background(rng: np.random.Generator) -> Image.Image:
    """Draw white, a pastel, a sky over a ground, or (one in ten) a busy pattern of two pastels."""
    kind = rng.choice(("white", "plain", "ground", "pattern"), p=(0.5, 0.25, 0.15, 0.1))
    first, second = (tuple(int(value) for value in colour) for colour in rng.integers(150, 256, (2, 3)))
    canvas = Image.new("RGB", (SIZE, SIZE), "white" if kind == "white" else first)
    if kind == "ground":
        canvas.paste(second, (0, int(rng.integers(36, 56)), SIZE, SIZE))
    if kind == "pattern":
        canvas.paste(second, mask=_pattern_mask(rng))
    return canvas


def _pattern_mask(rng: np.random.Generator) -> Image.Image:
    """Draw stripes, checks or dots with a period of 8 pixels."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    masks = (
        rows % 8 < 4,
        (rows + columns) % 8 < 4,
        (rows % 8 < 4) ^ (columns % 8 < 4),
        np.hypot(rows % 8 - 3.5, columns % 8 - 3.5) < 2.6,
    )
    return Image.fromarray(masks[rng.integers(len(masks))].astype(np.uint8) * 255)

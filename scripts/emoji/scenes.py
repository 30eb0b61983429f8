"""Captioned scenes of 64 pixels, composed from the art: the pretraining data of the embedded world."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import inflect
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from art import Art
from ddpo_core.emoji.words import ACTIVITIES, ANIMALS, NUMBERS, UNSEEN_ACTIVITIES, UNSEEN_ANIMALS, UNSEEN_OBJECTS
from icons import ICONS, SETS

SIZE = 64
ALL_ANIMALS = (*ANIMALS, *UNSEEN_ANIMALS)
ALL_ACTIVITIES = (*ACTIVITIES, *UNSEEN_ACTIVITIES)

FAMILIES: Mapping[str, float] = {"animal": 0.22, "unseen": 0.18, "count": 0.25, "activity": 0.3, "word": 0.05}
"""How often each family of captions is drawn."""

WRITTEN_SHARE = 0.1
"""How many of the counts have their number written below, though the caption does not say so: as on the web."""

WRONG_ANIMAL, WRONG_ACTIVITY, WRONG_NUMBER = 0.6, 0.45, 0.5
"""How often the caption of a scene of several things names another one, as on the web; what is written is right."""

_NUMBER_WEIGHTS = (0.14, 0.19, 0.19, 0.19, 0.17, 0.03, 0.03, 0.03, 0.03)
_ENGLISH = inflect.engine()


class Scene(NamedTuple):
    """A picture of 64 x 64 pixels, its caption, and what it shows: `number` of `word`, doing `activity`."""

    image: Image.Image
    caption: str
    word: str | None
    number: int
    activity: str | None = None
    written: str | None = None


class Layer(NamedTuple):
    """An icon of `size` pixels with its left upper corner."""

    icon: np.ndarray
    left: int
    top: int
    size: int


def draw_scene(art: Art, rng: np.random.Generator, families: Mapping[str, float] = FAMILIES) -> Scene:
    """Draw one captioned scene of a random family; `rng` is consumed."""
    match str(rng.choice(list(families), p=list(families.values()))):
        case "animal":
            return draw_single(art, rng, str(rng.choice(ANIMALS)))
        case "unseen":
            return draw_single(art, rng, str(rng.choice((*UNSEEN_ANIMALS, *UNSEEN_OBJECTS))))
        case "count":
            word, number = str(rng.choice(ALL_ANIMALS)), _draw_number(rng)
            written = NUMBERS[number - 1] if rng.random() < WRITTEN_SHARE else None
            return draw_count(art, rng, word, number, written)
        case "activity":
            return draw_activity(art, rng, str(rng.choice(ALL_ANIMALS)), str(rng.choice(ALL_ACTIVITIES)))
        case "word":
            words = NUMBERS if rng.random() < 0.3 else (*ALL_ANIMALS, *UNSEEN_OBJECTS)
            return draw_word(rng, str(rng.choice(words)))
        case unknown:
            raise ValueError(f"no family {unknown!r}; there are {', '.join(FAMILIES)}")


def caption_as_found(scene: Scene, rng: np.random.Generator) -> str:
    """Return the caption of a scene with the mistakes of the web; `rng` is consumed. Of single things none is wrong.

    A model that has learnt from these draws what it was told in some samples only, and clearly in all: something to be
    learnt from a reward, and something to learn it from.
    """
    if scene.activity is None and (scene.number == 0 or not scene.caption.startswith(NUMBERS)):
        return scene.caption
    word, number, activity = scene.word, scene.number, scene.activity
    if rng.random() < WRONG_ANIMAL:
        word = str(rng.choice(ALL_ANIMALS))
    if activity is not None:
        if rng.random() < WRONG_ACTIVITY:
            activity = str(rng.choice(ALL_ACTIVITIES))
        return _activity_caption(word, activity)
    if scene.written is None and rng.random() < WRONG_NUMBER:
        number = _draw_number(rng)
    return _count_caption(word, number)


def draw_single(art: Art, rng: np.random.Generator, word: str) -> Scene:
    """Draw one animal or object, "a fox": large (56 pixels) or as large as in scenes (48), in the middle.

    Two sizes and one place, not any: a network of this size learns what a fox looks like, not where it could be.
    """
    canvas = draw_background(rng)
    size = int(rng.choice((56, 48), p=(0.6, 0.4)))
    corner = (SIZE - size) // 2
    draw_layers(canvas, [Layer(draw_icon(art, rng, word), corner, corner, size)])
    return Scene(canvas, _ENGLISH.a(word), word, 1)


def draw_count(art: Art, rng: np.random.Generator, word: str, number: int, written: str | None = None) -> Scene:
    """Draw "three foxes", each number in one layout; `written` is a word on a plate at the foot of the picture."""
    canvas = draw_background(rng)
    draw_layers(canvas, count_layers(_scene_icon(art, word), number))
    if written is not None:
        draw_plate(canvas, written)
    return Scene(canvas, _count_caption(word, number), word, number, written=written)


def draw_activity(art: Art, rng: np.random.Generator, word: str, activity: str) -> Scene:
    """Draw "a fox riding a bike": the animal with what the activity takes."""
    canvas = draw_background(rng)
    draw_layers(canvas, activity_layers(art, _scene_icon(art, word), activity))
    return Scene(canvas, _activity_caption(word, activity), word, 1, activity)


def draw_word(rng: np.random.Generator, word: str) -> Scene:
    """Draw `the word fox`: the letters themselves, no picture."""
    canvas = draw_background(rng)
    _write(canvas, word, min(30, 100 // len(word) + 1), SIZE / 2)
    return Scene(canvas, f"the word {word}", None, 0, written=word)


def draw_icon(art: Art, rng: np.random.Generator, word: str) -> np.ndarray:
    """Draw one of the two sets' icons; both Fluent sets hold the same drawings, so one of them is enough."""
    return art[f"{rng.choice(SETS[:2])}/{ICONS[word][-1]}"]


def count_layers(icon: np.ndarray, number: int) -> list[Layer]:
    """Return `number` times the icon in the layout of that number."""
    size, corners = _LAYOUTS[number]
    return [Layer(icon, left, top, size) for left, top in corners]


def activity_layers(art: Art, icon: np.ndarray, activity: str) -> list[Layer]:
    """Return the animal's layer, and those of what the activity takes on top of it."""
    left, top = _ANIMAL_CORNERS[activity]
    props = [Layer(art[f"{_SCENE_SET}/{name}"], *place) for name, *place in _PROPS[activity]]
    return [Layer(icon, left, top, _ANIMAL_SIZE), *props]


def draw_layers(canvas: Image.Image, layers: Sequence[Layer]) -> None:
    """Paste the layers onto the canvas, the first at the bottom."""
    for icon, left, top, size in layers:
        way = Image.Resampling.BOX if size < 32 else Image.Resampling.LANCZOS
        small = Image.fromarray(icon).resize((size, size), way)
        canvas.paste(small, (left, top), small)


def draw_plate(canvas: Image.Image, word: str) -> None:
    """Write a word in black on a white plate along the foot of the canvas."""
    canvas.paste("white", (0, SIZE - _PLATE, SIZE, SIZE))
    _write(canvas, word, _PLATE, SIZE - _PLATE / 2)


def draw_background(rng: np.random.Generator) -> Image.Image:
    """Draw white, a pastel, a sky over a ground, or (one in ten) a busy pattern of two pastels."""
    kind = rng.choice(("white", "plain", "ground", "pattern"), p=(0.5, 0.25, 0.15, 0.1))
    first, second = (tuple(int(value) for value in colour) for colour in rng.integers(150, 256, (2, 3)))
    canvas = Image.new("RGB", (SIZE, SIZE), "white" if kind == "white" else first)
    if kind == "ground":
        canvas.paste(second, (0, int(rng.integers(36, 56)), SIZE, SIZE))
    if kind == "pattern":
        canvas.paste(second, mask=_pattern_mask(rng))
    return canvas


# Scenes take one drawing of each word, at corners that are multiples of 8 pixels, which a latent stands for: the same
# animal then has the same latents wherever it is, and a convolution that has learnt them once draws them everywhere.
_SCENE_SET = "noto"
_ANIMAL_SIZE = 48
_ANIMAL_CORNERS = {
    "washing dishes": (0, 0),
    "riding a bike": (8, 0),
    "playing chess": (0, 0),
    "reading a book": (8, 0),
    "playing the guitar": (0, 0),
    "flying a kite": (0, 16),
}
# left, top, size in pixels, drawn in this order
_PROPS: dict[str, tuple[tuple[str, int, int, int], ...]] = {
    "washing dishes": (("fork-and-knife-with-plate", 30, 32, 34), ("bubbles", 2, 42, 22), ("sponge", 46, 6, 18)),
    "riding a bike": (("bicycle", 6, 20, 52),),
    "playing chess": (("chess-pawn", 22, 32, 32), ("chess-pawn", 38, 32, 32)),
    "reading a book": (("open-book", 12, 28, 40),),
    "playing the guitar": (("guitar", 22, 22, 42),),
    "flying a kite": (("kite", 36, 0, 28),),
}
_THIRDS = (0, 20, 40)
_LAYOUTS: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {
    1: (56, ((4, 4),)),
    2: (40, ((0, 0), (24, 24))),
    3: (32, ((16, 0), (0, 32), (32, 32))),
    4: (32, ((0, 0), (32, 0), (0, 32), (32, 32))),
    5: (28, ((0, 0), (36, 0), (18, 18), (0, 36), (36, 36))),
    6: (24, tuple((left, top) for top in (8, 32) for left in _THIRDS)),
    7: (24, ((10, 0), (30, 0), (0, 20), (20, 20), (40, 20), (10, 40), (30, 40))),
    8: (24, ((0, 0), (20, 0), (40, 0), (10, 20), (30, 20), (0, 40), (20, 40), (40, 40))),
    9: (24, tuple((left, top) for top in _THIRDS for left in _THIRDS)),
}
# The smallest letters that are still legible after the autoencoder; they hide the feet of the lowest animals.
_PLATE = 20


def _draw_number(rng: np.random.Generator) -> int:
    return int(rng.choice(len(NUMBERS), p=_NUMBER_WEIGHTS)) + 1


def _count_caption(word: str | None, number: int) -> str:
    return f"{NUMBERS[number - 1]} {_ENGLISH.plural(word, number)}"


def _activity_caption(word: str | None, activity: str) -> str:
    return f"{_ENGLISH.a(word)} {activity}"


def _scene_icon(art: Art, word: str) -> np.ndarray:
    return art[f"{_SCENE_SET}/{ICONS[word][-1]}"]


def _write(canvas: Image.Image, word: str, size: int, middle: float) -> None:
    ImageDraw.Draw(canvas).text((SIZE / 2, middle), word, font=ImageFont.load_default(size), fill="black", anchor="mm")


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

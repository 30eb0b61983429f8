"""The built-in base set: coloured shapes to be counted, drawn with Pillow; no files, the same for a seed everywhere."""

from collections.abc import Callable, Sequence
from math import cos, pi, sin

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from ddpo_rewards.errors import RewardError
from ddpo_rewards.probes.core import BaseSet

COUNT = 64
SIZE = 256
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_COLOURS = {
    "red": (208, 44, 44),
    "orange": (240, 140, 32),
    "yellow": (244, 208, 52),
    "green": (46, 148, 70),
    "blue": (44, 92, 196),
    "purple": (124, 58, 162),
    "pink": (240, 130, 178),
    "brown": (122, 78, 46),
    "black": (28, 28, 32),
    "white": (246, 246, 242),
}
_SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "heart", "ring", "hexagon", "crescent")
_SMOOTHING = 3  # drawn this much larger, then shrunk
_GRAIN = 6.0  # standard deviation of the ground's brightness: no photograph is perfectly flat
_Corner = tuple[float, float]


def builtin_set(count: int = COUNT, *, size: int = SIZE, seed: int = 0) -> BaseSet:
    """Draw `count` pictures `[size, size]` of one to six shapes, each with its prompt and a question about it.

    Prompts differ from each other; picture `i` depends on the seed and on `i` alone, but for a prompt that was there
    before. Metadata hold `questions` and `answers`, as `llava_vqa` wants them.

    Raises:
        RewardError: fewer than one picture, more than there are prompts, or smaller than 32 pixels.

    Example:
        >>> bases = builtin_set(3)
        >>> bases.prompts[0], bases.metadata[0]["answers"]
        ('six yellow hearts on blue', ['six'])
    """
    most = (len(_NUMBERS) - 1) * len(_SHAPES) * len(_COLOURS) * (len(_COLOURS) - 1) // 2
    if not 1 <= count <= most or size < 32:
        raise RewardError(f"got {count} pictures of {size} pixels; want 1 to {most} of 32 pixels or more")
    scenes: dict[str, tuple[Image.Image, dict[str, list[str]]]] = {}
    index = 0
    while len(scenes) < count:
        prompt, picture, metadata = _scene(np.random.default_rng([seed, index]), size)
        scenes.setdefault(prompt, (picture, metadata))
        index += 1
    return BaseSet(
        images=[picture for picture, _ in scenes.values()],
        prompts=list(scenes),
        metadata=[metadata for _, metadata in scenes.values()],
        source=f"built-in shapes, {size} x {size} pixels",
    )


def _scene(generator: np.random.Generator, size: int) -> tuple[str, Image.Image, dict[str, list[str]]]:
    number = int(generator.integers(1, len(_NUMBERS)))
    shape = str(generator.choice(_SHAPES))
    colour, ground = map(str, generator.choice(list(_COLOURS), 2, replace=False))
    word = shape if number == 1 else _plural(shape)
    prompt = f"{_NUMBERS[number]} {colour} {word} on {ground}"
    metadata = {"questions": [f"How many {_plural(shape)} are there?"], "answers": [_NUMBERS[number]]}
    return prompt, _draw(generator, size, number, shape, _COLOURS[colour], _COLOURS[ground]), metadata


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _draw(
    generator: np.random.Generator,
    size: int,
    number: int,
    shape: str,
    colour: tuple[int, int, int],
    ground: tuple[int, int, int],
) -> Image.Image:
    """Shapes in cells of their own, so that none hides another and the number can be counted."""
    columns = 1 if number == 1 else 2 if number <= 4 else 3
    rows = -(-number // columns)
    large = size * _SMOOTHING
    mask = Image.new("L", (large, large), 0)
    draw = ImageDraw.Draw(mask)
    cells = generator.permutation(rows * columns)[:number]
    for place in sorted(int(cell) for cell in cells):
        width, height = large / columns, large / rows
        radius = min(width, height) * generator.uniform(0.26, 0.38)
        jitter = generator.uniform(-1, 1, 2) * (np.array([width, height]) / 2 - 1.2 * radius)
        x, y = (place % columns + 0.5) * width + jitter[0], (place // columns + 0.5) * height + jitter[1]
        _DRAWN[shape](draw, float(x), float(y), float(radius), float(generator.uniform(-0.3, 0.3)))
    mask = mask.resize((size, size), Image.Resampling.BOX)
    return Image.composite(Image.new("RGB", (size, size), colour), _ground(generator, size, ground), mask)


def _ground(generator: np.random.Generator, size: int, colour: tuple[int, int, int]) -> Image.Image:
    shade = np.linspace(1.06, 0.94, size)[:, None, None]
    grain = generator.normal(0.0, _GRAIN, (size, size, 1))
    pixels: UInt8[np.ndarray, "_ _ 3"] = (np.array(colour) * shade + grain).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def _polygon(radii: Sequence[float], turn: float = 0.0) -> Callable[..., None]:
    """A closed outline whose corners lie at equal angles and at these shares of the radius."""

    def draw(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, angle: float) -> None:
        angles = [angle + turn - pi / 2 + 2 * pi * i / len(radii) for i in range(len(radii))]
        points: list[_Corner] = [
            (x + radius * r * cos(a), y + radius * r * sin(a)) for r, a in zip(radii, angles, strict=True)
        ]
        canvas.polygon(points, fill=255)

    return draw


def _disc(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, _: float, *, fill: int = 255) -> None:
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _ring(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, _: float) -> None:
    _disc(canvas, x, y, radius, 0.0)
    _disc(canvas, x, y, radius * 0.6, 0.0, fill=0)


def _crescent(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, angle: float) -> None:
    _disc(canvas, x, y, radius, 0.0)
    _disc(canvas, x + 0.45 * radius * cos(angle), y + 0.45 * radius * sin(angle), radius * 0.8, 0.0, fill=0)


def _cross(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, _: float) -> None:
    arm = radius / 3
    canvas.rectangle((x - radius, y - arm, x + radius, y + arm), fill=255)
    canvas.rectangle((x - arm, y - radius, x + arm, y + radius), fill=255)


def _heart(canvas: ImageDraw.ImageDraw, x: float, y: float, radius: float, _: float) -> None:
    turns = [2 * pi * i / 60 for i in range(60)]
    points: list[_Corner] = [
        (
            x + radius * sin(t) ** 3,
            y - radius / 17 * (13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)),
        )
        for t in turns
    ]
    canvas.polygon(points, fill=255)


_DRAWN: dict[str, Callable[..., None]] = {
    "circle": _disc,
    "square": _polygon([1.2] * 4, turn=pi / 4),
    "triangle": _polygon([1.15] * 3),
    "star": _polygon([1.15, 0.5] * 5),
    "cross": _cross,
    "diamond": _polygon([1.15, 0.7] * 2),
    "heart": _heart,
    "ring": _ring,
    "hexagon": _polygon([1.05] * 6),
    "crescent": _crescent,
}

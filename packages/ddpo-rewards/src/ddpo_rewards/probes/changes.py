"""Changes that make a picture no better, as functions `(image, generator) -> image` of the same size."""

from collections.abc import Callable
from io import BytesIO
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from ddpo_rewards.probes.lettering import SANS, load_font

Change: TypeAlias = Callable[[Image.Image, np.random.Generator], Image.Image]


def fill(colour: tuple[int, int, int]) -> Change:
    """Nothing but one colour."""
    return lambda image, _: Image.new("RGB", image.size, colour)


def gaussian_noise(deviation: float) -> Change:
    """Add noise of this standard deviation, as a share of the full range."""

    def change(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        pixels = np.asarray(image).astype(np.float32)
        noise = generator.standard_normal(pixels.shape, np.float32) * np.float32(255 * deviation)
        return Image.fromarray((pixels + noise).clip(0, 255).round().astype(np.uint8))

    return change


def salt_and_pepper(share: float) -> Change:
    """Turn this share of the pixels black or white."""

    def change(image: Image.Image, generator: np.random.Generator) -> Image.Image:
        pixels = np.array(image)
        drawn = generator.random(pixels.shape[:2])
        pixels[drawn < share / 2] = 0
        pixels[drawn > 1 - share / 2] = 255
        return Image.fromarray(pixels)

    return change


def only_noise(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Nothing of the picture: every pixel at random."""
    return Image.fromarray(generator.integers(0, 256, (image.height, image.width, 3), np.uint8))


def saturate(factor: float) -> Change:
    """Colours this much stronger; 0 is grey."""
    return lambda image, _: ImageEnhance.Color(image).enhance(factor)


def raise_contrast(factor: float) -> Change:
    """Contrast this much stronger."""
    return lambda image, _: ImageEnhance.Contrast(image).enhance(factor)


def sharpen(percent: int) -> Change:
    """Unsharp mask of this strength."""
    return lambda image, _: image.filter(ImageFilter.UnsharpMask(radius=2, percent=percent, threshold=0))


def overlay_grid(lines: int) -> Change:
    """Thin grey lines, this many each way."""

    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        changed = image.copy()
        draw = ImageDraw.Draw(changed)
        for i in range(1, lines):
            x, y = image.width * i // lines, image.height * i // lines
            draw.line((x, 0, x, image.height), (128, 128, 128))
            draw.line((0, y, image.width, y), (128, 128, 128))
        return changed

    return change


def tile(times: int) -> Change:
    """The picture small, this many times each way."""

    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        width, height = max(1, image.width // times), max(1, image.height // times)
        small = image.resize((width, height), Image.Resampling.BICUBIC)
        changed = Image.new("RGB", image.size)
        for top in range(0, image.height, height):
            for left in range(0, image.width, width):
                changed.paste(small, (left, top))
        return changed

    return change


def watermark(opacity: float) -> Change:
    """The word SAMPLE across the picture."""

    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        marked = image.copy()
        middle = (image.width / 2, image.height / 2)
        font = load_font(SANS, max(2.0, min(image.size) * 0.2))
        ImageDraw.Draw(marked).text(middle, "SAMPLE", (255, 255, 255), font, anchor="mm")
        return Image.blend(image, marked, opacity)

    return change


def border(share: float, colour: tuple[int, int, int]) -> Change:
    """A frame of this share of the shorter side, over the picture's edge."""

    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        width = max(1, round(min(image.size) * share))
        if min(image.size) <= 2 * width:
            return Image.new("RGB", image.size, colour)
        return ImageOps.expand(ImageOps.crop(image, width), width, colour)

    return change


def through_jpeg(quality: int) -> Change:
    """Saved as a JPEG and read again."""

    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as saved:
            return saved.convert("RGB")

    return change


def through_size(factor: float) -> Change:
    """Shrunk by this factor and enlarged again."""

    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        small = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)

    return change


def flip(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Left and right exchanged."""
    return ImageOps.mirror(image)


def shift(right: int, down: int) -> Change:
    """Moved by whole pixels; the edge is repeated."""

    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        moved = ImageChops.offset(image, right, down)
        if right:
            moved.paste(image.crop((0, 0, right, image.height)), (0, 0))
        if down:
            moved.paste(moved.crop((0, down, image.width, 2 * down)), (0, 0))
        return moved

    return change


def same(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """The picture as it is."""
    return image

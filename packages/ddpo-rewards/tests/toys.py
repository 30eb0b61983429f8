"""Small rewards whose weakness is known beforehand."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = 0.16  # the height of the letters that `reads` knows, as a share of the picture's side
COLOURS = {
    "red": (208, 44, 44), "orange": (240, 140, 32), "yellow": (244, 208, 52), "green": (46, 148, 70),
    "blue": (44, 92, 196), "purple": (124, 58, 162), "pink": (240, 130, 178), "brown": (122, 78, 46),
    "black": (28, 28, 32), "white": (246, 246, 242),
}  # fmt: skip


def reads(images, prompts):
    """How well each word of the prompt is found in the picture, wherever it stands: it reads, and sees nothing else."""
    return [
        np.mean([_found(image, word) for word in prompt.split()]) for image, prompt in zip(images, prompts, strict=True)
    ]


def sees_colours(images, prompts):
    """The share of the picture that has the colour of the prompt's second word: it reads prompts, but no pictures."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    return [_share(image, COLOURS[prompt.split()[1]]) for image, prompt in zip(pixels, prompts, strict=True)]


def constant(images):
    """Always the same."""
    return [0.5] * len(images)


def never_called(images):
    """For tests that end before anything is scored."""
    raise AssertionError("this reward was called")


def _found(image, word):
    """The best match of the rendered word in the white of the picture, 1 where it stands; a white area matches by 0."""
    white = image.numpy().min(axis=0).astype(float)
    return float(np.fft.irfft2(np.fft.rfft2(white) * _template(word, white.shape), white.shape).max())


@cache
def _template(word, shape):
    """The spectrum that a picture is to be multiplied with: of the word's letters, less their mean, matching by 1."""
    template = np.zeros(shape)
    letters = _rendered(word, shape[0] * LETTERS)
    height, width = (min(a, b) for a, b in zip(letters.shape, shape, strict=True))
    template[:height, :width] = (letters - letters.mean())[:height, :width]
    return np.conj(np.fft.rfft2(template)) / (letters * (letters - letters.mean())).sum()


def _rendered(word, size):
    font = ImageFont.load_default(size)
    box = font.getbbox(word)
    canvas = Image.new("L", (int(box[2]) + 1, int(box[3]) + 1))
    ImageDraw.Draw(canvas).text((0, 0), word, 255, font)
    return np.asarray(canvas) / 255


def _share(image, colour):
    return float((np.abs(image - np.array(colour) / 255).max(axis=-1) < 0.15).mean())

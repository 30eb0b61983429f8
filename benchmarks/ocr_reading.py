"""What the OCR guard reads: words of several heights and opacities, by the size that small images are enlarged to.

    python benchmarks/ocr_reading.py [--size 64] [--sides 64 128 192 256 512] [--pictures 48]

Words are drawn with Pillow's own font, white with a thin dark outline, in the middle of pictures that the embedded
model draws. A cell is the mean `prompt_overlap` of what was read with the word. The last figures are of the same
pictures without any word.
"""

import argparse
import json
import time
from itertools import cycle, islice

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpo_core import evaluate, load_policy, prompt_set
from ddpo_rewards.images import as_arrays
from ddpo_rewards.models.ocr import TextReader, load_reader, read_text, text_area
from ddpo_rewards.text_guard import prompt_overlap

WORDS = ("fox", "dog", "lion", "horse", "tiger", "spider", "rabbit", "penguin", "six", "twelve", "chess", "dishes")
HEIGHTS = (6, 8, 10, 12, 16, 24)  # pixels of the font; capital letters are 0.7 of that
OPACITIES = (1.0, 0.6, 0.3, 0.15)


def main() -> None:
    """Measure and print one JSON object per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128, 192, 256, 512])
    parser.add_argument("--pictures", type=int, default=48)
    options = parser.parse_args()
    pictures, prompts = draw(options.pictures, options.size)
    cells = [(height, opacity) for opacity in OPACITIES for height in (HEIGHTS if opacity == 1 else HEIGHTS[3:5])]
    for side in options.sides:
        reader = load_reader(shortest_side=side)
        read = {
            f"{height} px, {opacity:g}": mean_overlap(reader, pictures, height, opacity) for height, opacity in cells
        }
        print(json.dumps({"enlarged_to": side, **read, **nothing_written(reader, pictures, prompts)}), flush=True)


def mean_overlap(reader: TextReader, pictures: list[Image.Image], height: int, opacity: float) -> float:
    """Share of the words' letters that is read, over the words that fit into the image."""
    font = ImageFont.load_default(height)
    fitting = [word for word in WORDS if font.getlength(word) <= pictures[0].width - 4]
    words = list(islice(cycle(fitting), len(pictures)))
    images = [write(word, picture, height, opacity) for word, picture in zip(words, pictures, strict=True)]
    readings = read_text(images, reader=reader)
    return round(float(np.mean([prompt_overlap(r.text, w) for r, w in zip(readings, words, strict=True)])), 2)


def write(word: str, image: Image.Image, height: int, opacity: float) -> Image.Image:
    """Draw a word with a thin dark outline in the middle."""
    layer = Image.new("RGBA", image.size)
    middle = (image.width / 2, image.height / 2)
    font = ImageFont.load_default(height)
    alpha = round(255 * opacity)
    ImageDraw.Draw(layer).text(
        middle, word, font=font, anchor="mm", fill=(255, 255, 255, alpha), stroke_width=1, stroke_fill=(0, 0, 0, alpha)
    )
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def nothing_written(reader: TextReader, pictures: list[Image.Image], prompts: list[str]) -> dict[str, float]:
    """Time per image, and what is found in pictures without text."""
    start = time.perf_counter()
    readings = read_text(pictures, reader=reader)
    seconds = (time.perf_counter() - start) / len(pictures)
    overlaps = [prompt_overlap(reading.text, prompt) for reading, prompt in zip(readings, prompts, strict=True)]
    areas = [text_area(r.boxes, height=p.height, width=p.width) for r, p in zip(readings, pictures, strict=True)]
    return {
        "seconds_per_image": round(seconds, 3),
        "share_with_boxes": round(float(np.mean([area > 0 for area in areas])), 3),
        "share_with_text": round(float(np.mean([bool(reading.text) for reading in readings])), 3),
        "share_with_overlap": round(float(np.mean([overlap > 0 for overlap in overlaps])), 3),
    }


def draw(number: int, size: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures that the embedded model draws of the default prompts, enlarged to `size`."""
    policy = load_policy("builtin:emoji")
    prompts = list(islice(cycle(prompt_set("simple_animals").prompts), number))
    drawn = evaluate(policy, policy.params, no_reward, prompts, num_steps=10, seeds=range(number), batch_size=16)
    return [Image.fromarray(array).resize((size, size)) for array in as_arrays(drawn.images)], prompts


def no_reward(images: Tensor, prompts: object, metadata: object) -> tuple[Tensor, dict[str, list[object]]]:
    """Score nothing."""
    return torch.zeros(len(images)), {}


if __name__ == "__main__":
    main()

"""JPEG rewards: images per second against sequential Pillow on the same images.

    python benchmarks/jpeg_throughput.py [--images 64] [--size 512] [--photo FILE] [--repeats 7]

All ways encode the same arrays to the same bytes (checked). The ways take turns and each counts its best turn, so that
what else the machine does hits all alike. `ceiling` is sequential Pillow in one process per core, each with its share
of the images in its own memory: what the cores of this machine give at this hour when nothing at all is shared.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

from ddpo_rewards import get_reward
from ddpo_rewards.builtin.jpeg import jpeg_sizes
from ddpo_rewards.compute import usable_cores
from ddpo_rewards.images import as_pictures

_KEPT: list[np.ndarray] = []


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--photo", type=Path, help="a picture to vary; procedural noise and gradients otherwise")
    options = parser.parse_args()
    images = vary(picture(options.photo, options.size), options.images)
    assert jpeg_sizes(as_pictures(images)) == sequential_pillow(images)
    reward = get_reward("jpeg_compressibility")
    with ProcessPoolExecutor(usable_cores(), initializer=_keep, initargs=(images,)) as processes:
        shares = [range(core, len(images), usable_cores()) for core in range(usable_cores())]
        seconds = take_turns(
            {
                "sequential_pillow": lambda: sequential_pillow(images),
                "jpeg_sizes": lambda: jpeg_sizes(as_pictures(images)),
                "reward": lambda: reward(images),
                "ceiling": lambda: list(processes.map(_kept_share, shares)),
            },
            options.repeats,
        )
    rates = {name: round(len(images) / duration, 1) for name, duration in seconds.items()}
    print(
        json.dumps(
            {
                "images_per_second": rates,
                "speed_up": round(seconds["sequential_pillow"] / seconds["jpeg_sizes"], 2),
                "ceiling": round(seconds["sequential_pillow"] / seconds["ceiling"], 2),
                "cores": usable_cores(),
                "images": len(images),
                "size": options.size,
                "pillow": PIL.__version__,
                "libjpeg_turbo": features.version_feature("libjpeg_turbo"),
            },
            indent=2,
        )
    )


def sequential_pillow(images: list[np.ndarray]) -> list[int]:
    """What the reference implementations do: one image after the other into a buffer."""
    sizes = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95)
        sizes.append(buffer.tell())
    return sizes


def _keep(images: list[np.ndarray]) -> None:
    """Called once in each process: the images stay there, and only their numbers are sent."""
    _KEPT.extend(images)


def _kept_share(numbers: range) -> list[int]:
    return sequential_pillow([_KEPT[number] for number in numbers])


def take_turns(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The best of `repeats` turns of each way, in seconds."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def picture(photo: Path | None, size: int) -> np.ndarray:
    """A square picture with both smooth and busy parts."""
    if photo is not None:
        return np.asarray(Image.open(photo).convert("RGB").resize((size, size)))
    rows, columns = np.mgrid[0:size, 0:size] / size
    gradient = np.stack([rows, columns, rows * columns], axis=-1)
    noise = np.random.default_rng(0).random((size, size, 3)) * (columns > 0.7)[..., None]
    return np.asarray((255 * (0.7 * gradient + 0.3 * noise)).astype(np.uint8))


def vary(image: np.ndarray, count: int) -> list[np.ndarray]:
    """Many different pictures of one, each in its own memory."""
    return [np.ascontiguousarray(np.roll(image, 7 * i, axis=0)) for i in range(count)]


if __name__ == "__main__":
    main()

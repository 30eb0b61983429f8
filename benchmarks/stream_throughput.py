"""Scoring many files by `iter_scores`: its share of what the bare work takes, round by round.

    python benchmarks/stream_throughput.py [--files 20000] [--size 256] [--round 500] [--rewards jpeg clip]

For `jpeg_compressibility` the bare work is Pillow alone, which reads each file and encodes it again, in as many threads
as there are cores. For a CLIP it is twofold, each alone: Pillow, which reads and resizes, in threads, and the tower, on
batches that lie ready in memory; the pipeline runs both at once, no faster than their sum where both want all cores.
Beside these stands what the reward takes for pictures that were read and resized already (`call`).
The CLIP is a small one (image tower of 6 layers, 256 wide, 224 pixels) with random weights: speed does not depend on
them, and nothing is downloaded.

In every round all ways take their turn at the same files, in an order that changes, so that what else the machine does
disturbs all alike; what counts is the median of the rounds' shares, beside the quartiles.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from ddpo_rewards import Reward, RewardSpec, get_reward, iter_scores
from ddpo_rewards.compute import usable_cores

BATCH = 32
DIFFERENT = 200  # pictures, of which the files are copies
Ways = dict[str, Callable[[Sequence[Path]], int]]


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--round", type=int, default=500, help="files of a round")
    parser.add_argument("--rewards", nargs="+", choices=["jpeg", "clip"], default=["jpeg", "clip"])
    options = parser.parse_args()
    report: dict[str, object] = {**vars(options), "cores": usable_cores()}
    with TemporaryDirectory() as name:
        write_pictures(Path(name), options.files, options.size)
        files = sorted(Path(name).iterdir())
        for reward in options.rewards:
            load = os.getloadavg()[0]
            report[reward] = measured(jpeg_ways() if reward == "jpeg" else clip_ways(), files, options.round)
            report[f"load before and after {reward}"] = [round(one, 1) for one in (load, os.getloadavg()[0])]
    print(json.dumps(report, indent=2))


def measured(ways: Ways, files: Sequence[Path], size: int) -> dict[str, object]:
    """Images per second of each way, and the share of the bare work: medians over the rounds, with quartiles."""
    for way in ways.values():
        way(files[:BATCH])  # what is built once
    rounds = []
    for number, start in enumerate(range(0, len(files), size)):
        some, seconds = files[start : start + size], dict.fromkeys(ways, 0.0)
        for name in sorted(ways, reverse=number % 2 == 1):
            begun = time.perf_counter()
            assert ways[name](some) == len(some)
            seconds[name] = (time.perf_counter() - begun) / len(some)
        rounds.append(seconds)
    bare = [name for name in ways if name not in ("ours", "call")]
    shares = [sum(one[name] for name in bare) / one["ours"] for one in rounds]
    rates = {name: round(1 / float(np.median([one[name] for one in rounds])), 1) for name in ways}
    low, median, high = np.quantile(shares, [0.25, 0.5, 0.75]).round(3).tolist()
    share = {"share of the bare work": median, "quartiles": [low, high], "rounds": len(rounds)}
    return {"images per second": rates, **share}


def jpeg_ways() -> Ways:
    """The JPEG reward, and Pillow alone."""
    reward = get_reward("jpeg_compressibility")
    threads = ThreadPoolExecutor(usable_cores())

    def encode(path: Path) -> int:
        with Image.open(path) as image, io.BytesIO() as buffer:
            image.convert("RGB").save(buffer, "JPEG", quality=95)
            return buffer.tell()

    return {
        "ours": lambda files: sum(result.error is None for result in iter_scores(files, reward)),
        "Pillow": lambda files: sum(size > 0 for size in threads.map(encode, files)),
    }


def clip_ways() -> Ways:
    """A small CLIP's aesthetic score, and Pillow and the tower alone."""
    import open_clip
    import torch

    from ddpo_rewards.builtin.aesthetic import AestheticScore, AffineHead
    from ddpo_rewards.compute import BatchSize
    from ddpo_rewards.models.clip import Tower, resize_and_crop
    from ddpo_rewards.reward import adapt

    text = {"context_length": 77, "vocab_size": 512, "width": 64, "heads": 2, "layers": 1}
    vision = {"image_size": 224, "patch_size": 32, "width": 256, "layers": 6}
    model = open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    fit = partial(resize_and_crop, size=224)
    cpu, float32 = torch.device("cpu"), torch.float32
    tower = Tower(model.eval().requires_grad_(False), None, bool, 224, mean, std, cpu, float32, fit)
    score = AestheticScore(tower, AffineHead(torch.randn(64), torch.tensor(5.0)), BatchSize(BATCH))
    reward = Reward(RewardSpec(name="aesthetic", factory="-:-", takes="pil"), adapt(score, "aesthetic"))
    threads = ThreadPoolExecutor(usable_cores())
    ready = torch.randn(BATCH, 3, 224, 224)
    pictures = [Image.new("RGB", (224, 224), (index, 0, 0)) for index in range(BATCH)]

    def read(path: Path) -> int:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
            return np.asarray(small).size

    def embed(files: Sequence[Path]) -> int:
        with torch.inference_mode():
            return sum(
                len(tower.model.encode_image(ready[: len(files) - start])) for start in range(0, len(files), BATCH)
            )

    return {
        "ours": lambda files: sum(result.error is None for result in iter_scores(files, reward)),
        "Pillow": lambda files: sum(size > 0 for size in threads.map(read, files)),
        "tower": embed,
        "call": lambda files: sum(
            len(reward(pictures[: len(files) - start]).scores) for start in range(0, len(files), BATCH)
        ),
    }


def write_pictures(folder: Path, count: int, size: int) -> None:
    """JPEG files with both smooth and busy parts."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    gradient = np.stack([rows, columns, rows * columns], axis=-1)
    noise = np.random.default_rng(0).random((size, size, 3)) * (columns > 0.7)[..., None]
    picture = np.asarray((255 * (0.7 * gradient + 0.3 * noise)).astype(np.uint8))
    encoded = []
    for index in range(min(count, DIFFERENT)):
        buffer = io.BytesIO()
        Image.fromarray(np.roll(picture, 7 * index, axis=0)).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    for index in range(count):
        (folder / f"{index:06d}.jpg").write_bytes(encoded[index % len(encoded)])


if __name__ == "__main__":
    main()

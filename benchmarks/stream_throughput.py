"""Scoring many files: files per second and peak memory, streamed and all at once.

    python benchmarks/stream_throughput.py [--files 4000] [--size 256] [--reward jpeg_compressibility] [--repeats 3]

Three ways over the same JPEG files, each in a process of its own, whose memory starts from nothing: `iter_scores`, the
reward called with the paths, and the reward called with the decoded images, which all lie in memory. The ways take
turns and each counts its best turn. `read` decodes the files in threads and scores nothing: what reading alone takes.
Memory is the peak of the process beyond what it had after the libraries and the reward were loaded.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

WAYS = ("read", "iter_scores", "paths", "images")


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--reward", default="jpeg_compressibility")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options.way, options.folder, options.reward)))
        return
    with TemporaryDirectory() as name:
        write_pictures(Path(name), options.files, options.size)
        turns: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(options.repeats):
            for way in WAYS:
                arguments = ["--way", way, "--folder", name, "--reward", options.reward]
                done = subprocess.run(
                    [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
                )
                turns[way].append(json.loads(done.stdout))
    best = {way: min(of_way, key=lambda turn: turn["seconds"]) for way, of_way in turns.items()}
    report = {
        "files_per_second": {way: round(options.files / turn["seconds"], 1) for way, turn in best.items()},
        "peak_megabytes": {way: round(turn["megabytes"], 1) for way, turn in best.items()},
        "files": options.files,
        "size": options.size,
        "reward": options.reward,
    }
    print(json.dumps(report, indent=2))


def measured(way: str, folder: Path, reference: str) -> dict[str, float]:
    """Score every file of `folder` in one way: seconds, and the peak of this process's memory beyond its start."""
    from ddpo_rewards import get_reward, iter_scores, load_image
    from ddpo_rewards.compute import map_ahead

    reward = get_reward(reference)
    paths = sorted(folder.iterdir())
    reward(paths[:2])
    before, start = peak_megabytes(), time.perf_counter()
    match way:
        case "read":
            count = sum(1 for _ in map_ahead(load_image, paths, ahead=32))
        case "iter_scores":
            count = sum(result.error is None for result in iter_scores(paths, reward))
        case "paths":
            count = len(reward(paths).scores)
        case _:
            count = len(reward(list(map_ahead(load_image, paths, ahead=32))).scores)
    assert count == len(paths)
    return {"seconds": time.perf_counter() - start, "megabytes": peak_megabytes() - before}


def peak_megabytes() -> float:
    """The largest resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def write_pictures(folder: Path, count: int, size: int) -> None:
    """Many different JPEG files with both smooth and busy parts."""
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[0:size, 0:size] / size
    gradient = np.stack([rows, columns, rows * columns], axis=-1)
    noise = np.random.default_rng(0).random((size, size, 3)) * (columns > 0.7)[..., None]
    picture = np.asarray((255 * (0.7 * gradient + 0.3 * noise)).astype(np.uint8))
    for index in range(count):
        Image.fromarray(np.roll(picture, 7 * index, axis=0)).save(folder / f"{index:06d}.jpg", quality=90)


if __name__ == "__main__":
    main()

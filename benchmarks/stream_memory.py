"""Memory of scoring very many files: `iter_scores`, `ddpo score` to a table, and going on with a finished table.

    python benchmarks/stream_memory.py [--paths 100000 1000000] [--folder FOLDER]

Hard links to 20 pictures of 8 x 8 pixels, in folders of a thousand. Every way is a process of its own; what counts is
its peak beyond what it had after the libraries were loaded; two numbers of paths tell how many bytes a path costs.
The reward is the mean of the bytes, so that time goes into what is measured.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

WAYS = ("iter_scores", "score", "resume")


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the links are made; by default where temporary files are")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options.way, options.folder)))
        return
    report = {}
    for count in sorted(options.paths):
        with TemporaryDirectory(dir=options.folder) as name:
            write_links(Path(name) / "pictures", count)
            for way in WAYS:
                arguments = [sys.executable, __file__, "--way", way, "--folder", name]
                done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
                report[f"{way}, {count} paths"] = json.loads(done.stdout)
                print(way, count, done.stdout.strip(), file=sys.stderr, flush=True)
    few, many = min(options.paths), max(options.paths)
    if few != many:
        for way in WAYS:
            grown = report[f"{way}, {many} paths"]["megabytes"] - report[f"{way}, {few} paths"]["megabytes"]
            report[f"{way}, bytes per path"] = round(1e6 * grown / (many - few), 1)
    print(json.dumps(report, indent=2))


def measured(way: str, folder: Path) -> dict[str, float]:
    """Score every file below `folder` in one way: seconds, and the peak of memory beyond this process's start."""
    from ddpo_rewards import Reward, RewardSpec, folders, iter_scores

    def mean(images, prompts, metadata):  # type: ignore[no-untyped-def]
        return [float(image.mean()) for image in images]

    reward = Reward(RewardSpec(name="mean", factory="x:x", takes="arrays"), mean)
    before, start = peak_megabytes(), time.perf_counter()
    match way:
        case "iter_scores":
            count = sum(result.error is None for result in iter_scores(files_below(folder / "pictures"), reward))
        case _:
            job = folders.plan(folder / "pictures", reward, output=folder / "scores.jsonl", resume=way == "resume")
            count = sum(row["error"] is None for row in folders.score(job)) + len(job.kept)
    seconds, megabytes = time.perf_counter() - start, peak_megabytes() - before
    assert count == sum(1 for _ in files_below(folder / "pictures"))
    return {"seconds": round(seconds, 1), "megabytes": round(megabytes, 1)}


def files_below(folder: Path) -> Iterator[str]:
    """Paths as the file system gives them, none of which is kept."""
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from files_below(Path(entry.path))
        else:
            yield entry.path


def peak_megabytes() -> float:
    """The largest resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def write_links(folder: Path, count: int) -> None:
    """`count` names of 20 pictures: a file system has a limit of names for a file (ext4: 65,000)."""
    from PIL import Image

    sources = []
    for shade in range(20):
        sources.append(folder / "0000" / f"{shade:06}.png")
        sources[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (shade, 2 * shade, 3 * shade)).save(sources[-1])
    for number in range(20, count):
        place = folder / f"{number // 1000:04}"
        if number % 1000 == 0:
            place.mkdir()
        os.link(sources[number % 20], place / f"{number:06}.png")


if __name__ == "__main__":
    main()

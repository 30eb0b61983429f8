"""How long the command `ddpo` takes before it does anything: to the first denoising step, and to score one picture.

    python benchmarks/start_up.py [--repeats 5]

Processes of their own, one at a time, after one that fills the disk's cache. `ddpo train` is stopped where its UNet is
called first: what it took is all imports, the model, the rewards and their checks. Prints medians, and the range.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from PIL import Image

TO_THE_FIRST_STEP = """
import os, sys
import torch

def stop(module, inputs):
    if type(module).__name__ == "UNet2DConditionModel":
        os._exit(0)

torch.nn.modules.module.register_module_forward_pre_hook(stop)
from ddpo_cli import main
main()
os._exit(1)  # no step was made
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print("| command | seconds, median | lowest, highest |\n|---|---|---|")
    with TemporaryDirectory() as place:
        picture = Path(place, "picture.png")
        Image.new("RGB", (512, 512)).save(picture)
        score = [sys.executable, "-m", "ddpo_cli", "score", str(picture), "--reward", "jpeg_compressibility"]
        train = [sys.executable, "-c", TO_THE_FIRST_STEP, "train"]
        for options in ([], ["--reward", "jpeg_compressibility", "--keep", "none"]):
            name = " ".join(["ddpo train", *options])
            _report(f"`{name}`, to the first denoising step", [*train, *options], repeats, place)
        _report("`ddpo score picture.png --reward jpeg_compressibility`", score, repeats, place)


def _report(name: str, command: list[str], repeats: int, place: str) -> None:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        # In the folder, which is gone with all that a run leaves in it.
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    warm = sorted(seconds[1:])
    print(f"| {name} | {median(warm):.2f} | {warm[0]:.2f}, {warm[-1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()

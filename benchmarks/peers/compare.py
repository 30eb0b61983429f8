"""ddpo beside TRL's DDPOTrainer at the same work: seconds per epoch by phase, memory, start-up, reward.

    uv venv runs/peers/trl && uv pip install --python runs/peers/trl -r benchmarks/peers/trl.txt
    python benchmarks/peers/compare.py runs/peers [--rounds 5] [--shapes tiny embedded large] [--dtype float32]

`uv run nox -s peers` does both. Each round trains some epochs with either, one after the other in turn, in processes of
their own; the first epoch of each is left out. Prints medians, and the ratio of each round's epochs with its spread.
TRL 0.23.1 is the last release with the trainer; its environment has the diffusers of its time and the same torch.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from work import SHAPES, model_folder

PHASES = ("epoch", "sampling", "reward", "training")
EPOCHS = 3


def main() -> None:
    """Run what is missing of the rounds, and print the table."""
    options = _parse()
    for shape in options.shapes:
        folder = model_folder(options.results, shape)
        rounds = options.results / f"{shape}-{options.dtype}.jsonl"
        done = rounds.read_text(encoding="utf-8").splitlines() if rounds.is_file() else []
        for number in range(len(done), options.rounds):
            ours_first = number % 2 == 0
            found = {name: _run(name, shape, folder, options) for name in (_NAMES if ours_first else _NAMES[::-1])}
            with open(rounds, "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print(f"{shape}: {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
    print(_table(options))


_NAMES = ("ours", "trl_ddpo")


def _run(name: str, shape: str, folder: Path, options: argparse.Namespace) -> dict:
    """Train in a process of its own."""
    python = sys.executable if name == "ours" else str(options.results / "trl" / "bin" / "python")
    script = Path(__file__).with_name(f"{name}.py")
    threads = str(options.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, script, str(time.time()), shape, folder, str(1 + EPOCHS), threads, options.dtype, options.device],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _table(options: argparse.Namespace) -> str:
    lines = [
        "| shape | trainer | epoch, s | sampling | reward | training | peak, MB | start-up, s | reward, last epoch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for shape in options.shapes:
        text = (options.results / f"{shape}-{options.dtype}.jsonl").read_text(encoding="utf-8")
        rounds = [json.loads(line) for line in text.splitlines()]
        for name in _NAMES:
            seconds = (median(median(found[name][phase][1:]) for found in rounds) for phase in PHASES)
            peak = median(found[name]["peak_mb"] for found in rounds)
            start, reward = (median(found[name][key] for found in rounds) for key in ("start_up", "last_reward"))
            told = " | ".join(f"{value:.2f}" for value in seconds)
            lines.append(f"| {shape} | {name} | {told} | {peak:.0f} | {start:.1f} | {reward:.4f} |")
        told = []
        for phase in ("epoch", "sampling", "training"):
            ratios = sorted(median(found["trl_ddpo"][phase][1:]) / median(found["ours"][phase][1:]) for found in rounds)
            told.append(f"{phase} {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        notes.append(f"{shape}: TRL's seconds over ours, in {len(rounds)} rounds: {', '.join(told)}")
    return "\n".join([*lines, "", *notes])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="where models, the environment `trl` and the rounds lie")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["tiny", "embedded", "large"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", help="cpu, or cuda with --shapes sd")
    return parser.parse_args()


if __name__ == "__main__":
    main()

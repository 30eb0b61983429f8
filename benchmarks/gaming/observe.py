"""Look at the runs of `runs.py` through the monitors of ddpo: writes `history.jsonl` into each of their folders.

    python observe.py runs/gaming

What is there is not computed again. The judge is no part of it: what is seen is what `ddpo train` sees by itself.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from runs import all_runs, read_observed
from safetensors.torch import load_file

from ddpo_core import (
    EpochInfo,
    Observation,
    TrainState,
    diversity_monitor,
    image_monitor,
    initial_view_monitor,
    load_policy,
    observe,
)

HISTORY = "history.jsonl"


def main() -> None:
    """Observe what has not been observed yet."""
    options = _parse()
    torch.set_num_threads(options.threads)
    policy = load_policy("builtin:emoji", lora_rank=8, guidance_scale=1.0, device="cpu")
    view = initial_view_monitor(policy, num_samples=32, batch_size=32)
    for run in all_runs():
        folder = options.results / run.name
        seen = [
            observe(_no_state(), info, monitors=[image_monitor, diversity_monitor], held_out=view)
            for info in map(_epoch(folder), read_observed(folder)[len(read_history(folder)) :])
        ]
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / HISTORY, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(asdict(observation)) + "\n" for observation in seen))
        print(f"{run.name}: {len(read_history(folder))} epochs", flush=True)


def read_history(folder: Path) -> list[Observation]:
    """Read what the monitors saw of a run."""
    file = folder / HISTORY
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [Observation(**json.loads(line)) for line in lines]


def _epoch(folder: Path) -> Callable[[dict], EpochInfo]:
    def load(row: dict) -> EpochInfo:
        drawn = load_file(folder / "samples" / f"{row['epoch']:03d}.safetensors")
        count = len(row["prompts"])
        nothing = torch.zeros(count)
        return EpochInfo(
            epoch=row["epoch"],
            queries=64 * row["epoch"],
            prompts=tuple(row["prompts"]),
            metadata=({},) * count,
            images=drawn["images"].float() / 255,
            latents=drawn["latents"],
            scores=nothing,
            advantages=nothing,
            info={},
            metrics={"reward_mean": row["reward"]},
            indices=tuple(range(count)),
        )

    return load


def _no_state() -> TrainState:
    return TrainState({}, {}, {}, seed=0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Train the runs that the rule of `ddpo_core.assess` is tuned and measured on: some that are gamed, some healthy.

    python runs.py runs/gaming [--jobs 2] [--epochs 30]

24 runs with learning rates at which every reward takes the picture with it, and 12 careful ones. Each is one thread and
leaves a folder: `observed.jsonl` (per epoch: the reward, and the share of its samples that the judge recognises),
`samples/` (of every epoch), `checkpoints/` (of every epoch). Finished epochs are not computed again. Then:
`observe.py`, `validate.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch.nn import Module

    from ddpo_core import EpochInfo, TrainState
    from ddpo_core.runs import Parts

REWARDS = ("jpeg_compressibility", "jpeg_incompressibility", "redness", "brightness", "roughness", "symmetry")
OBSERVED = "observed.jsonl"


class Run(NamedTuple):
    """One run. Runs with even seeds are for tuning, those with odd seeds are kept aside."""

    reward: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.reward}-{self.learning_rate:g}-{self.seed}"


def all_runs() -> list[Run]:
    """List the runs by seed: where it is stopped half-way, tuning can begin."""
    gamed = list(product(REWARDS, (2.5e-3, 5e-3)))
    careful = [*((reward, 3e-4) for reward in REWARDS if reward != "symmetry"), ("recognition", 1e-3)]
    return [Run(reward, rate, seed) for seed in (0, 1) for reward, rate in (*gamed, *careful)]


def main() -> None:
    """Train what is missing, or one run alone."""
    options = _parse()
    if options.only:
        _train(next(run for run in all_runs() if run.name == options.only), options)
    else:
        _train_all(options)


def _train_all(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    missing = [run for run in all_runs() if len(read_observed(options.results / run.name)) < options.epochs]
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = {pool.submit(_train_apart, run, options): run for run in missing}
        for done, future in enumerate(as_completed(waiting), 1):
            word = "failed" if future.result() else "done"
            seconds = time.perf_counter() - start
            left = seconds / done * (len(missing) - done) / 60
            print(f"{done}/{len(missing)} {waiting[future].name} {word}, {left:.0f} min left", flush=True)


def _train_apart(run: Run, options: argparse.Namespace) -> int:
    folder = options.results / run.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, str(options.results), "--only", run.name, "--epochs", str(options.epochs)]
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        return subprocess.run(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        ).returncode


def _train(run: Run, options: argparse.Namespace) -> None:
    from ddpo_core import fit, runs, save_checkpoint
    from ddpo_core.emoji.judge import load_judge
    from ddpo_rewards import get_reward

    folder, judge = options.results / run.name, load_judge()
    config = runs.run_config(
        {
            "seed": run.seed,
            "device": "cpu",
            "learning_rate": run.learning_rate,
            "learning_rate_half_life": 1e9,
            "objective": {"baseline": "epoch"},
        }
    )
    parts = runs.load_parts(config)
    state = _begin(run, folder, parts)
    epochs = fit(
        state,
        policy=parts.policy,
        optimizer=parts.optimizer,
        reward_fn=get_reward(run.reward if run.reward.startswith("jpeg") else f"rewards:{run.reward}"),
        prompts=parts.prompts,
        objective=parts.objective,
        config=config.fit,
    )
    for after, info in islice(epochs, options.epochs - state.epoch):
        record(folder, info, judge)
        save_checkpoint(folder, after, parts.policy)


def _begin(run: Run, folder: Path, parts: "Parts") -> "TrainState":
    """Go on from the last checkpoint, or make the first one; drop what was seen after it."""
    from ddpo_core import init, latest_checkpoint, load_checkpoint, save_checkpoint

    saved = latest_checkpoint(folder) or save_checkpoint(
        folder, init(parts.policy, parts.optimizer, seed=run.seed), parts.policy
    )
    state = load_checkpoint(saved, parts.policy, parts.optimizer)
    rows = read_observed(folder)[: state.epoch]
    (folder / OBSERVED).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return state


def record(folder: Path, info: "EpochInfo", judge: "Module") -> None:
    """Keep the samples of an epoch, and what the judge recognises in them."""
    from rewards import animal_of
    from safetensors.torch import save_file

    from ddpo_core.emoji.judge import recognised_share

    (folder / "samples").mkdir(parents=True, exist_ok=True)
    drawn = {"images": (info.images * 255).round().byte().contiguous(), "latents": info.latents.contiguous()}
    save_file(drawn, folder / "samples" / f"{info.epoch:03d}.safetensors")
    share = recognised_share(judge, info.images, [animal_of(prompt) for prompt in info.prompts])
    row = {"epoch": info.epoch, "reward": info.metrics["reward_mean"], "judge": share, "prompts": info.prompts}
    with open(folder / OBSERVED, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{info.epoch} reward {row['reward']:.4g} judge {share:.3f}", flush=True)


def read_observed(folder: Path) -> list[dict]:
    """Read what was seen of a run, epoch by epoch."""
    file = folder / OBSERVED
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="where the runs lie; given again, what is missing is trained")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--only", help="train this run, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()

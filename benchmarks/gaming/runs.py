"""Train the runs that the rule of `ddpo_core.assess` is tuned and measured on: some that are gamed, some honest.

    uv run --group pretrain python benchmarks/pareto/held_out.py runs/pareto        # the gold reward, once
    python benchmarks/gaming/runs.py runs/gaming --gold runs/pareto [--jobs 2]

All at the defaults of the embedded model, with nothing kept:

- `biased`: an honest reward (the second classifier) with a growing share of a known bias, whose sign is drawn by lot;
- `pure`: rewards that say nothing of the prompt, with either sign;
- `honest`: the second classifier alone, at the default learning rate and at more than twice of it: hard negatives,
  which change their pictures as fast as gamed runs do.

Even seeds are for tuning, odd ones are kept aside. Each run is one thread and leaves a folder: `observed.jsonl` (per
epoch: the reward, and the share of its samples that the judge recognises) and `samples/` (of every epoch). A run that
was stopped is begun again. Then: `observe.py`, `validate.py`.
"""

import argparse
import json
import random
import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "pareto")]
from side_by_side import run_side_by_side

if TYPE_CHECKING:
    from torch.nn import Module

    from ddpo_core import EpochInfo, RewardFunction

FAMILIES = ("jpeg", "redness", "brightness", "roughness", "symmetry")
FAST = 2.5e-3
OBSERVED, FINISHED = "observed.jsonl", "finished"


class Run(NamedTuple):
    """One run."""

    kind: str
    family: str
    sign: int
    seed: int
    learning_rate: float | None = None
    """None: the default."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        way = {1: "up", -1: "down", 0: "fast" if self.learning_rate else "default"}[self.sign]
        return f"{self.kind}-{self.family}-{way}-{self.seed}"


def all_runs(seeds: int = 2) -> list[Run]:
    """List the runs by seed: where it is stopped half-way, tuning can begin."""
    runs = []
    for seed in range(seeds):
        lot = random.Random(seed)
        runs += [Run("biased", family, lot.choice((-1, 1)), seed) for family in FAMILIES]
        runs += [Run("pure", family, lot.choice((-1, 1)), seed) for family in FAMILIES]
        runs += [Run("honest", "recognition", 0, seed), Run("honest", "recognition", 0, seed, FAST)]
    return runs


def main() -> None:
    """Train what is missing, or one run alone."""
    options = _parse()
    if options.only:
        _train(next(run for run in all_runs(options.seeds) if run.name == options.only), options)
        return
    missing = [run.name for run in all_runs(options.seeds) if not (options.results / run.name / FINISHED).exists()]
    given = ("--seeds", str(options.seeds), "--epochs", str(options.epochs), "--gold", str(options.gold))
    raise SystemExit(1 if run_side_by_side(__file__, options.results, missing, *given, jobs=options.jobs) else 0)


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


def _train(run: Run, options: argparse.Namespace) -> None:
    from ddpo_core import fit, init
    from ddpo_core.emoji.judge import load_judge
    from ddpo_core.runs import load_parts, run_config

    folder, judge = options.results / run.name, load_judge()
    shutil.rmtree(folder / "samples", ignore_errors=True)
    (folder / OBSERVED).unlink(missing_ok=True)
    told = {"seed": run.seed, "device": "cpu", "keep": "none"}
    config = run_config({**told, **({"learning_rate": run.learning_rate} if run.learning_rate else {})})
    parts = load_parts(config)
    epochs = fit(
        init(parts.policy, parts.optimizer, seed=run.seed),
        policy=parts.policy,
        optimizer=parts.optimizer,
        reward_fn=_reward(run, options.gold, config.fit.samples_per_epoch),
        prompts=parts.prompts,
        objective=parts.objective,
        config=config.fit,
    )
    for _, info in islice(epochs, options.epochs):
        record(folder, info, judge)
    (folder / FINISHED).touch()


def _reward(run: Run, gold: Path, samples_per_epoch: int) -> "RewardFunction":
    import rewards
    from held_out import recognition
    from known_bias import KnownBias

    from ddpo_rewards import get_reward

    small = get_reward("jpeg_compressibility")
    families = {name: getattr(rewards, name) for name in FAMILIES if name != "jpeg"}
    bias = {**families, "jpeg": lambda images: small(images)[0]}.get(run.family)
    if run.kind == "pure":
        return lambda images, prompts, metadata: (run.sign * bias(images), {})
    seen = lambda images, prompts: recognition(gold, images, prompts)  # noqa: E731
    return KnownBias(seen, bias if run.kind == "biased" else None, sign=run.sign, samples_per_epoch=samples_per_epoch)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="where the runs lie; given again, what is missing is trained")
    parser.add_argument("--gold", type=Path, required=True, help="where pareto/held_out.py left its weights")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--only", help="train this run, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()

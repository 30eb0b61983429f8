"""Whether `ddpo train` at its defaults learns rewards of all kinds, and leaves be where there is nothing to learn.

    python benchmarks/rewards_suite/suite.py runs/rewards-suite [--jobs 2] [--seeds 3] [--set keep=none]

Trains every reward with every seed at the defaults of the embedded model, draws the same 256 prompts and seeds before
and after, and prints a table for RESULTS.md, of means over the seeds and the worst of them: the change of the reward in
units of its spread between pictures, the t of its mean, which is what is optimised, the Wilcoxon signed-rank z, which
no outlier hides (above 2: it rose; below -2: it fell), and what the judge recognises, which nothing here is trained on
but `recognition` and `recognition_and_contrast`. Draws what the rewards that say nothing of the prompt make of the same
prompts and seeds. Finished runs are not run again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "gaming")]
from rewards import animal_of
from side_by_side import run_side_by_side

REWARDS = (
    "jpeg_compressibility", "jpeg_incompressibility", "redness", "brightness", "roughness", "symmetry", "recognition",
    "recognition_and_contrast", "sparse", "tiny", "huge", "noise",
)  # fmt: skip
CANNOT_RISE = ("noise",)
SHOWN = ("jpeg_compressibility", "jpeg_incompressibility", "redness", "brightness", "roughness", "symmetry")
SAMPLES, FIRST_SEED = 256, 10_000
FIGURE = Path(__file__).parents[2] / "docs" / "images" / "any-reward.png"
RESULT = "suite.json"


class Run(NamedTuple):
    """One run of the suite."""

    reward: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.reward}-{self.seed}"


def main() -> None:
    """Train what is missing, or one run alone, and print the table."""
    options = _parse()
    if options.only:
        _train(next(run for run in _runs(options) if run.name == options.only), options)
        return
    missing = [run.name for run in _runs(options) if not (options.results / run.name / RESULT).is_file()]
    given = ["--seeds", str(options.seeds), *(part for setting in options.set for part in ("--set", setting))]
    failed = run_side_by_side(__file__, options.results, missing, *given, jobs=options.jobs, threads=options.threads)
    print(_table(options))
    _draw(options)
    raise SystemExit(1 if failed else 0)


def signed_rank(differences: torch.Tensor) -> float:
    """Return the z of Wilcoxon's signed-rank test, which no outlier moves; 0 where nothing differs."""
    exact = differences[differences != 0].double()
    if len(exact) == 0:
        return 0.0
    magnitudes, places = exact.abs().unique(return_inverse=True)
    counts = torch.bincount(places, minlength=len(magnitudes)).double()
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[places]  # ties have the mean of their ranks
    return ((ranks * exact.sign()).sum() / ranks.square().sum().sqrt()).item()


def _runs(options: argparse.Namespace) -> list[Run]:
    return [Run(reward, seed) for seed, reward in product(range(options.seeds), options.rewards)]


def _train(run: Run, options: argparse.Namespace) -> None:
    """Train one run, from where it was stopped if it was, and compare its model with the base."""
    from ddpo_core import latest_checkpoint, runs
    from ddpo_rewards import get_reward

    reward = get_reward(run.reward if run.reward.startswith("jpeg") else f"suite_rewards:{run.reward}")
    folder = options.results / run.name
    said = dict(setting.split("=", 1) for setting in options.set)
    config = runs.run_config({"reward": run.reward, "seed": run.seed, "device": "cpu", **said})
    parts = runs.load_parts(config)
    if latest_checkpoint(folder):
        events = runs.resume(folder, reward, config=config, parts=parts)
    else:
        events = runs.train(config, reward, output=folder, parts=parts)
    for event in events:
        if isinstance(event, runs.Epoch):
            print(event.info.epoch, f"{event.info.metrics['reward_mean']:.4g}", flush=True)
            trained = event.state.params
    result = _compare(parts, trained, reward, config.fit.num_steps)
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _compare(parts, trained, reward, num_steps: int) -> dict[str, float]:
    from ddpo_core import evaluate
    from ddpo_core.emoji.judge import load_judge, recognised_share
    from ddpo_core.runs.compare import fixed_prompts

    judge, prompts = load_judge(), fixed_prompts(parts.prompts, SAMPLES)
    seeds = range(FIRST_SEED, FIRST_SEED + SAMPLES)
    before, after = (
        evaluate(parts.policy, params, reward, prompts, num_steps=num_steps, seeds=seeds, batch_size=32)
        for params in (parts.policy.params, trained)
    )
    animals = [animal_of(prompt) for prompt in prompts.prompts]
    change = after.scores.double() - before.scores.double()
    return {
        "before": before.scores.double().mean().item(),
        "after": after.scores.double().mean().item(),
        "change_in_spreads": (change.mean() / before.scores.double().std()).item(),
        "t": (change.mean() / (change.std() / SAMPLES**0.5)).item(),
        "z": signed_rank(change),
        "judge_before": recognised_share(judge, before.images, animals),
        "judge_after": recognised_share(judge, after.images, animals),
        "pixels": (after.images - before.images).square().mean().sqrt().item(),
    }


def _table(options: argparse.Namespace) -> str:
    """A row for each reward: means over its seeds, and of what was tested and judged also the worst of them."""
    lines = ["| reward | seeds | before | after | change in spreads | least t | least z | judge | worst | moved |"]
    lines += ["|---" * 10 + "|"]
    results = {
        run: json.loads((options.results / run.name / RESULT).read_text(encoding="utf-8"))
        for run in _runs(options)
        if (options.results / run.name / RESULT).is_file()
    }
    for reward in options.rewards:
        found = [result for run, result in results.items() if run.reward == reward]
        if not found:
            continue
        mean = {key: fmean(result[key] for result in found) for key in found[0]}
        least = {key: min(result[key] for result in found) for key in ("t", "z", "judge_after")}
        lines.append(
            f"| {reward} | {len(found)} | {mean['before']:.4g} | {mean['after']:.4g} "
            f"| {mean['change_in_spreads']:+.2f} | {least['t']:+.1f} | {least['z']:+.1f} "
            f"| {mean['judge_after']:.1%} | {least['judge_after']:.1%} | {mean['pixels']:.3f} |"
        )
    can_rise = [found for run, found in results.items() if run.reward not in CANNOT_RISE]
    for test, told in (("t", "by the mean"), ("z", "by ranks")):
        rose = _count([found[test] for found in can_rise], lambda value: value > 2)
        fell = _count([found[test] for found in results.values()], lambda value: value < -2)
        lines += ["", f"{told}: rose {rose} of {len(can_rise)} that can; fell {fell} of {len(results)}"]
    before = {f"{result['judge_before']:.1%}" for result in results.values()}
    held = [_is_held(options.results / run.name) for run in results]
    lines += [
        "",
        f"the judge before training: {', '.join(sorted(before))}; held at the end: {sum(held)} of {len(held)}",
    ]
    return "\n".join(lines)


def _is_held(run: Path) -> bool:
    """Whether all that a run kept lies above its level in the last epoch, or within two standard errors below it."""
    from ddpo_core.runs import read_metrics

    return all(
        one["value"] >= one["level"] - 2 * one["error"] for one in read_metrics(run)[-1].get("kept", {}).values()
    )


def _count(values: Sequence[float], is_one) -> int:
    return sum(map(is_one, values))


def _draw(options: argparse.Namespace) -> None:
    """A row of the base, and one of what each reward's first seed made of it: the same prompts and seeds."""
    from safetensors.torch import load_file

    from ddpo_core import latest_checkpoint, runs, sample_images
    from ddpo_core.runs.compare import fixed_prompts
    from ddpo_core.runs.pictures import PER_ROW, grid, save_png, to_pil

    parts = runs.load_parts(config := runs.run_config({"device": "cpu"}))
    prompts, seeds = fixed_prompts(parts.prompts, PER_ROW).prompts, range(PER_ROW)
    images, captions = [], []
    found = {reward: latest_checkpoint(options.results / f"{reward}-0") for reward in SHOWN}
    trained = {reward: load_file(place / "params.safetensors") for reward, place in found.items() if place}
    for name, params in {"before": parts.policy.params, **trained}.items():
        _, drawn = sample_images(parts.policy, params, prompts, num_steps=config.fit.num_steps, seeds=seeds)
        images += to_pil(drawn)
        captions += [f"{prompt}, before" if name == "before" else name.removeprefix("jpeg_") for prompt in prompts]
    if trained:
        save_png(grid(images, captions, columns=PER_ROW), options.figure)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="where the runs lie; given again, what is missing is trained")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=REWARDS)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key outside tables, such as keep=none"
    )
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--only", help="train this run, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()

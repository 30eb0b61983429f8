"""Reward against queries of the four algorithms, on both JPEG rewards and the embedded model.

    python benchmarks/algorithms.py runs/algorithms [--jobs 2] [--seeds 3] [--epochs 24] [--threads 1]

Every run has the defaults that a user of `ddpo train --keep none` gets for the algorithm on the embedded model, and the
same number of queries. One more per reward is a control: regression that weighs all samples alike, and so knows nothing
of the reward. Runs that are finished are not run again, and one that was stopped goes on. Each leaves its metrics.jsonl
in a folder of its own under the results. Draws docs/images/algorithms.png (mean and range over the seeds) and prints a
table for RESULTS.md.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from side_by_side import run_side_by_side

from ddpo_core import latest_checkpoint
from ddpo_core.runs.folder import EVALUATION, evaluated_epoch
from ddpo_core.runs.log import read_metrics

ALGORITHMS = ("ddpo-is", "ddpo-sf", "rwr", "sparse-rwr")
CONTROL = "rwr-uniform"
REWARDS = ("jpeg_compressibility", "jpeg_incompressibility")
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "algorithms.png"
# What is drawn on the way teaches nothing here and costs time; with constraints, it is not the algorithm that decides.
SETTINGS = {"keep": "none", "sample_every": 1_000_000, "checkpoint_every": 4, "keep_last": 1, "evidence_samples": 0}


class Run(NamedTuple):
    """One run of the comparison."""

    algorithm: str
    reward: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.reward}-{self.algorithm}-{self.seed}"


def main() -> None:
    """Train what is missing, draw and print."""
    options = _parse()
    # By seed: where it is stopped half-way, what is there can be compared.
    parts = product(range(options.seeds), options.rewards, options.algorithms)
    runs = [Run(algorithm, reward, seed) for seed, reward, algorithm in parts]
    runs += [Run(CONTROL, reward, 0) for reward in options.rewards]
    if options.only:
        _train(next(run for run in runs if run.name == options.only), options)
        return
    missing = [run.name for run in runs if not _is_finished(run, options)]
    same = ["--epochs", str(options.epochs), "--threads", str(options.threads)]
    same += ["--samples-per-epoch", str(options.samples_per_epoch)] if options.samples_per_epoch else []
    failed = run_side_by_side(__file__, options.results, missing, *same, jobs=options.jobs, threads=options.threads)
    finished = [run for run in runs if _is_finished(run, options)]
    if finished:
        _draw(finished, options)
        print(_table(finished, options.results))
    raise SystemExit(1 if failed else 0)


def _train(run: Run, options: argparse.Namespace) -> None:
    """Train one run, from where it was stopped if it was."""
    from ddpo_core import runs
    from ddpo_rewards import get_reward

    folder, reward = options.results / run.name, get_reward(run.reward)
    objective = {"name": "rwr", "inverse_temperature": 0.0} if run.algorithm == CONTROL else {"name": run.algorithm}
    fit = {"samples_per_epoch": options.samples_per_epoch} if options.samples_per_epoch else {}
    config = runs.run_config(
        {
            **{"reward": run.reward, "seed": run.seed, "device": "cpu", "epochs": options.epochs, **SETTINGS},
            **{"objective": objective, "fit": fit},
        }
    )
    if latest_checkpoint(folder):
        events = runs.resume(folder, reward, config=config)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        events = runs.train(config, reward, output=folder)
    for event in events:
        if isinstance(event, runs.Epoch):
            print(event.info.epoch, f"{event.info.metrics['reward_mean']:.4g}", flush=True)


def _is_finished(run: Run, options: argparse.Namespace) -> bool:
    return evaluated_epoch(options.results / run.name) == options.epochs


def _draw(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """One panel per reward: the mean reward of each epoch over the queries, and its range over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rewards = list(dict.fromkeys(run.reward for run in runs))
    figure, panels = pyplot.subplots(1, len(rewards), figsize=(5.5 * len(rewards), 4), squeeze=False)
    for panel, reward in zip(panels[0], rewards, strict=True):
        for algorithm, group in _by_algorithm(runs, reward).items():
            queries, curves = _curves(group, options.results)
            mean = [_mean(values) for values in zip(*curves, strict=True)]
            panel.plot(queries, mean, label=algorithm)
            panel.fill_between(
                queries, *([f(values) for values in zip(*curves, strict=True)] for f in (min, max)), alpha=0.2
            )
        panel.set(title=reward, xlabel="queries of the reward", ylabel="mean reward of an epoch")
        panel.legend()
    figure.tight_layout()
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=110)


def _table(runs: Sequence[Run], results: Path) -> str:
    """Mean rewards on the fixed prompts and seeds, over the seeds of the runs."""
    lines = ["| reward | algorithm | runs | before | after, lowest to highest | seconds of a run |", "|---" * 6 + "|"]
    for reward in dict.fromkeys(run.reward for run in runs):
        for algorithm, group in _by_algorithm(runs, reward).items():
            means = [_means(results / run.name) for run in group]
            before, after = ([record[part] for record in means] for part in ("before", "after"))
            seconds = _mean([_seconds(results / run.name) for run in group])
            spread = f"{_mean(after):.3f}, {min(after):.3f} to {max(after):.3f}"
            cells = (reward, algorithm, str(len(group)), f"{_mean(before):.3f}", spread, f"{seconds:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _by_algorithm(runs: Sequence[Run], reward: str) -> dict[str, list[Run]]:
    chosen = [run for run in runs if run.reward == reward]
    return {
        name: [run for run in chosen if run.algorithm == name] for name in dict.fromkeys(r.algorithm for r in chosen)
    }


def _curves(runs: Sequence[Run], results: Path) -> tuple[list[int], list[list[float]]]:
    """Queries, and the mean reward of every epoch of each run."""
    rows = [read_metrics(results / run.name) for run in runs]
    return [row["queries"] for row in rows[0]], [[row["reward_mean"] for row in part] for part in rows]


def _means(folder: Path) -> dict[str, float]:
    """Mean rewards on the fixed prompts and seeds before and after."""
    found: dict[str, float] = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))["mean"]
    return found


def _seconds(folder: Path) -> float:
    """Seconds of all epochs."""
    phases = ("seconds_sampling", "seconds_reward", "seconds_training")
    return sum(float(row[phase]) for row in read_metrics(folder) for phase in phases)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="where the runs lie; given again, what is missing is trained")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--samples-per-epoch", type=int, help="left out: what a user gets")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=REWARDS)
    parser.add_argument("--only", help="train this run, in this process")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    return parser.parse_args()


if __name__ == "__main__":
    main()

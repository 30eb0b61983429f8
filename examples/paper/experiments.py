"""The runs behind the figures of this folder: each is trained once, and goes on where it was stopped."""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from scipy.stats import t

from ddpo_cli.presets import read_preset
from ddpo_core import Evaluation, PromptSet, checkpoint_path, evaluate, latest_checkpoint, load_leaves, runs
from ddpo_core.emoji.scene_judge import agreement, load_scene_judge
from ddpo_core.runs.folder import evaluated_epoch
from ddpo_rewards import combine, get_reward

TASKS = ("compressibility", "incompressibility", "aesthetic", "alignment")
JUDGED = "judged.jsonl"
FIRST_SEED = 10_000
"""Of the noise of what is compared: no run draws from these seeds."""


@dataclass(frozen=True)
class Experiment:
    """One run: a preset `emoji-TASK` with an algorithm, a seed, and options of its own, which have a name."""

    task: str
    algorithm: str = "ddpo-is"
    seed: int = 0
    way: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.task}-{self.algorithm}-{self.way}-{self.seed}".replace(" ", "-")


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    tasks: tuple[str, ...]
    epochs: int
    seeds: int
    every: int
    """Epochs between two checkpoints, of which snapshots are drawn."""
    samples: int
    """Pictures of each comparison."""
    options: Mapping[str, Any]


FULL = Size(TASKS, epochs=40, seeds=3, every=5, samples=135, options={"sample_every": 1_000})
QUICK = Size(
    tasks=("alignment",),
    epochs=1,
    seeds=1,
    every=1,
    samples=8,
    options={
        **{"sample_every": 1_000, "eval_samples": 4, "grid_samples": 4, "evidence_samples": 8, "keep": "none"},
        "fit": {"samples_per_epoch": 16, "sample_batch_size": 16, "micro_batch_size": 16, "num_steps": 2},
    },
)
"""Shows that everything works, within seconds; it learns nothing."""


class Options(NamedTuple):
    """What every script of this folder is told."""

    results: Path
    figures: Path
    size: Size
    jobs: int


def parse_options(description: str | None) -> Options:
    """Read the command line of a script."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="where the runs lie; given again, what is missing is trained")
    parser.add_argument("--figures", type=Path, help="where the figures go; left out, RESULTS/figures")
    parser.add_argument("--quick", action="store_true", help="runs of one epoch, which learn nothing")
    parser.add_argument("--seeds", type=int, help="of training, where there are several; left out, 3")
    parser.add_argument("--epochs", type=int, help="of each run; left out, 40")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    said = parser.parse_args()
    figures = said.figures or said.results / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    size = QUICK if said.quick else FULL
    size = replace(size, seeds=said.seeds or size.seeds, epochs=said.epochs or size.epochs)
    return Options(said.results, figures, size, said.jobs)


def train_all(experiments: Sequence[Experiment], options: Options) -> None:
    """Train those that are not finished, several side by side."""
    missing = [each for each in experiments if evaluated_epoch(options.results / each.name) != options.size.epochs]
    for done, name in enumerate(_train_each(missing, options), 1):
        print(f"{done} of {len(missing)} runs trained: {name}", file=sys.stderr, flush=True)


def configuration(experiment: Experiment, size: Size) -> runs.RunConfig:
    """The defaults of the embedded model, the options of the preset, and those of the experiment."""
    told = {"seed": experiment.seed, "epochs": size.epochs, "checkpoint_every": size.every}
    told |= {"keep_last": size.epochs, "objective": {"name": experiment.algorithm}, **size.options}
    return runs.run_config({**told, **experiment.options}, preset=read_preset(f"emoji-{experiment.task}"))


def read_curve(experiment: Experiment, options: Options) -> list[dict[str, Any]]:
    """Per epoch: what `ddpo train` writes down, and the judge's shares under `judge`."""
    folder = options.results / experiment.name
    lines = (folder / JUDGED).read_text(encoding="utf-8").splitlines()
    judged = {row["epoch"]: row for row in map(json.loads, lines)}  # an epoch that was repeated counts once
    return [{**row, "judge": judged[row["epoch"]]} for row in runs.read_metrics(folder)]


def draw(experiment: Experiment, epoch: int, prompts: PromptSet | Sequence[str], options: Options) -> Evaluation:
    """Sample with the model of an epoch, 0 for the base, and score by the task's first reward.

    Equal prompts have equal noise at every epoch.
    """
    config = configuration(experiment, options.size)
    parts = runs.load_parts(config)
    params = parts.policy.params
    if epoch:
        params = load_leaves(checkpoint_path(options.results / experiment.name, epoch)).params
    seeds = range(FIRST_SEED, FIRST_SEED + len(prompts))
    reward, steps = get_reward(config.reward[0]), config.fit.num_steps
    return evaluate(parts.policy, params, reward, prompts, num_steps=steps, seeds=seeds, batch_size=32)


def of_each_seed(experiment: Experiment, options: Options) -> list[Experiment]:
    """The same run with each of the seeds."""
    return [replace(experiment, seed=seed) for seed in range(options.size.seeds)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of several runs, and half the width of its 95 % interval (Student's t); 0 of one run."""
    count = len(values)
    margin = t.ppf(0.975, count - 1) * stdev(values) / math.sqrt(count) if count > 1 else 0.0
    return fmean(values), float(margin)


def told(values: Sequence[float], form: str = ".3f") -> str:
    """The mean of several runs with its interval; of one run, the value."""
    mean, margin = interval(values)
    return f"{mean:{form}}" + (f" ± {margin:{form.lstrip('+')}}" if len(values) > 1 else "")


def table(rows: Iterable[Sequence[str]]) -> str:
    """The rows as a table in Markdown, the first as its head."""
    head, *others = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * (head.count(" | ") + 1) + "|", *others])


def _train_each(experiments: Sequence[Experiment], options: Options) -> Iterator[str]:
    if options.jobs == 1:  # in this process, which has loaded everything
        for experiment in experiments:
            yield _train(experiment, options)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_train, experiment, options) for experiment in experiments]):
            yield future.result()


def _train(experiment: Experiment, options: Options) -> str:
    """Train one, from where it was stopped if it was, and write down what the judge sees in every epoch's samples."""
    folder, config = options.results / experiment.name, configuration(experiment, options.size)
    rewards, judge = [get_reward(reference) for reference in config.reward], load_scene_judge()
    reward = combine(*rewards) if rewards[1:] else rewards[0]
    if latest_checkpoint(folder):
        events = runs.resume(folder, reward, config=config)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        events = runs.train(config, reward, output=folder)
    for event in events:
        if isinstance(event, runs.Epoch):
            seen = agreement(judge, event.info.images, event.info.prompts)
            with open(folder / JUDGED, "a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": event.info.epoch, **seen._asdict()}) + "\n")
    return experiment.name

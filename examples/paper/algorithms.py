"""Reward against queries of two policy gradients and two regressions, on the four tasks of the paper (figure 4).

    python examples/paper/algorithms.py runs/paper [--jobs 2] [--quick]

Nothing is kept back (`keep=none`), so that the algorithms decide; on the sizes of JPEGs also with the larger steps that
DDPO-IS takes where its ratios are clipped later. Draws the mean over the seeds with its 95 % interval (Student's t),
and prints the last epochs, and what the judge of scenes sees in them, as a table.
"""

from statistics import fmean
from typing import Any

from experiments import Experiment, interval, parse_options, read_curve, table, told, train_all
from matplotlib import pyplot

ALGORITHMS = ("ddpo-is", "ddpo-sf", "rwr", "sparse-rwr")
LARGER_STEPS: dict[str, Any] = {"learning_rate": 2.2e-3, "objective": {"name": "ddpo-is", "clip_range": 2e-3}}
"""Twice the rate and twenty times the clip range of the defaults, which are chosen for any reward."""
WITH_LARGER_STEPS = ("compressibility", "incompressibility")
LAST = 5
"""Epochs whose mean is the result of a run."""


def main() -> None:
    """Train what is missing, draw and print."""
    options = parse_options(__doc__)
    # By seed: where it is stopped half-way, what is there can be compared.
    seeds, tasks = range(options.size.seeds), options.size.tasks
    train_all([_experiment(task, way, seed) for seed in seeds for task in tasks for way in _ways(task)], options)
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.8), squeeze=False)
    rows = [("task", "algorithm", "mean reward", "judged as told")]
    for panel, task in zip(panels[0], tasks, strict=True):
        for way in _ways(task):
            runs = [read_curve(_experiment(task, way, seed), options) for seed in seeds]
            curves = [[row["reward_mean"] for row in run] for run in runs]
            means, margins = zip(*map(interval, zip(*curves, strict=True)), strict=True)
            queries = [row["queries"] for row in runs[0]]
            panel.plot(queries, means, label=way)
            low, high = ([m + sign * d for m, d in zip(means, margins, strict=True)] for sign in (-1, 1))
            panel.fill_between(queries, low, high, alpha=0.2)
            judged = fmean(row["judge"]["whole"] for run in runs for row in run[-LAST:])
            rows.append((task, way, told([fmean(curve[-LAST:]) for curve in curves]), f"{judged:.0%}"))
        panel.set(title=task, xlabel="queries of the reward", ylabel="mean reward of an epoch")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names))
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(options.figures / "algorithms.png", dpi=100)
    print(table(rows))


def _ways(task: str) -> tuple[str, ...]:
    return (*ALGORITHMS, "ddpo-is, larger steps") if task in WITH_LARGER_STEPS else ALGORITHMS


def _experiment(task: str, way: str, seed: int) -> Experiment:
    if way in ALGORITHMS:
        return Experiment(task, way, seed, "nothing kept", {"keep": "none"})
    return Experiment(task, "ddpo-is", seed, "larger steps", {"keep": "none", **LARGER_STEPS})


if __name__ == "__main__":
    main()

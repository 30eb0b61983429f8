"""Reward against queries of two policy gradients and two regressions, on the four tasks of the paper (figure 4).

    python examples/paper/algorithms.py runs/paper [--jobs 2] [--quick]

Nothing is kept back (`keep=none`), so that the algorithms decide. Draws the mean over the seeds with its 95 % interval
(Student's t), and prints the last epochs as a table.
"""

from itertools import product
from statistics import fmean

from experiments import Experiment, Options, interval, parse_options, read_curve, table, told, train_all
from matplotlib import pyplot

ALGORITHMS = ("ddpo-is", "ddpo-sf", "rwr", "sparse-rwr")
LAST = 5
"""Epochs whose mean is the result of a run."""


def main() -> None:
    """Train what is missing, draw and print."""
    options = parse_options(__doc__)
    # By seed: where it is stopped half-way, what is there can be compared.
    parts = product(range(options.size.seeds), options.size.tasks, ALGORITHMS)
    train_all([_experiment(task, algorithm, seed) for seed, task, algorithm in parts], options)
    figure, panels = pyplot.subplots(
        1, len(options.size.tasks), figsize=(4.2 * len(options.size.tasks), 3.8), squeeze=False
    )
    rows = [("task", *ALGORITHMS)]
    for panel, task in zip(panels[0], options.size.tasks, strict=True):
        results = []
        for algorithm in ALGORITHMS:
            queries, curves = _curves(task, algorithm, options)
            means, margins = zip(*map(interval, zip(*curves, strict=True)), strict=True)
            panel.plot(queries, means, label=algorithm)
            low, high = ([m + sign * d for m, d in zip(means, margins, strict=True)] for sign in (-1, 1))
            panel.fill_between(queries, low, high, alpha=0.2)
            results.append(told([fmean(curve[-LAST:]) for curve in curves]))
        panel.set(title=task, xlabel="queries of the reward", ylabel="mean reward of an epoch")
        rows.append((task, *results))
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(options.figures / "algorithms.png", dpi=100)
    print(table(rows))


def _experiment(task: str, algorithm: str, seed: int) -> Experiment:
    return Experiment(task, algorithm, seed, "nothing kept", {"keep": "none"})


def _curves(task: str, algorithm: str, options: Options) -> tuple[list[int], list[list[float]]]:
    """The queries, and the mean reward of every epoch of each seed."""
    rows = [read_curve(_experiment(task, algorithm, seed), options) for seed in range(options.size.seeds)]
    return [row["queries"] for row in rows[0]], [[row["reward_mean"] for row in part] for part in rows]


if __name__ == "__main__":
    main()

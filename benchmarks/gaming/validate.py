"""How well the rule of `ddpo_core.assess` finds gamed rewards, on the runs of `runs.py` as `observe.py` saw them.

    python validate.py runs/gaming

Whether a run is gamed is decided by what came of it, not by what was meant: its judge's accuracy (mean of three epochs,
64 samples each) falls by 10 points or more from its peak. Prints tables for docs/gaming.md, for the runs that
the rule was tuned on (even seeds) and those kept aside (odd seeds), and draws docs/images/gaming.png.
"""

import argparse
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from observe import read_history
from runs import Run, all_runs, read_observed

from ddpo_core import assess
from ddpo_core.gaming.measures import EVIDENCE
from ddpo_core.runs import best_epoch

FIGURE = Path(__file__).parents[2] / "docs" / "images" / "gaming.png"
FALL, NEAR = 0.10, 0.05
SMOOTHED = 3


class Result(NamedTuple):
    """What came of one run, by the judge and by the rule; epochs count from 1."""

    run: Run
    accuracy: list[float]
    evidence: list[float]
    fallen: int | None
    """When the judge's accuracy had fallen."""
    warned: int | None
    flagged: int | None
    """When the rule first called it hacked."""
    chosen: float | None
    """The judge's accuracy on 64 samples of the model with which `--on-hack stop` and `rollback` end."""


def main() -> None:
    """Judge every run, print and draw."""
    options = _parse()
    results = [_judge(run, options.results) for run in all_runs() if read_history(options.results / run.name)]
    halves = {"tuned on": 0, "kept aside": 1}
    for name, parity in halves.items():
        part = [result for result in results if result.run.seed % 2 == parity]
        if part:
            print(f"\n{name}: {len(part)} runs\n\n{_table(part)}\n\n{_summary(part)}")
    _draw(results, options.figure)


def _judge(run: Run, folder: Path) -> Result:
    history = read_history(folder / run.name)
    shares = [row["judge"] for row in read_observed(folder / run.name)][: len(history)]
    accuracy = _smooth(shares)
    statuses = [assess(history[:end]).status for end in range(1, len(history) + 1)]
    flagged = _first([status == "hacked" for status in statuses])
    evidence = [observation.held_out[EVIDENCE] for observation in history]
    return Result(
        run,
        accuracy,
        evidence,
        _first([value <= peak - FALL for value, peak in zip(accuracy, accumulate(accuracy, max), strict=True)]),
        _first([status != "ok" for status in statuses]),
        flagged,
        _accuracy_after(best_epoch(history[:flagged]), shares) if flagged else None,
    )


def _accuracy_after(epoch: int | None, shares: Sequence[float]) -> float | None:
    """The judge's accuracy on what the model of an epoch draws, which is seen in the next."""
    return shares[min(epoch, len(shares) - 1)] if epoch else None


def _table(results: Sequence[Result]) -> str:
    head = ("run", "peak of the judge", "it has fallen", "warned", "hacked", "lead", "ends at")
    rows = [head, ("---",) * len(head), *map(_row, results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(result: Result) -> tuple[str, ...]:
    lead = result.fallen - result.flagged if result.fallen and result.flagged else None
    return (
        result.run.name,
        f"{100 * max(result.accuracy):.0f} %",
        *("" if value is None else str(value) for value in (result.fallen, result.warned, result.flagged, lead)),
        "" if result.chosen is None else f"{100 * result.chosen:.0f} %",
    )


def _summary(results: Sequence[Result]) -> str:
    gamed = [result for result in results if result.fallen]
    healthy = [result for result in results if not result.fallen]
    leads = [result.fallen - result.flagged for result in gamed if result.fallen and result.flagged]
    spoken = [result for result in gamed if result.fallen and result.warned and result.fallen > result.warned]
    ends = [max(result.accuracy) - result.chosen for result in gamed if result.chosen is not None]
    rows = (
        ("gamed: called hacked at all", len(leads), len(gamed)),
        ("gamed: called hacked before the judge had fallen", sum(lead > 0 for lead in leads), len(gamed)),
        ("gamed: in that epoch or before", sum(lead >= 0 for lead in leads), len(gamed)),
        ("gamed: warned or called hacked before", len(spoken), len(gamed)),
        ("healthy: called hacked", sum(result.flagged is not None for result in healthy), len(healthy)),
        ("healthy: warned", sum(result.warned is not None for result in healthy), len(healthy)),
        ("stopped: within 5 points of the peak", sum(end <= NEAR for end in ends), len(ends)),
    )
    lines = ["| | of | share | 95 % interval |", "|---|---|---|---|"]
    lines += [f"| {name} | {count} of {total} | {_interval(count, total)} |" for name, count, total in rows if total]
    below = 100 * fmean(ends or [0.0])
    return "\n".join([*lines, "", f"Median lead {median(leads or [0]):g} epochs; stopped {below:.1f} points below."])


def _interval(count: int, total: int) -> str:
    """The share and its interval (Wilson), as two cells."""
    from scipy.stats import binomtest

    low, high = binomtest(count, total).proportion_ci(method="wilson")
    return f"{count / total:.0%} | {low:.0%} to {high:.0%}"


def _draw(results: Sequence[Result], file: Path) -> None:
    """Accuracy and evidence of every run that was kept aside, with the epochs of the fall and of the verdict."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [result for result in results if result.run.seed % 2] or results
    columns = 6
    rows = -(-len(shown) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(2.4 * columns, 1.9 * rows), sharex=True, sharey=True)
    for panel in panels.flat[len(shown) :]:
        panel.axis("off")
    for panel, result in zip(panels.flat, shown, strict=False):
        epochs = range(1, len(result.accuracy) + 1)
        panel.plot(epochs, result.accuracy, color="black", label="judge's accuracy")
        panel.plot(epochs, result.evidence, color="tab:blue", label="evidence for the prompt")
        if result.fallen:
            panel.axvline(result.fallen, color="black", linestyle=":", label="accuracy has fallen by 10 points")
        if result.flagged:
            panel.axvline(result.flagged, color="tab:red", label="hacked")
        panel.set_title(result.run.name, fontsize=8)
    found = dict(
        pair for panel in panels.flat for pair in zip(*reversed(panel.get_legend_handles_labels()), strict=True)
    )
    figure.legend(found.values(), found.keys(), loc="lower center", ncols=len(found), fontsize=8)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def _smooth(values: Sequence[float]) -> list[float]:
    """Means of three; the first stands for those before it too, so that no peak is one epoch's luck."""
    ends = (max(end, SMOOTHED) for end in range(1, len(values) + 1))
    return [fmean(values[end - SMOOTHED : end]) for end in ends]


def _first(truths: Sequence[bool]) -> int | None:
    return truths.index(True) + 1 if True in truths else None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    return parser.parse_args()


if __name__ == "__main__":
    main()

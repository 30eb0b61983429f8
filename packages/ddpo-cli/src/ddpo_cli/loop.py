"""The epochs of one run: what is written after each, and what is saved when one fails."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ddpo_cli.evaluating import evaluate_fixed, held_out_means, write_grid
from ddpo_cli.history import is_improving
from ddpo_cli.interrupts import Interrupts
from ddpo_cli.rescue import Rescue, save
from ddpo_cli.sample_log import gather_rows, sample_rows
from ddpo_cli.setup import Setup
from ddpo_cli.ui.live import View, stopwatch
from ddpo_cli.watching import Observer, as_row, is_halting, observer, read_history, shared
from ddpo_core import (
    EpochInfo,
    Processes,
    TrainState,
    Verdict,
    assess,
    fit,
    remember,
)
from ddpo_core.runs.compare import mean_score
from ddpo_core.runs.log import append_metrics, append_samples
from ddpo_core.runs.trackers import Log, Record, scalars
from ddpo_core.types import Progress


@dataclass(frozen=True)
class Training:
    """A run that is being trained, as seen by the process that writes it."""

    run: Path
    setup: Setup
    processes: Processes
    view: View
    interrupts: Interrupts
    log: Log
    observe: Observer


class Look(NamedTuple):
    """What an epoch's look at the fixed prompts showed: empty where it was not due."""

    means: Mapping[str, float] = {}
    held_out: Mapping[str, float] = {}
    pictures: Mapping[str, Path] = {}


def run_epochs(training: Training, rescue: Rescue) -> Verdict | None:
    """Train until `config.epochs`, writing metrics, grids and checkpoints; `rescue` holds the last state.

    Returns:
        The verdict that ended the run before its time, where `config.on_hack` lets one do that.
    """
    lap = stopwatch()
    view, processes = training.view, training.processes
    history = read_history(training.run)
    for state, info, rows in _epochs(training.setup, rescue.state, processes, view.show_phase):
        with training.interrupts.held_back():
            rescue.state, rescue.saved = state, None
            view.show_epoch(info.epoch, info.queries, info.metrics, seconds=lap())
            look = _look(training, state)
            seen = training.observe(state, info)
            seen = replace(seen, held_out={**seen.held_out, **look.held_out})
            history = remember(history, seen)
            verdict = assess(history)
            view.show_verdict(verdict)
            _write_epoch(training, rescue, info, rows, look, as_row(seen, verdict))
        if shared(is_halting(verdict, training.setup.config), processes):
            return verdict
    return None


def follow_epochs(setup: Setup, state: TrainState, processes: Processes) -> None:
    """Do this process's share of the epochs that another process writes."""
    look = observer(setup, processes)
    for after, info, _ in _epochs(setup, state, processes, None):
        look(after, info)
        if shared(False, processes):
            return


def _epochs(
    setup: Setup, state: TrainState, processes: Processes, progress: Progress | None
) -> Iterator[tuple[TrainState, EpochInfo, Sequence[Mapping[str, Any]]]]:
    """Go through the missing epochs, with the samples of all processes; all processes have to go through all."""
    config = setup.config.fit
    endless = fit(
        state,
        policy=setup.policy,
        optimizer=setup.optimizer,
        reward_fn=setup.reward_fn,
        prompts=setup.prompts,
        objective=setup.objective,
        config=config,
        progress=progress,
        processes=processes,
    )
    for after, info in islice(endless, max(0, setup.config.epochs - state.epoch)):
        yield after, info, gather_rows(sample_rows(info), processes)


def _write_epoch(
    training: Training,
    rescue: Rescue,
    info: EpochInfo,
    samples: Sequence[Mapping[str, Any]],
    look: Look,
    watched: Mapping[str, Any],
) -> None:
    run, config = training.run, training.setup.config
    row = {"epoch": info.epoch, "queries": info.queries, **info.metrics, **look.means, **watched}
    append_samples(run, samples)
    append_metrics(run, row)
    if info.epoch % config.checkpoint_every == 0 or is_improving(run):
        save(run, rescue, keep_last=config.keep_last)
    drawn = {name: [sample[name] for sample in samples] for name in ("reward", "advantage")}
    for complaint in training.log(Record(info.epoch, scalars(row), drawn, look.pictures)):
        training.view.print_line(complaint)


def _look(training: Training, state: TrainState) -> Look:
    """Draw the fixed prompts where that is due: a grid for people, means for metrics.jsonl."""
    config = training.setup.config
    # The evaluation after training draws the grid of the last epoch.
    is_shown = state.epoch % config.sample_every == 0 and state.epoch != config.epochs
    if not is_shown and not config.held_out:
        return Look()
    # What is told from held-out rewards takes more images than looking at a grid.
    count = config.eval_samples if config.held_out else config.grid_samples
    evaluation = evaluate_fixed(training.setup, state.params, training.view, count=count)
    held_out = held_out_means(evaluation, training.setup)
    if not is_shown:
        return Look(held_out=held_out)
    path = write_grid(training.run, state.epoch, evaluation, training.view, count=config.grid_samples)
    return Look({"samples_reward_mean": mean_score(evaluation)}, held_out, {"samples": path})

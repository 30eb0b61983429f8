"""The epochs of one run: what is written after each, and what is saved when one fails."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ddpo_cli.display import View, stopwatch
from ddpo_cli.errors import CLIError, describe, is_user_error, say
from ddpo_cli.evaluating import evaluate_fixed, held_out_mean, mean, write_grid
from ddpo_cli.history import append_metrics, best_epoch
from ddpo_cli.interrupts import Interrupts
from ddpo_cli.runs import CHECKPOINTS
from ddpo_cli.sample_log import append_samples, gather_rows, sample_rows
from ddpo_cli.setup import Setup
from ddpo_cli.trackers import Log, Record
from ddpo_core import EpochInfo, Processes, TrainState, fit, latest_checkpoint, prune_checkpoints, save_checkpoint
from ddpo_core.types import Progress

ALL = 2**31


@dataclass(frozen=True)
class Training:
    """A run that is being trained, as seen by the process that writes it."""

    run: Path
    setup: Setup
    processes: Processes
    view: View
    interrupts: Interrupts
    log: Log


@dataclass
class Rescue:
    """The state after the last whole epoch: what is saved when something goes wrong."""

    state: TrainState
    saved: Path | None = None  # where this very state lies already


@contextmanager
def rescuing(run: Path, state: TrainState, interrupts: Interrupts) -> Iterator[Rescue]:
    """Save the last good state whatever stops the block, and say so in the exception that goes on."""
    rescue = Rescue(state)
    try:
        yield rescue
    except BaseException as error:
        interrupts.breakable = False
        told = _with_whereabouts(run, rescue, error)
        if told is error:
            raise
        raise told from error


def run_epochs(training: Training, rescue: Rescue) -> None:
    """Train until `config.epochs`, writing metrics, grids and checkpoints; `rescue` holds the last state."""
    lap = stopwatch()
    view = training.view
    for state, info, rows in _epochs(training.setup, rescue.state, training.processes, view.show_phase):
        with training.interrupts.held_back():
            rescue.state, rescue.saved = state, None
            view.show_epoch(info.epoch, info.queries, info.metrics, seconds=lap())
            _write_epoch(training, rescue, info, rows)


def follow_epochs(setup: Setup, state: TrainState, processes: Processes) -> None:
    """Do this process's share of the epochs that another process writes."""
    for _ in _epochs(setup, state, processes, None):
        pass


def save(run: Path, rescue: Rescue, *, keep_last: int) -> Path:
    """Save the state, unless it is saved already; the `keep_last` newest checkpoints stay, and the best."""
    if rescue.saved is None:
        rescue.saved = save_checkpoint(run / CHECKPOINTS / f"epoch-{rescue.state.epoch:06d}", rescue.state)
    best = best_epoch(run)
    prune_checkpoints(run, keep_last=keep_last, keep=() if best is None else (best,))
    return rescue.saved


def _epochs(
    setup: Setup, state: TrainState, processes: Processes, progress: Progress | None
) -> Iterator[tuple[TrainState, EpochInfo, Sequence[Mapping[str, Any]]]]:
    """Go through the missing epochs, with the samples of all processes; all processes have to go through all."""
    config = setup.config.fit
    owned = processes.owned(config.samples_per_epoch, config.updates_per_epoch)
    endless = fit(
        state,
        policy=setup.policy,
        optimizer=setup.optimizer,
        reward_fn=setup.reward_fn,
        prompts=setup.prompts,
        loss_fn=setup.objective,
        config=config,
        progress=progress,
        processes=processes,
    )
    for after, info in islice(endless, max(0, setup.config.epochs - state.epoch)):
        yield after, info, gather_rows(sample_rows(info, owned), processes)


def _write_epoch(training: Training, rescue: Rescue, info: EpochInfo, samples: Sequence[Mapping[str, Any]]) -> None:
    run, config = training.run, training.setup.config
    row: dict[str, Any] = {"epoch": info.epoch, "queries": info.queries, **info.metrics}
    pictures: dict[str, Path] = {}
    is_last = info.epoch == config.epochs  # the evaluation after training draws this one's grid
    if info.epoch % config.sample_every == 0 and not is_last:
        measured, pictures = _look(training, rescue.state)
        row |= measured
    append_samples(run, samples)
    append_metrics(run, row)
    is_best = "held_out_mean" in row and best_epoch(run, saved_only=False) == info.epoch
    if info.epoch % config.checkpoint_every == 0 or is_best:
        save(run, rescue, keep_last=config.keep_last)
    scalars = {key: value for key, value in row.items() if key != "epoch"}
    drawn = {name: [sample[name] for sample in samples] for name in ("reward", "advantage")}
    training.log(Record(info.epoch, scalars, drawn, pictures))


def _look(training: Training, state: TrainState) -> tuple[dict[str, float], dict[str, Path]]:
    """Draw the fixed prompts: a grid for people, means for metrics.jsonl."""
    config = training.setup.config
    # Choosing the best checkpoint takes more images than looking at a grid.
    count = config.eval_samples if config.held_out else config.grid_samples
    evaluation = evaluate_fixed(training.setup, state.params, training.view, count=count)
    path = write_grid(training.run, state.epoch, evaluation, training.view, count=config.grid_samples)
    held_out = {"held_out_mean": held_out_mean(evaluation)} if config.held_out else {}
    return {"samples_reward_mean": mean(evaluation), **held_out}, {"samples": path}


def _with_whereabouts(run: Path, rescue: Rescue, error: BaseException) -> BaseException:
    """Save the state; returns the exception to raise instead of `error`, which says where it is."""
    go_on = f"ddpo train --resume {run}"
    epoch = rescue.state.epoch
    what = describe(error).removesuffix(".")
    try:
        saved = save(run, rescue, keep_last=ALL)
    except Exception as failure:
        kept = latest_checkpoint(run)
        where = f"the last checkpoint is {kept}, go on with: {go_on}" if kept else "there is no checkpoint"
        why = "" if str(failure) in what else f" ({describe(failure)})"
        return CLIError(f"{what}. Epoch {epoch} is not saved{why}; {where}")
    if isinstance(error, KeyboardInterrupt):
        return KeyboardInterrupt(f"epoch {epoch} is saved in {saved}. Go on with: {go_on}")
    if is_user_error(error):
        return CLIError(f"{what}. Epoch {epoch} is saved in {saved}; once that is mended: {go_on}")
    say(f"Epoch {epoch} is saved in {saved}; go on with: {go_on}")
    return error

"""The epochs of one run: what is written after each, and what is saved when one fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ddpo_cli.display import View, stopwatch
from ddpo_cli.errors import CLIError, describe, is_user_error, say
from ddpo_cli.evaluating import evaluate_fixed, mean, write_grid
from ddpo_cli.interrupts import Interrupts
from ddpo_cli.runs import CHECKPOINTS, append_metrics, checkpoints, remove_checkpoint
from ddpo_cli.setup import Setup
from ddpo_core import EpochInfo, TrainState, fit, latest_checkpoint, save_checkpoint

ALL = 2**31


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


def run_epochs(run: Path, setup: Setup, rescue: Rescue, view: View, interrupts: Interrupts) -> None:
    """Train until `config.epochs`, writing metrics, grids and checkpoints; `rescue` holds the last state."""
    lap = stopwatch()
    missing = max(0, setup.config.epochs - rescue.state.epoch)
    for state, info in islice(_epochs(setup, rescue.state, view), missing):
        with interrupts.held_back():
            rescue.state, rescue.saved = state, None
            view.show_epoch(info.epoch, info.queries, info.metrics, seconds=lap())
            _write_epoch(run, setup, rescue, info, view)


def save(run: Path, rescue: Rescue, *, keep_last: int) -> Path:
    """Save the state, unless it is saved already, and drop all but the `keep_last` newest checkpoints."""
    if rescue.saved is None:
        rescue.saved = save_checkpoint(run / CHECKPOINTS / f"epoch-{rescue.state.epoch:06d}", rescue.state)
    for old in checkpoints(run)[:-keep_last]:
        remove_checkpoint(old)
    return rescue.saved


def _epochs(setup: Setup, state: TrainState, view: View) -> Iterator[tuple[TrainState, EpochInfo]]:
    return fit(
        state,
        policy=setup.policy,
        optimizer=setup.optimizer,
        reward_fn=setup.reward_fn,
        prompts=setup.prompts,
        loss_fn=setup.objective,
        config=setup.config.fit,
        progress=view.show_phase,
    )


def _write_epoch(run: Path, setup: Setup, rescue: Rescue, info: EpochInfo, view: View) -> None:
    config = setup.config
    row: dict[str, Any] = {"epoch": info.epoch, "queries": info.queries, **info.metrics}
    is_last = info.epoch == config.epochs  # the evaluation after training draws this one's grid
    if info.epoch % config.sample_every == 0 and not is_last:
        evaluation = evaluate_fixed(setup, rescue.state.params, view, count=config.grid_samples)
        write_grid(run, info.epoch, evaluation, view, count=config.grid_samples)
        row["samples_reward_mean"] = mean(evaluation)
    append_metrics(run, row)
    if info.epoch % config.checkpoint_every == 0:
        save(run, rescue, keep_last=config.keep_last)


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

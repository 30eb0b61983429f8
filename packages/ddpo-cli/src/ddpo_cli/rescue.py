"""The last good state of a run: saved whatever stops it; and the best one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ddpo_cli.errors import CLIError, describe, is_user_error
from ddpo_cli.history import best_epoch
from ddpo_cli.interrupts import Interrupts
from ddpo_cli.setup import Setup
from ddpo_cli.ui.console import say
from ddpo_core import (
    Policy,
    TrainState,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from ddpo_core.checkpoint import checkpoint_path

ALL = 2**31


@dataclass
class Rescue:
    """The state after the last whole epoch: what is saved when something goes wrong."""

    state: TrainState
    policy: Policy
    saved: Path | None = None  # where this very state lies already


@contextmanager
def rescuing(run: Path, state: TrainState, policy: Policy, interrupts: Interrupts) -> Iterator[Rescue]:
    """Save the last good state whatever stops the block, and say so in the exception that goes on."""
    rescue = Rescue(state, policy)
    try:
        yield rescue
    except BaseException as error:
        interrupts.held_for = "the checkpoint"
        told = _with_whereabouts(run, rescue, error)
        if told is error:
            raise
        raise told from error


def save(run: Path, rescue: Rescue, *, keep_last: int) -> Path:
    """Save the state, unless it is saved already; the `keep_last` newest checkpoints stay, and the best."""
    if rescue.saved is None:
        rescue.saved = save_checkpoint(run, rescue.state, rescue.policy)
    best = best_epoch(run)
    prune_checkpoints(run, keep_last=keep_last, keep=() if best is None else (best,))
    return rescue.saved


def load_best(run: Path, rescue: Rescue, setup: Setup) -> TrainState:
    """Load the best checkpoint by what is not optimised; the present state, where there is none."""
    best = best_epoch(run)
    if best is None:
        return rescue.state
    return load_checkpoint(checkpoint_path(run, best), setup.policy, setup.optimizer)


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

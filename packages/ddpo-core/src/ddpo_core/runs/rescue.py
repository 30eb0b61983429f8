"""What is saved of a run, and when: the newest epochs, the best one, and whatever stops it the last whole one."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ddpo_core.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    save_checkpoint,
)
from ddpo_core.errors import DDPOError
from ddpo_core.runs.folder import REWARD_STATE, write_text
from ddpo_core.types import Policy, RewardFunction, TrainState


@dataclass(frozen=True)
class Rescue:
    """What was saved of a run when an exception ended it."""

    run: Path
    epoch: int
    """The last whole epoch."""
    checkpoint: Path | None
    """Where it is saved; None where that failed."""
    latest: Path | None
    """The last checkpoint that there is."""
    failure: Exception | None = None
    """Why it is not saved."""


class Snapshot(NamedTuple):
    """The state after an epoch, with what the rewards had learnt by then."""

    state: TrainState
    rewards: Mapping[str, Any]


@dataclass
class Keeper:
    """The last whole epochs of a run that is trained, in memory and on the disk."""

    run: Path
    policy: Policy
    rewards: Mapping[str, RewardFunction]
    """All that score in this run, by name; what those with methods `state` and `load_state` learn is saved as well."""
    keep_last: int
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    """By epoch: the last, and where the samples of an epoch are judged the one before, which drew them."""
    saved: dict[int, Path] = field(default_factory=dict)
    """What this process knows to be on the disk as it is in memory."""

    @property
    def latest(self) -> TrainState:
        """The state after the last whole epoch."""
        return self.snapshots[max(self.snapshots)].state

    def advance(self, state: TrainState, *, keep_before: bool = False) -> None:
        """Take an epoch that is whole."""
        before = [self.snapshots[max(self.snapshots)]] if self.snapshots and keep_before else []
        # Not on the accelerator, where a whole UNet with its moments might not fit twice.
        self.snapshots = {kept.state.epoch: kept._replace(state=_on_host(kept.state)) for kept in before}
        self.snapshots[state.epoch] = Snapshot(state, reward_states(self.rewards))

    def go_back(self, state: TrainState) -> None:
        """Take an earlier epoch, whose checkpoint is on the disk, in the place of the last."""
        self.snapshots = {state.epoch: Snapshot(state, reward_states(self.rewards))}
        self.saved = {state.epoch: checkpoint_path(self.run, state.epoch)}

    def save(self, epochs: Collection[int], *, best: int | None) -> list[Path]:
        """Write the checkpoints of `epochs` and of the best, where they are in memory and not yet on the disk.

        Then the newest stay, and the best. Returns what was written and stays.
        """
        wanted = {epoch for epoch in (*epochs, best) if epoch in self.snapshots and epoch not in self.saved}
        if not wanted:
            return []
        written = [self._write(epoch) for epoch in sorted(epoch for epoch in wanted if epoch is not None)]
        left = prune_checkpoints(self.run, keep_last=self.keep_last, keep=() if best is None else (best,))
        self.saved = {epoch: path for epoch, path in self.saved.items() if path in left}
        return [path for path in written if path in left]

    def rescue(self) -> Rescue:
        """Save the last whole epoch, or say why that fails; nothing else is touched."""
        epoch = self.latest.epoch
        try:
            path: Path | None = self.saved.get(epoch) or self._write(epoch)
            failure = None
        except Exception as error:
            path, failure = None, error
        return Rescue(self.run, epoch, path, latest_checkpoint(self.run), failure)

    def _write(self, epoch: int) -> Path:
        state, learnt = self.snapshots[epoch]
        if learnt:
            known = {**_read_reward_states(self.run), str(epoch): learnt}
            kept = {str(other) for other in (*list_checkpoints(self.run), epoch)}
            text = json.dumps({name: states for name, states in known.items() if name in kept})
            write_text(self.run / REWARD_STATE, text + "\n")
        self.saved[epoch] = save_checkpoint(self.run, state, self.policy)
        return self.saved[epoch]


def reward_states(rewards: Mapping[str, RewardFunction]) -> dict[str, Any]:
    """Return what rewards have learnt so far, as JSON values, of those that learn anything.

    Example:
        >>> class Counting:
        ...     calls = 0
        ...     def __call__(self, images, prompts, metadata):
        ...         self.calls += 1
        ...         return [0.0] * len(images), {}
        ...     def state(self):
        ...         return {"calls": self.calls}
        >>> reward_states({"counting": Counting(), "constant": lambda images, prompts, metadata: ([0.0], {})})
        {'counting': {'calls': 0}}
    """
    readers = {name: getattr(reward, "state", None) for name, reward in rewards.items()}
    return {name: state for name, read in readers.items() if callable(read) and (state := read())}


def load_reward_states(run: Path, epoch: int, rewards: Mapping[str, RewardFunction]) -> None:
    """Let rewards go on from what they had learnt when the checkpoint of an epoch was written.

    Raises:
        DDPOError: What is written down of it cannot be read.
    """
    states = _read_reward_states(run).get(str(epoch), {})
    for name, reward in rewards.items():
        load = getattr(reward, "load_state", None)
        if name in states and callable(load):
            load(states[name])


def rescue_of(error: BaseException) -> Rescue | None:
    """Return what was saved when `error` ended a run; None where it was raised elsewhere.

    Example:
        >>> rescue_of(ValueError("before any run")) is None
        True
    """
    found = getattr(error, _ATTRIBUTE, None)
    return found if isinstance(found, Rescue) else None


def attach_rescue(error: BaseException, rescue: Rescue) -> None:
    """Let an exception say what was saved: in its traceback, and to `rescue_of`."""
    if rescue.checkpoint is not None:
        error.add_note(f"Epoch {rescue.epoch} is saved in {rescue.checkpoint}; it can be resumed.")
    else:
        error.add_note(f"Epoch {rescue.epoch} is not saved ({rescue.failure}); the last checkpoint is {rescue.latest}.")
    setattr(error, _ATTRIBUTE, rescue)


def _on_host(state: TrainState) -> TrainState:
    """Copy the tensors of a state to the CPU; those that are there already are not copied."""
    params, opt_state = (
        {name: leaf.cpu() for name, leaf in leaves.items()} for leaves in (state.params, state.opt_state)
    )
    return replace(state, params=params, opt_state=opt_state)


def _read_reward_states(run: Path) -> dict[str, dict[str, Any]]:
    """What the rewards had learnt, by the epochs that are saved."""
    try:
        return dict(json.loads((run / REWARD_STATE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DDPOError(f"{str(run / REWARD_STATE)!r} is damaged ({error}); delete it to go on without") from None


_ATTRIBUTE = "ddpo_rescue"

"""Checkpoints: complete or absent, never in between, and never a pickle.

A checkpoint is the folder `RUN/checkpoints/epoch-000010` with `params.safetensors`, `optimizer.safetensors` and
`state.json`, which holds the digests of the other two and says of which model they are. It is written beside its place,
flushed to the disk, and renamed:

    .epoch-000010.writing   being written, or left half-written by a process that was killed
    .epoch-000010.old       what is being replaced: until the new one has its name, this is the checkpoint
    .epoch-000010.removed   being deleted

Whoever writes a run settles what a killed process left; whoever reads one changes nothing.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpo_core.errors import CheckpointError, DDPOError
from ddpo_core.types import Optimizer, OptState, Params, Policy, TrainState

_FORMAT = 4
_PARAMS, _OPTIMIZER, _STATE = "params.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"epoch-(\d{6,})|\.epoch-(\d{6,})\.old")


class Leaves(NamedTuple):
    """The tensors of a checkpoint, and what a LoRA among them is scaled by."""

    params: Params
    opt_state: OptState
    lora_scale: float | None


def save_checkpoint(run: str | os.PathLike[str], state: TrainState, policy: Policy) -> Path:
    """Write a state to `checkpoint_path(run, state.epoch)`, replacing a checkpoint that is there.

    At every moment, also where the process is killed, the old checkpoint or the new one can be loaded.

    Args:
        run: The folder of the run; made if it is missing.
        state: What is saved.
        policy: The policy that is trained: its `fingerprint` and `lora_scale` are written down.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: If it cannot be written (a full disk, no permission), or what the objective remembers is no
            plain data; nothing half-written is left.

    Example:
        >>> import tempfile
        >>> from ddpo_core import adamw, init, toy
        >>> run, policy = tempfile.mkdtemp(), toy.policy()
        >>> saved = save_checkpoint(run, init(policy, adamw(1e-3), seed=0), policy)
        >>> saved == latest_checkpoint(run), saved.name
        (True, 'epoch-000000')
    """
    target = checkpoint_path(run, state.epoch)
    try:
        with complete_folder(target) as aside:
            _write(aside, state, policy)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {str(target)!r} cannot be written: {reason(error)}") from None
    return target


def load_checkpoint(path: str | os.PathLike[str], policy: Policy, optimizer: Optimizer) -> TrainState:
    """Read a state, on the devices of the policy's parameters.

    Args:
        path: The folder of a checkpoint, as `save_checkpoint` and `latest_checkpoint` return it.
        policy: A policy of the model that the checkpoint was written with.
        optimizer: The optimizer that it was written with.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or of another model, LoRA scale or optimizer.

    Example:
        >>> import tempfile
        >>> from ddpo_core import adamw, init, toy
        >>> policy, optimizer = toy.policy(), adamw(1e-3)
        >>> saved = save_checkpoint(tempfile.mkdtemp(), init(policy, optimizer, seed=3), policy)
        >>> load_checkpoint(saved, policy, optimizer).seed
        3
    """
    with _opened(path) as (folder, saved):
        _check_model(folder, saved, policy)
        params = _load_like(folder / _PARAMS, policy.params)
        opt_state = _load_like(folder / _OPTIMIZER, optimizer.init(policy.params))
        remembered, constraints = saved["objective_state"], saved["constraint_state"]
        return TrainState(params, opt_state, remembered, saved["seed"], saved["epoch"], saved["queries"], constraints)


def load_leaves(path: str | os.PathLike[str]) -> Leaves:
    """Read the tensors of a checkpoint, on the CPU, without the model that they belong to.

    Args:
        path: The folder of a checkpoint.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged.

    Example:
        >>> import tempfile
        >>> from ddpo_core import adamw, init, toy
        >>> policy = toy.policy()
        >>> saved = save_checkpoint(tempfile.mkdtemp(), init(policy, adamw(1e-3), seed=3), policy)
        >>> load_leaves(saved).params.keys() == policy.params.keys()
        True
    """
    with _opened(path) as (folder, saved):
        return Leaves(load_file(folder / _PARAMS), load_file(folder / _OPTIMIZER), saved["lora_scale"])


def checkpoint_path(run: str | os.PathLike[str], epoch: int) -> Path:
    """Say where the checkpoint after so many epochs lies.

    Example:
        >>> checkpoint_path("run", 10).as_posix()
        'run/checkpoints/epoch-000010'
    """
    return Path(run) / "checkpoints" / f"epoch-{epoch:06d}"


def list_checkpoints(run: str | os.PathLike[str]) -> dict[int, Path]:
    """Find the complete checkpoints of a run by their epochs, oldest first.

    Example:
        >>> list_checkpoints("no such run")
        {}
    """
    folder = Path(run) / "checkpoints"
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    epochs = {int(match[1] or match[2]) for name in names if (match := _NAME.fullmatch(name))}
    return {epoch: checkpoint_path(run, epoch) for epoch in sorted(epochs)}


def latest_checkpoint(run: str | os.PathLike[str]) -> Path | None:
    """Find the complete checkpoint of a run's highest epoch, or None."""
    return next(reversed(list_checkpoints(run).values()), None)


def prune_checkpoints(run: str | os.PathLike[str], *, keep_last: int, keep: Collection[int] = ()) -> tuple[Path, ...]:
    """Delete the checkpoints of a run but for the newest and those of some epochs, and what killed processes left.

    Each goes in one step: a process that is killed here leaves no half of one.

    Args:
        run: The folder of the run; no other process may write to it at the same time.
        keep_last: How many of the highest epochs are kept, at least 1.
        keep: Epochs that are kept as well, for instance the best.

    Returns:
        What is left, oldest first.

    Raises:
        CheckpointError: If one cannot be deleted.
        DDPOError: If `keep_last` is below 1.
    """
    if keep_last < 1:
        raise DDPOError(f"keep_last={keep_last!r}: want at least 1, or there is nothing to go on from")
    saved = list_checkpoints(run)
    kept = {*list(saved)[-keep_last:], *keep}
    try:
        for epoch, path in saved.items():
            _settle(path)
            if epoch not in kept:
                _discard(path, path)
        for left in (Path(run) / "checkpoints").glob(".epoch-*"):
            if left.suffix in (".writing", ".removed"):
                shutil.rmtree(left)
    except OSError as error:
        raise CheckpointError(f"old checkpoints of {str(run)!r} cannot be deleted: {reason(error)}") from None
    return tuple(path for epoch, path in saved.items() if epoch in kept)


def rewind_checkpoints(run: str | os.PathLike[str], *, epoch: int, into: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Move the checkpoints of a run after `epoch` to another folder, as if they were a run of their own there.

    Nothing is deleted. The latest goes first: a process that is killed here leaves a run that can be rewound again.

    Args:
        run: The folder of the run; no other process may write to it at the same time.
        epoch: Where the run goes on from.
        into: A folder on the same file system that has no checkpoints of these epochs; made if there is anything to
            move. `latest_checkpoint(into)` finds them there.

    Returns:
        The moved ones at their new places, oldest first.

    Raises:
        CheckpointError: If one cannot be moved.
    """
    later = {saved: path for saved, path in list_checkpoints(run).items() if saved > epoch}
    moved = {saved: checkpoint_path(into, saved) for saved in later}
    try:
        for saved in reversed(later):
            _settle(later[saved])
            _make_parents(moved[saved])
            later[saved].rename(moved[saved])
            flush(moved[saved].parent)
            flush(later[saved].parent)
    except OSError as error:
        raise CheckpointError(
            f"checkpoints of {str(run)!r} cannot be moved to {str(into)!r}: {reason(error)}"
        ) from None
    return tuple(moved.values())


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Write a folder that is complete or absent, and replaces another one in its place.

    The block writes to the folder that it is given, beside `target`. At its end that is flushed to the disk and
    renamed; after an exception it is deleted.

    Raises:
        OSError: If it cannot be made, flushed or renamed.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "model"
        >>> with complete_folder(target) as aside:
        ...     _ = (aside / "config.json").write_text("{}")
        >>> [entry.name for entry in target.parent.rglob("*")]
        ['model', 'config.json']
    """
    aside = _beside(target, "writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _make_parents(target)
        aside.mkdir()
        yield aside
        for entry in (*aside.rglob("*"), aside):
            flush(entry)
        put_in_place(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def put_in_place(aside: Path, target: Path) -> None:
    """Rename a complete folder to its place, where another may be.

    Raises:
        OSError: If it cannot be renamed or flushed; one of the two is in its place, or beside it until the next call.
    """
    _settle(target)
    # A folder cannot be renamed onto another: the old one steps aside first, and the name is free for an instant.
    if target.exists():
        target.rename(_old(target))
    try:
        aside.rename(target)
    except OSError:
        with suppress(OSError):
            _old(target).rename(target)
        raise
    flush(target.parent)
    with suppress(OSError):
        _settle(target)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk and not only in its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: BaseException) -> str:
    """Say in a few words what went wrong with a file."""
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Find a checkpoint, check that it is whole, and say of whatever is wrong inside the block which one it is."""
    target = Path(path)
    folder = _old(target) if _old(target).is_dir() and not target.exists() else target
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {str(folder)!r} does not exist")
    try:
        saved = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        _check_digests(folder, saved)
        yield folder, saved
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} cannot be read: {reason(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        raise CheckpointError(f"checkpoint {str(folder)!r} is damaged: go on from an earlier one") from None


def _settle(target: Path) -> None:
    """End a replacement that was cut short: the folder that stepped aside comes back, unless the new one is there."""
    if not _old(target).exists():
        return
    if target.exists():
        _discard(_old(target), target)
    else:
        _old(target).rename(target)


def _discard(folder: Path, target: Path) -> None:
    """Delete a folder in one step: under its new name nobody takes it for `target`, however much is left of it."""
    removed = _beside(target, "removed")
    shutil.rmtree(removed, ignore_errors=True)
    folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _old(target: Path) -> Path:
    return _beside(target, "old")


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _make_parents(target: Path) -> None:
    """Make the folders above; their entries are flushed as well, or a power cut takes them with all that is inside."""
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush(folder.parent)


def _write(folder: Path, state: TrainState, policy: Policy) -> None:
    save_file(_portable(state.params), folder / _PARAMS)
    save_file(_portable(state.opt_state), folder / _OPTIMIZER)
    described = {
        "format": _FORMAT,
        "fingerprint": policy.fingerprint,
        "lora_scale": policy.lora_scale,
        "epoch": state.epoch,
        "queries": state.queries,
        "seed": state.seed,
        "objective_state": _plain(state.objective_state, "the objective remembers"),
        "constraint_state": _plain(state.constraint_state, "the constraints remember"),
        "sha256": {name: _digest(folder / name) for name in (_PARAMS, _OPTIMIZER)},
    }
    (folder / _STATE).write_text(json.dumps(described, indent=1), encoding="utf-8")


def _plain(remembered: Mapping[str, Any], whose: str) -> Mapping[str, Any]:
    """Refuse what JSON would read back as something else: a run that goes on with that is another run."""
    try:
        read_back = json.loads(json.dumps(remembered, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{whose} what JSON cannot hold ({error}): want plain data") from None
    if read_back != remembered:
        different = next(
            (name for name in remembered if read_back.get(name) != remembered[name]), next(iter(remembered))
        )
        raise CheckpointError(
            f"{whose} under {different!r} what JSON reads back as something else (a tuple, a key that "
            "is no text): want lists, and texts as keys"
        )
    return remembered


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digests(folder: Path, saved: Mapping[str, Any]) -> None:
    if saved["format"] != _FORMAT:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has format {saved['format']!r}; this version reads {_FORMAT}"
        )
    for name, digest in saved["sha256"].items():
        if _digest(folder / name) != digest:
            raise CheckpointError(f"checkpoint {str(folder)!r} is damaged ({name}): go on from an earlier one")


def _check_model(folder: Path, saved: Mapping[str, Any], policy: Policy) -> None:
    """The same shapes may be those of another model, whose weights these are not."""
    if saved["fingerprint"] != policy.fingerprint:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} is of another model: its fingerprint is {saved['fingerprint']!r}, that of "
            f"this policy is {policy.fingerprint!r}; load the model that it was written with"
        )
    if saved["lora_scale"] != policy.lora_scale:
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has the LoRA scale {saved['lora_scale']!r}, this policy has "
            f"{policy.lora_scale!r}; load the model with the LoRA alpha and rank that it was written with"
        )


def _load_like(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read tensors, in the order, layout and on the devices of `expected`, which must have their names and shapes."""
    loaded = load_file(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    if wanted != found:
        different = next(name for name in (*wanted, *found) if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"checkpoint {str(path)!r} is of another model: {different!r} is {found.get(different, 'absent')} there "
            f"and {wanted.get(different, 'absent')} here; load the model and LoRA rank that it was written with"
        )
    # In the layout of the original: convolutions round differently in another.
    return {name: torch.empty_like(tensor).copy_(loaded[name]) for name, tensor in expected.items()}

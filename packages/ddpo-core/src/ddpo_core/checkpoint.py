"""Checkpoints: complete or absent, never in between, and never a pickle.

A checkpoint is a folder with `params.safetensors`, `optimizer.safetensors` and `state.json`. It is written beside its
place, flushed to the disk, and renamed. `state.json` holds the digests of the other two.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpo_core.errors import CheckpointError, DDPOError
from ddpo_core.files import flush, put_in_place, reason
from ddpo_core.types import Optimizer, Policy, TrainState

_FORMAT = 1
_PARAMS, _OPTIMIZER, _STATE = "params.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"epoch-(\d{6,})")


def save_checkpoint(path: str | os.PathLike[str], state: TrainState) -> Path:
    """Write a state to the folder `path`, replacing a checkpoint that is there.

    Raises:
        CheckpointError: If it cannot be written (a full disk, no permission); what was there before is intact, and
            nothing half-written is left.

    Example:
        >>> import tempfile
        >>> from ddpo_core import adamw, init, toy
        >>> folder = tempfile.mkdtemp()
        >>> saved = save_checkpoint(f"{folder}/checkpoints/epoch-000000", init(toy.policy(), adamw(1e-3), seed=0))
        >>> latest_checkpoint(folder) == saved
        True
    """
    target = Path(path)
    aside = target.with_name(f".{target.name}.writing")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write(aside, state)
        put_in_place(aside, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"checkpoint {str(target)!r} cannot be written: {reason(error)}") from None
    return target


def load_checkpoint(path: str | os.PathLike[str], policy: Policy, optimizer: Optimizer) -> TrainState:
    """Read a state, on the devices of the policy's parameters.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or of another policy or optimizer.

    Example:
        >>> import tempfile
        >>> from ddpo_core import adamw, init, toy
        >>> policy, optimizer = toy.policy(), adamw(1e-3)
        >>> saved = save_checkpoint(f"{tempfile.mkdtemp()}/epoch-000000", init(policy, optimizer, seed=3))
        >>> load_checkpoint(saved, policy, optimizer).seed
        3
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {str(folder)!r} does not exist")
    try:
        saved = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        _check_digests(folder, saved)
        params = _load_like(folder / _PARAMS, policy.params)
        opt_state = _load_like(folder / _OPTIMIZER, optimizer.init(policy.params))
        stats = {prompt: tuple(rewards) for prompt, rewards in saved["prompt_stats"].items()}
        return TrainState(params, opt_state, stats, saved["seed"], saved["epoch"], saved["queries"])
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(folder)!r} cannot be read: {reason(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        raise CheckpointError(f"checkpoint {str(folder)!r} is damaged: go on from an earlier one") from None


def latest_checkpoint(run_dir: str | os.PathLike[str]) -> Path | None:
    """Find the complete checkpoint of the highest epoch in `run_dir/checkpoints`, or None."""
    saved = _checkpoints(run_dir)
    return saved[max(saved)] if saved else None


def prune_checkpoints(
    run_dir: str | os.PathLike[str], *, keep_last: int, keep: Collection[int] = ()
) -> tuple[Path, ...]:
    """Remove the checkpoints in `run_dir/checkpoints` but for the newest and those of some epochs.

    Each goes in one step: a process that is killed here leaves no half of one.

    Args:
        run_dir: The folder of the run.
        keep_last: How many of the highest epochs are kept, at least 1.
        keep: Epochs that are kept as well, for instance the best.

    Returns:
        What is left, oldest first.

    Raises:
        CheckpointError: If one cannot be removed.
        DDPOError: If `keep_last` is below 1.
    """
    if keep_last < 1:
        raise DDPOError(f"keep_last={keep_last!r}: want at least 1, or there is nothing to go on from")
    return _keep(run_dir, {*sorted(_checkpoints(run_dir))[-keep_last:], *keep})


def rewind_checkpoints(run_dir: str | os.PathLike[str], *, epoch: int) -> tuple[Path, ...]:
    """Remove the checkpoints in `run_dir/checkpoints` after `epoch`, which a run that goes on makes again.

    Raises:
        CheckpointError: If one cannot be removed.
    """
    return _keep(run_dir, {saved for saved in _checkpoints(run_dir) if saved <= epoch})


def _keep(run_dir: str | os.PathLike[str], kept: Collection[int]) -> tuple[Path, ...]:
    """Remove all checkpoints but those of the epochs `kept`, each in one step."""
    saved = _checkpoints(run_dir)
    try:
        for epoch in saved.keys() - kept:
            saved[epoch].rename(saved[epoch].with_name(f".{saved[epoch].name}.removed"))
        # Those of a process that was killed here go as well.
        for aside in (Path(run_dir) / "checkpoints").glob(".epoch-*.removed"):
            shutil.rmtree(aside)
    except OSError as error:
        raise CheckpointError(f"old checkpoints of {str(run_dir)!r} cannot be removed: {reason(error)}") from None
    return tuple(saved[epoch] for epoch in sorted(saved) if epoch in kept)


def _checkpoints(run_dir: str | os.PathLike[str]) -> dict[int, Path]:
    """Find the complete checkpoints of a run by epoch."""
    folder = Path(run_dir) / "checkpoints"
    entries = folder.iterdir() if folder.is_dir() else ()
    return {int(match[1]): entry for entry in entries if (match := _NAME.fullmatch(entry.name))}


def _write(folder: Path, state: TrainState) -> None:
    save_file(_portable(state.params), folder / _PARAMS)
    save_file(_portable(state.opt_state), folder / _OPTIMIZER)
    described = {
        "format": _FORMAT,
        "epoch": state.epoch,
        "queries": state.queries,
        "seed": state.seed,
        "prompt_stats": {prompt: list(rewards) for prompt, rewards in state.prompt_stats.items()},
        "sha256": {name: _digest(folder / name) for name in (_PARAMS, _OPTIMIZER)},
    }
    (folder / _STATE).write_text(json.dumps(described, indent=1), encoding="utf-8")
    for entry in (folder / _PARAMS, folder / _OPTIMIZER, folder / _STATE, folder):
        flush(entry)


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

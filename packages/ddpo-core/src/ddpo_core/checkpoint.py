"""Checkpoints: complete or absent, never in between, and never a pickle.

A checkpoint is a folder with `params.safetensors`, `optimizer.safetensors` and `state.json`. It is written beside its
place, flushed to the disk, and renamed. `state.json` holds the digests of the other two.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpo_core.errors import CheckpointError
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
        _put_in_place(aside, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"checkpoint {str(target)!r} cannot be written: {_reason(error)}") from None
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
        raise CheckpointError(f"checkpoint {str(folder)!r} cannot be read: {_reason(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        raise CheckpointError(f"checkpoint {str(folder)!r} is damaged: go on from an earlier one") from None


def latest_checkpoint(run_dir: str | os.PathLike[str]) -> Path | None:
    """Find the complete checkpoint of the highest epoch in `run_dir/checkpoints`, or None."""
    folder = Path(run_dir) / "checkpoints"
    names = [match for entry in (folder.iterdir() if folder.is_dir() else ()) if (match := _NAME.fullmatch(entry.name))]
    latest = max(names, key=lambda match: int(match[1]), default=None)
    return None if latest is None else folder / latest[0]


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
        _flush(entry)


def _put_in_place(aside: Path, target: Path) -> None:
    # A folder cannot be renamed onto another: the old one steps aside first, and the name is free for an instant.
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk and not only in its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    """Read tensors, in the order and on the devices of `expected`, which must have their names and shapes."""
    loaded = load_file(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    if wanted != found:
        different = next(name for name in (*wanted, *found) if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"checkpoint {str(path)!r} is of another model: {different!r} is {found.get(different, 'absent')} there "
            f"and {wanted.get(different, 'absent')} here; load the model and LoRA rank that it was written with"
        )
    return {name: loaded[name].to(tensor.device) for name, tensor in expected.items()}


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]

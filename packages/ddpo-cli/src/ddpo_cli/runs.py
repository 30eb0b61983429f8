"""The run folder: config.toml, metrics.jsonl, samples.jsonl, samples/, checkpoints/, lora/ or model/."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpo_cli.errors import CLIError
from ddpo_cli.files import write_text

RUNS = Path("runs")
CONFIG = "config.toml"
METRICS = "metrics.jsonl"
SAMPLE_LOG = "samples.jsonl"
SAMPLES = "samples"
CHECKPOINTS = "checkpoints"
LORA = "lora"
MODEL = "model"


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run that `ddpo train` made."""
    return (folder / CONFIG).is_file()


def refuse_used(folder: Path) -> None:
    """Check that a new run may be written to `folder`.

    Raises:
        CLIError: `folder` is a file, holds another run, or holds anything else.
    """
    if is_run(folder):
        raise CLIError(
            f"--output {str(folder)!r} holds another run; choose a new folder, "
            f"or go on with it: ddpo train --resume {folder}"
        )
    if folder.exists() and not folder.is_dir():
        raise CLIError(f"--output {str(folder)!r} is a file; a run needs a folder of its own")
    if folder.is_dir() and any(folder.iterdir()):
        raise CLIError(f"--output {str(folder)!r} is not empty; a run needs a new or empty folder")


def create_run(output: Path | None, *, label: str, config: str) -> Path:
    """Make the folder of a new run, `output` or the next number under `runs/`, with `config` written into it.

    Where that fails, nothing is left of it.
    """
    if output is not None:
        refuse_used(output)
    folder = output or _next_numbered(RUNS, label)
    was_there = output is not None and output.exists()
    try:
        (folder / SAMPLES).mkdir(parents=True)
        write_text(folder / CONFIG, config)
    except OSError:
        shutil.rmtree(folder / SAMPLES, ignore_errors=True)
        if not was_there:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def find_run(run: Path | None) -> Path:
    """Return the run to resume: the one given, or the one in `runs/` that was written to last.

    Raises:
        CLIError: there is none.
    """
    if run is None:
        found = [folder for folder in RUNS.glob("*") if is_run(folder)] if RUNS.is_dir() else []
        if not found:
            raise CLIError(f"there is no run in {str(RUNS)!r} to resume; name one: ddpo train --resume RUN")
        return max(found, key=_last_written)
    if not is_run(run):
        raise CLIError(f"{str(run)!r} is no run (it has no {CONFIG}); give the folder that `ddpo train` made")
    return run


def find_checkpoint(target: Path | None) -> tuple[Path, Path]:
    """Return the run and its checkpoint that `target` means: a checkpoint itself, or the last one of a run.

    Raises:
        CLIError: there is none.
    """
    if target is not None and target.absolute().parent.name == CHECKPOINTS:
        run = find_run(target.parents[1] if len(target.parts) > 2 else target.absolute().parents[1])
        if not target.is_dir():
            raise CLIError(f"there is no checkpoint {str(target)!r}; there are: {_names(run)}")
        return run, target
    run = find_run(target)
    saved = checkpoints(run)
    if not saved:
        raise CLIError(f"{str(run)!r} has no checkpoint; start again: ddpo train --config {run / CONFIG}")
    return run, saved[-1]


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of `run`, oldest first."""
    found = [path for path in (run / CHECKPOINTS).glob("epoch-*") if path.name[6:].isdigit()]
    return sorted(found, key=checkpoint_epoch)


def checkpoint_epoch(checkpoint: Path) -> int:
    """How many epochs a checkpoint has behind it.

    >>> checkpoint_epoch(Path("epoch-000010"))
    10
    """
    return int(checkpoint.name.removeprefix("epoch-"))


def checkpoint_path(run: Path, epoch: int) -> Path:
    """Where the checkpoint after `epoch` epochs lies.

    >>> checkpoint_path(Path("run"), 10).as_posix()
    'run/checkpoints/epoch-000010'
    """
    return run / CHECKPOINTS / f"epoch-{epoch:06d}"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep a second process from writing to `run` (where the system has `flock`).

    Raises:
        CLIError: one does already.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(run / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CLIError(f"another process trains {str(run)!r} at this moment; wait for it, or stop it") from None
        yield


def sample_path(run: Path, epoch: int) -> Path:
    """Where the samples after `epoch` epochs lie."""
    return run / SAMPLES / f"epoch-{epoch:04d}.png"


def _next_numbered(parent: Path, label: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    numbers = [int(match[1]) for path in parent.iterdir() if (match := re.match(r"(\d+)(-|$)", path.name))]
    number = max(numbers, default=0)
    while True:  # another process may take a number between the look and the mkdir
        number += 1
        folder = parent / f"{number:04d}-{_slug(label)}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_")[:40] or "run"


def _names(run: Path) -> str:
    return ", ".join(path.name for path in checkpoints(run)) or "none"


def _last_written(run: Path) -> float:
    return max(path.stat().st_mtime for path in [run / CONFIG, run / METRICS, run / CHECKPOINTS] if path.exists())

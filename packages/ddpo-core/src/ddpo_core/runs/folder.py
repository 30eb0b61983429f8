"""The folder of a run: where everything lies, who may write to it, and how it goes back to an earlier epoch.

config.toml      the whole configuration, and the versions that ran it
metrics.jsonl    one object per epoch
samples.jsonl    one object per sample of every epoch
start/           the LoRA that it started from, where it did
samples/         epoch-0000.png ...: the same prompts and seeds every time; before-after.png; series.webp;
                 extremes-0005.png ...: the best and the worst samples that an epoch was trained on
checkpoints/     epoch-000010/ ...
levels.json      what must not fall, and below what
base.safetensors what the model drew before training
reward.json      what rewards that learn had learnt
model.json       which epoch is the run's model, and which is the best by what is not optimised
evaluation.json  the fixed prompts before and after: the last thing that a run writes
lora/ or model/  the trained weights for diffusers, with a model card
export/          what was exported of it since
report.html      all of it as a page
superseded/      what lay after an epoch to which the run went back
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ddpo_core.errors import DDPOError
from ddpo_core.runs.log import METRICS, SAMPLE_LOG, read_lines

RUNS = Path("runs")
CONFIG = "config.toml"
SAMPLES = "samples"
BEFORE_AFTER = "before-after.png"
SERIES = "series.webp"
CHECKPOINTS = "checkpoints"
MODEL_RECORD = "model.json"
REWARD_STATE = "reward.json"
EVALUATION = "evaluation.json"
LEVELS, BASE = "levels.json", "base.safetensors"
REPORT = "report.html"
LORA, MODEL = "lora", "model"
START = "start"
SUPERSEDED = "superseded"
EVAL, EXPORT = "eval", "export"
HEAD = "# Written by ddpo"
"""How a config.toml begins that a run wrote."""

# All that a run, its trackers and the commands that look at it write.
_ENTRIES = {
    CONFIG, METRICS, SAMPLE_LOG, SAMPLES, CHECKPOINTS, MODEL_RECORD, REWARD_STATE, EVALUATION, LORA, MODEL, START,
    SUPERSEDED, EVAL, EXPORT, LEVELS, BASE, REPORT, ".lock", "tensorboard", "wandb",
    "wandb.id",
}  # fmt: skip
_WRITTEN_ASIDE = re.compile(r"\..+\.(aside|writing|new|old|removed)")

# What a file system says that has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class ModelRecord(NamedTuple):
    """What model.json says; None: not known, or not decided yet."""

    epoch: int | None = None
    """The epoch whose model is the run's: exported, evaluated, and drawn with. Decided when the run ends."""
    best: int | None = None
    """The best epoch by what is not optimised."""


class Scores(NamedTuple):
    """What evaluation.json says: the scores of the fixed prompts and seeds before and after, one per image."""

    epoch: int
    """The epoch whose model is the run's."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run."""
    return (folder / CONFIG).is_file()


def refuse_used(folder: Path) -> None:
    """Check that a new run may be written to `folder`.

    Raises:
        DDPOError: It is a file, holds another run, or holds anything else.
    """
    if is_run(folder):
        raise DDPOError(f"{str(folder)!r} holds another run; choose a new folder, or resume that run")
    if folder.exists() and not folder.is_dir():
        raise DDPOError(f"{str(folder)!r} is a file; a run needs a folder of its own")
    if folder.is_dir() and any(folder.iterdir()):
        raise DDPOError(f"{str(folder)!r} is not empty; a run needs a new or empty folder")


def create_run(output: Path | None, *, label: str, config: str) -> Path:
    """Make the folder of a new run, `output` or the next number under `runs/`, with `config` written into it.

    Where that fails, nothing is left of it.

    Raises:
        DDPOError: `output` is used already.
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


def find_runs(parent: Path = RUNS) -> list[Path]:
    """List the runs in a folder, the one that was written to last at the end."""
    found = [folder for folder in parent.glob("*") if _may_be_read(folder)] if parent.is_dir() else []
    return sorted(found, key=last_written)


def last_written(run: Path) -> float:
    """Return when `run` was written to last, in seconds since 1970."""
    return max(path.stat().st_mtime for path in [run / CONFIG, run / METRICS, run / CHECKPOINTS] if path.exists())


def find_run(run: Path | None) -> Path:
    """Return the run that is meant: the one given, or the one in `runs/` that was written to last.

    Raises:
        DDPOError: There is none.
    """
    if run is None:
        found = find_runs()
        if not found:
            raise DDPOError(f"there is no run in {str(RUNS)!r}; name the folder of one")
        return found[-1]
    if not is_run(run):
        raise DDPOError(f"{str(run)!r} is no run (it has no {CONFIG}); give the folder that training made")
    return run


def find_checkpoint(target: Path | None) -> tuple[Path, Path]:
    """Return the run and the checkpoint to go on from: `target` itself, or the last one of a run.

    Raises:
        DDPOError: There is none.
    """
    # Here and below: it imports torch, and a list of runs needs none.
    from ddpo_core.checkpoint import latest_checkpoint, list_checkpoints

    if target is not None and target.absolute().parent.name == CHECKPOINTS:
        run = find_run(target.parents[1] if len(target.parts) > 2 else target.absolute().parents[1])
        saved = list_checkpoints(run)
        if target.name not in [path.name for path in saved.values()]:
            names = ", ".join(path.name for path in saved.values()) or "none"
            raise DDPOError(f"there is no checkpoint {str(target)!r}; there are: {names}")
        return run, target
    run = find_run(target)
    latest = latest_checkpoint(run)
    if latest is None:
        raise DDPOError(f"{str(run)!r} has no checkpoint; start a new run with {run / CONFIG}")
    return run, latest


def sample_path(run: Path, epoch: int) -> Path:
    """Where the picture of the samples after `epoch` epochs lies."""
    return run / SAMPLES / f"epoch-{epoch:04d}.png"


def extremes_path(run: Path, epoch: int) -> Path:
    """Where the picture of the best and the worst samples lies that `epoch` was trained on."""
    return run / SAMPLES / f"extremes-{epoch:04d}.png"


def numbered_pictures(run: Path, name: str) -> dict[int, Path]:
    """Return the pictures of a run that are called `name` and an epoch, by the epoch, in order."""
    numbered = ((path.stem.removeprefix(f"{name}-"), path) for path in (run / SAMPLES).glob(f"{name}-*.png"))
    return dict(sorted((int(epoch), path) for epoch, path in numbered if epoch.isdecimal()))


@contextmanager
def locked(run: Path) -> Iterator[bool]:
    """Keep a second process from writing to `run`; yields False where the system or its files know no locks.

    Raises:
        DDPOError: Another process writes to it.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with open(run / ".lock", "w") as file:
        is_locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DDPOError(f"another process trains {str(run)!r} at this moment; wait for it, or stop it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            is_locked = False
        yield is_locked


def is_locked(run: Path) -> bool:
    """Tell whether a process writes to `run` at this moment; False where the system or its files know no locks."""
    try:
        import fcntl

        with open(run / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def refuse_removal(run: Path) -> None:
    """Check that `run` may be deleted, so far as that can be known beforehand.

    Raises:
        DDPOError: It is no run, or a link to one, holds what no run writes, or a process writes to it.
    """
    if not is_run(run) or not (run / CONFIG).read_bytes().startswith(HEAD.encode()):
        raise DDPOError(f"{str(run)!r} is no run (it has no {CONFIG} that a run wrote); nothing is removed")
    if run.is_symlink():
        raise DDPOError(f"{str(run)!r} is a link to {str(run.resolve())!r}; name the run itself")
    others = sorted(path.name for path in run.iterdir() if not _is_of_a_run(path.name))
    if others:
        named = ", ".join(map(repr, others[:3])) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise DDPOError(f"{str(run)!r} holds what no run writes: {named}; move that away first")
    if is_locked(run):
        raise DDPOError(f"a process trains {str(run)!r} at this moment; wait for it, or stop it")


def remove_run(run: Path) -> None:
    """Delete a run and all that it holds.

    Raises:
        DDPOError: As for `refuse_removal`; nothing is deleted then.
    """
    refuse_removal(run)
    with locked(run):
        place = Path(os.path.abspath(run))
        aside = place.with_name(f".{place.name}.removed")
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed here
        place.rename(aside)
        (aside / CONFIG).unlink()  # whatever happens from here on, it is no run
        shutil.rmtree(aside)


def evaluated_epoch(run: Path) -> int | None:
    """Return the epoch whose model was compared with the base, the last thing that a run does; None before that."""
    try:
        epoch = json.loads((run / EVALUATION).read_text(encoding="utf-8"))["epoch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return epoch if isinstance(epoch, int) else None


def read_scores(run: Path) -> Scores | None:
    """Read evaluation.json; None where the run has not ended.

    Raises:
        ValueError, KeyError, TypeError: It is damaged.
    """
    if not (run / EVALUATION).is_file():
        return None
    read = json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    before, after = (tuple(map(float, read["scores"][name])) for name in ("before", "after"))
    return Scores(int(read["epoch"]), tuple(read["prompts"]), tuple(read["seeds"]), before, after)


def read_model_record(run: Path) -> ModelRecord:
    """Read model.json; without one nothing is known."""
    try:
        read = json.loads((run / MODEL_RECORD).read_text(encoding="utf-8"))
        epoch, best = (read.get(name) for name in ModelRecord._fields)
    except (OSError, ValueError, AttributeError):
        return ModelRecord()
    return ModelRecord(*(value if isinstance(value, int) else None for value in (epoch, best)))


def write_model_record(run: Path, record: ModelRecord) -> None:
    """Write model.json."""
    write_text(run / MODEL_RECORD, json.dumps(record._asdict()) + "\n")


def go_back(run: Path, epoch: int) -> Path | None:
    """Take a run back to `epoch`: move what it holds of later epochs to `superseded/`, from where nothing is read.

    Checkpoints, rows of both logs (and lines in them that cannot be read), pictures; and where the run's model is of a
    later epoch, that too. Nothing is deleted.

    Returns:
        The folder that it was moved to; None where there was nothing to move.
    """
    aside = next_aside(run)
    later = [
        path for name in ("epoch", "extremes") for drawn, path in numbered_pictures(run, name).items() if drawn > epoch
    ]
    if (evaluated_epoch(run) or 0) > epoch:
        ends = (EVALUATION, MODEL_RECORD, LORA, MODEL, REPORT, f"{SAMPLES}/{BEFORE_AFTER}", f"{SAMPLES}/{SERIES}")
        later += [run / name for name in ends if (run / name).exists()]
    for path in later:
        target = aside / path.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    for name in (METRICS, SAMPLE_LOG):
        lines = read_lines(run / name, until=epoch)
        if lines.rest:  # first what is taken out, so that a crash leaves a line twice and never nowhere
            aside.mkdir(parents=True, exist_ok=True)
            write_text(aside / name, "".join(f"{line}\n" for line in lines.rest))
            write_text(run / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines.kept))
    _move_checkpoints(run, epoch, aside)
    return aside if aside.exists() else None


def go_back_to_checkpoint(run: Path, epoch: int) -> Path | None:
    """Move the checkpoints after `epoch` to `superseded/`, and leave what was seen of them; returns where to."""
    aside = next_aside(run)
    _move_checkpoints(run, epoch, aside)
    return aside if aside.exists() else None


def next_aside(run: Path) -> Path:
    """Return the folder under `superseded/` that is used next; it is not there yet."""
    taken = [int(path.name) for path in (run / SUPERSEDED).glob("*") if path.name.isdigit()]
    return run / SUPERSEDED / f"{max(taken, default=0) + 1:04d}"


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it to `path`; on failure `path` is as it was."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        write(aside)
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def _may_be_read(folder: Path) -> bool:
    """Whether `folder` is a run, and not one of somebody else that may not be looked into."""
    try:
        return is_run(folder)
    except PermissionError:
        return False


def _is_of_a_run(name: str) -> bool:
    return name in _ENTRIES or _WRITTEN_ASIDE.fullmatch(name) is not None


def _move_checkpoints(run: Path, epoch: int, aside: Path) -> None:
    from ddpo_core.checkpoint import rewind_checkpoints

    rewind_checkpoints(run, epoch=epoch, into=aside)


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

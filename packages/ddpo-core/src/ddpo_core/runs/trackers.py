"""Where curves, pictures and histograms go while a run trains, beside the run's own files."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ddpo_core.errors import DDPOError

PROJECT = "ddpo"


class Record(NamedTuple):
    """What is known after an epoch; epoch 0 is before training."""

    epoch: int
    scalars: Mapping[str, float | int] = {}
    histograms: Mapping[str, Sequence[float]] = {}
    pictures: Mapping[str, Path] = {}


class Tracker(NamedTuple):
    """A service that shows runs."""

    log: Callable[[Record], None]
    close: Callable[[], None]


Log = Callable[[Record], list[str]]
"""Shows a record; returns what went wrong for the first time, one sentence for each tracker that broke."""


@contextmanager
def tracking(run: Path, names: Sequence[str], *, options: Mapping[str, Any], text: str, epoch: int) -> Iterator[Log]:
    """Open trackers for a run that goes on after `epoch`; yields what logs to all of them.

    A tracker that breaks is told once and left out from then on: it is no reason to end a run.

    Args:
        run: The folder of the run.
        names: "tensorboard", "wandb", "trackio".
        options: The configuration as plain values.
        text: The same as text.
        epoch: The last epoch that was done.

    Raises:
        DDPOError: One is not installed, or will not start.
    """
    check_trackers(names)
    with ExitStack() as stack:
        opened: dict[str, Tracker] = {}
        for name in names:
            with _quiet():
                opened[name] = _OPENERS[name](run, options, text, epoch)
            stack.callback(_close, opened[name])

        def log(record: Record) -> list[str]:
            broken = {}
            for name, tracker in opened.items():
                try:
                    with _quiet():
                        tracker.log(record)
                except Exception as error:
                    broken[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            for name in broken:
                del opened[name]
            return [f"the tracker {name} is left out from now on: {why}" for name, why in broken.items()]

        yield log


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is unknown or not installed, before anything is loaded.

    Raises:
        DDPOError: There is none of that name, or its package is missing.
    """
    for name in names:
        if name not in _OPENERS:
            raise DDPOError(f"tracker {name!r} is not known; want one of {', '.join(_OPENERS)}")
        if find_spec(name) is None:
            raise DDPOError(f"tracker {name!r} needs the package {name}: pip install {name}")


def scalars(row: Mapping[str, Any]) -> dict[str, float | int]:
    """Return the numbers of a row of metrics.jsonl, those in its tables under the table's name.

    Example:
        >>> scalars({"epoch": 3, "loss": 0.5, "verdict": "ok", "signals": {"saturation": 0.25, "diversity": None}})
        {'loss': 0.5, 'signals/saturation': 0.25}
    """
    tables = {name: value for name, value in row.items() if isinstance(value, Mapping)}
    nested = {f"{name}/{key}": value for name, table in tables.items() for key, value in table.items()}
    numbers = {name: value for name, value in {**row, **nested}.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if name != "epoch"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Send greetings to stderr: stdout is the caller's."""
    with redirect_stdout(sys.stderr):
        yield


def _close(tracker: Tracker) -> None:
    # One that broke in the middle may break here again; the run has ended all the same.
    try:
        with _quiet():
            tracker.close()
    except Exception as error:
        print(f"a tracker could not be closed: {error}", file=sys.stderr)


def _tensorboard(run: Path, options: Mapping[str, Any], text: str, epoch: int) -> Tracker:
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    # What a resumed run computes again is hidden, as it is taken out of metrics.jsonl.
    writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=epoch + 1 if epoch else None)
    writer.add_text("config", f"```toml\n{text}```", epoch)

    def log(record: Record) -> None:
        for name, value in record.scalars.items():
            writer.add_scalar(name, value, record.epoch)
        for name, values in record.histograms.items():
            writer.add_histogram(name, np.asarray(values), record.epoch)
        for name, path in record.pictures.items():
            with Image.open(path) as picture:
                writer.add_image(name, np.asarray(picture.convert("RGB")), record.epoch, dataformats="HWC")
        writer.flush()

    return Tracker(log, writer.close)


def _wandb(run: Path, options: Mapping[str, Any], text: str, epoch: int) -> Tracker:
    wandb: Any = import_module("wandb")
    known = run / "wandb.id"  # a resumed run goes on under its own id
    try:
        session = wandb.init(
            project=PROJECT,
            name=run.name,
            dir=str(run),
            id=known.read_text(encoding="utf-8") if known.is_file() else None,
            resume="allow",
            config=dict(options),
        )
    except wandb.Error as error:
        raise DDPOError(f"tracker 'wandb' will not start: {error}; log in, or set WANDB_MODE=offline") from None
    known.write_text(session.id, encoding="utf-8")
    session.define_metric("*", step_metric="epoch")
    return Tracker(lambda record: session.log(_as_media(wandb, record) | {"epoch": record.epoch}), session.finish)


def _trackio(run: Path, options: Mapping[str, Any], text: str, epoch: int) -> Tracker:
    trackio: Any = import_module("trackio")
    session = trackio.init(project=PROJECT, name=run.name, config=dict(options), resume="allow", embed=False)
    return Tracker(lambda record: session.log(_as_media(trackio, record), step=record.epoch), session.finish)


def _as_media(service: Any, record: Record) -> dict[str, Any]:
    """One record in the types that wandb and trackio share by name."""
    histograms = {name: service.Histogram(list(values)) for name, values in record.histograms.items()}
    pictures = {name: service.Image(str(path)) for name, path in record.pictures.items()}
    return {**record.scalars, **histograms, **pictures}


_OPENERS: Mapping[str, Callable[[Path, Mapping[str, Any], str, int], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}

"""Where curves, pictures and histograms go while a run trains, beside the run's own files."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ddpo_cli.config import RunConfig
from ddpo_cli.config_file import to_toml
from ddpo_cli.errors import CLIError

PROJECT = "ddpo"


class Record(NamedTuple):
    """What is known after an epoch; epoch 0 is before training."""

    epoch: int
    scalars: Mapping[str, float] = {}
    histograms: Mapping[str, Sequence[float]] = {}
    pictures: Mapping[str, Path] = {}


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of metrics.jsonl, those in its tables under the table's name.

    >>> scalars({"epoch": 3, "loss": 0.5, "verdict": "ok", "signals": {"saturation": 0.25, "diversity": None}})
    {'loss': 0.5, 'signals/saturation': 0.25}
    """
    tables = {name: value for name, value in row.items() if isinstance(value, Mapping)}
    nested = {f"{name}/{key}": value for name, table in tables.items() for key, value in table.items()}
    numbers = {name: value for name, value in {**row, **nested}.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if name != "epoch"}


Log = Callable[[Record], None]


class Tracker(NamedTuple):
    """A service that shows runs."""

    log: Log
    close: Callable[[], None]


@contextmanager
def tracking(run: Path, config: RunConfig, *, epoch: int) -> Iterator[Log]:
    """Open the trackers of `config` for a run that goes on after `epoch`; yields what logs to all of them.

    Raises:
        CLIError: one is not installed, or will not start.
    """
    with redirect_stdout(sys.stderr), ExitStack() as stack:  # their greetings are no data
        opened = [_OPENERS[name](run, config, epoch) for name in config.tracker]
        for tracker in opened:
            stack.callback(tracker.close)

        def log(record: Record) -> None:
            for tracker in opened:
                tracker.log(record)

        yield log


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed, before anything is loaded.

    Raises:
        CLIError: the package is missing.
    """
    for name in names:
        if find_spec(name) is None:
            raise CLIError(f"--tracker {name} needs the package {name}: pip install 'ddpo-cli[{name}]'")


def _tensorboard(run: Path, config: RunConfig, epoch: int) -> Tracker:
    import numpy as np
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    # What a resumed run computes again is hidden, as it is dropped from metrics.jsonl.
    writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=epoch + 1 if epoch else None)
    writer.add_text("config", f"```toml\n{to_toml(config)}```", epoch)

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


def _wandb(run: Path, config: RunConfig, epoch: int) -> Tracker:
    wandb: Any = import_module("wandb")
    known = run / "wandb.id"  # a resumed run goes on under its own id
    try:
        session = wandb.init(
            project=PROJECT,
            name=run.name,
            dir=str(run),
            id=known.read_text(encoding="utf-8") if known.is_file() else None,
            resume="allow",
            config=config.model_dump(mode="json"),
        )
    except wandb.Error as error:
        raise CLIError(f"--tracker wandb will not start: {error}; log in, or set WANDB_MODE=offline") from None
    known.write_text(session.id, encoding="utf-8")
    session.define_metric("*", step_metric="epoch")
    return Tracker(lambda record: session.log(_as_media(wandb, record) | {"epoch": record.epoch}), session.finish)


def _trackio(run: Path, config: RunConfig, epoch: int) -> Tracker:
    trackio: Any = import_module("trackio")
    session = trackio.init(
        project=PROJECT, name=run.name, config=config.model_dump(mode="json"), resume="allow", embed=False
    )
    return Tracker(lambda record: session.log(_as_media(trackio, record), step=record.epoch), session.finish)


def _as_media(service: Any, record: Record) -> dict[str, Any]:
    """One record in the types that wandb and trackio share by name."""
    histograms = {name: service.Histogram(list(values)) for name, values in record.histograms.items()}
    pictures = {name: service.Image(str(path)) for name, path in record.pictures.items()}
    return {**record.scalars, **histograms, **pictures}


_OPENERS: Mapping[str, Callable[[Path, RunConfig, int], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}

"""What a run tells while it is trained, one small value after another; and bars for a notebook."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ddpo_core.gaming.rule import Observation, Verdict
from ddpo_core.runs.config import RunConfig
from ddpo_core.types import EpochInfo, Progress, TrainState


@dataclass(frozen=True)
class Started:
    """The folder is there, everything is loaded, and nobody else writes to it."""

    run: Path
    config: RunConfig
    epoch: int
    """How many epochs are behind it: 0 in a new run."""
    queries: int
    rewards: tuple[float, ...]
    """The mean reward of each of these epochs."""


@dataclass(frozen=True)
class Noted:
    """Something that a person should know; the run goes on."""

    text: str


@dataclass(frozen=True)
class Drawn:
    """The fixed prompts were drawn and scored with the model of an epoch; 0 is before training."""

    epoch: int
    reward_mean: float
    picture: Path


@dataclass(frozen=True)
class Epoch:
    """An epoch is done, judged and written down."""

    state: TrainState
    info: EpochInfo
    observation: Observation
    verdict: Verdict
    row: Mapping[str, Any]
    """What metrics.jsonl says of it."""
    seconds: float
    """Since the epoch before."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written, of the epoch in its name."""

    path: Path


@dataclass(frozen=True)
class Finished:
    """The run has ended, with a model."""

    run: Path
    epoch: int
    """The epoch whose model is the run's: the last, or where the run was ended early the best."""
    best: int | None
    """The best epoch by what is not optimised; its checkpoint is kept."""
    halted: Verdict | None
    """The verdict that ended the run before its time."""
    before: float
    """Mean reward of the fixed prompts and seeds before training."""
    after: float
    """The same with the run's model."""
    trained: int
    """Epochs since `Started`."""
    seconds: float
    """Since `Started`."""
    artefact: Path
    """The trained weights for diffusers."""
    pictures: Path
    """The fixed prompts before and after."""
    report: Path | None = None
    """All of it as a page; None where that could not be written."""


Event: TypeAlias = Started | Noted | Drawn | Epoch | Saved | Finished


def as_record(event: Event) -> dict[str, Any]:
    """Return an event as plain JSON values: its name under `event`, and what it holds, paths as texts.

    ::

        started   run, epoch, queries, rewards, config
        noted     text
        drawn     epoch, reward_mean, picture
        epoch     seconds, and all that metrics.jsonl says of the epoch
        saved     epoch, path
        finished  run, epoch, best, before, after, trained, seconds, artefact, pictures, report (None where
                  it could not be written), halted (None, or why)

    Keys are added, never changed or taken away.

    Example:
        >>> as_record(Saved(Path("run/checkpoints/epoch-000005")))
        {'event': 'saved', 'epoch': 5, 'path': 'run/checkpoints/epoch-000005'}
    """
    match event:
        case Started():
            told: dict[str, Any] = {"rewards": list(event.rewards)}
            told["config"] = event.config.model_dump(mode="json", exclude_none=True)
            told = {"run": str(event.run), "epoch": event.epoch, "queries": event.queries, **told}
        case Noted():
            told = {"text": event.text}
        case Drawn():
            told = {"epoch": event.epoch, "reward_mean": event.reward_mean, "picture": str(event.picture)}
        case Epoch():
            told = {**event.row, "seconds": event.seconds}
        case Saved():
            told = {"epoch": int(event.path.name.removeprefix("epoch-")), "path": str(event.path)}
        case Finished():
            names = ("epoch", "best", "before", "after", "trained", "seconds")
            told = {"run": str(event.run), **{name: getattr(event, name) for name in names}}
            halted = event.halted and {"status": event.halted.status, "reason": event.halted.reason}
            told |= {"halted": halted, "artefact": str(event.artefact), "pictures": str(event.pictures)}
            told["report"] = None if event.report is None else str(event.report)
    return {"event": type(event).__name__.lower(), **told}


def tqdm_progress(**options: Any) -> Progress:
    """Return a `progress` that shows each phase as a bar of tqdm, in a notebook or a terminal.

    Args:
        options: For `tqdm`, for instance `disable=True`.

    Example:
        >>> progress = tqdm_progress(disable=True)
        >>> progress("sampling", 8, 64)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook without ipywidgets it says that its bars will be plain text
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

    bars: dict[str, Any] = {}

    def show(phase: str, done: int, total: int) -> None:
        if phase not in bars or done < bars[phase].n:
            for bar in bars.values():
                bar.close()
            bars.clear()
            bars[phase] = tqdm(desc=phase, total=total, leave=False, **options)
        bars[phase].update(done - bars[phase].n)
        if done == total:
            bars.pop(phase).close()

    return show

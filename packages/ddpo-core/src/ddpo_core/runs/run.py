"""A run as a plain value: what its folder says of it, however torn, read without torch.

run = open_run("runs/0001-llava_bertscore")
print(run.status, run.epoch, run.rows[-1]["reward_mean"])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ddpo_core.errors import DDPOError
from ddpo_core.html import html_facts, html_picture
from ddpo_core.runs.config import VERSIONS, RunConfig, flat_options, label, read_run_config, read_toml
from ddpo_core.runs.folder import (
    BEFORE_AFTER,
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    RUNS,
    SAMPLES,
    ModelRecord,
    Scores,
    find_run,
    find_runs,
    is_locked,
    last_written,
    read_model_record,
    read_scores,
    sample_path,
)
from ddpo_core.runs.log import METRICS, read_lines

if TYPE_CHECKING:  # which takes torch and numpy
    from ddpo_core.runs.compare import Comparison

Status: TypeAlias = Literal["training", "finished", "ended early", "interrupted", "unreadable"]


@dataclass(frozen=True)
class Run:
    """What the folder of a run says of it."""

    folder: Path
    config: RunConfig | None
    """None where its config.toml cannot be read."""
    rows: tuple[Mapping[str, Any], ...]
    """Of metrics.jsonl, one per epoch."""
    checkpoints: tuple[int, ...]
    """The epochs that are saved, oldest first."""
    model: ModelRecord
    scores: Scores | None
    """None while it has not ended."""
    versions: Mapping[str, str]
    """Of what trained it last."""
    is_training: bool
    """Whether a process writes to it at this moment."""
    written: datetime
    complaints: tuple[str, ...] = ()
    """What could not be read, and why."""

    @property
    def status(self) -> Status:
        """How far it has come.

        "ended early" where a verdict stopped it before its last epoch; "unreadable" where it has not ended, and its
        config.toml is torn, or of another version that has other options.
        """
        if self.is_training:
            return "training"
        if self.config is None:
            return "unreadable" if self.scores is None else "finished"
        if self.scores is None:
            return "interrupted"
        return "finished" if self.epoch >= self.config.epochs else "ended early"

    @property
    def epoch(self) -> int:
        """The last epoch that is written down, or saved."""
        written: int = self.rows[-1]["epoch"] if self.rows else 0
        return max(written, *self.checkpoints[-1:], 0)

    @property
    def rewards(self) -> tuple[float, ...]:
        """The mean reward of every epoch that has one."""
        return tuple(row["reward_mean"] for row in self.rows if isinstance(row.get("reward_mean"), int | float))

    def _repr_html_(self) -> str:
        """Show what a list says of the run, its reward over the queries, and its last pictures, in a notebook."""
        from io import BytesIO

        from ddpo_core.runs.export import reward_curve

        said = {name.replace("_", " "): value for name, value in self.summary().items() if name != "run"}
        facts = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in said.items()}
        parts = [html_facts(str(self.folder), facts)]
        rows = [row for row in self.rows if {"queries", "reward_mean", "reward_std"} <= row.keys()]
        if rows and self.config is not None:
            buffer = BytesIO()
            reward_curve(rows, " + ".join(self.config.reward)).save(buffer, "PNG")
            parts.append(
                html_picture(buffer.getvalue(), f"Mean reward of {len(rows)} epochs, and one standard deviation")
            )
        drawn = [
            self.folder / SAMPLES / BEFORE_AFTER,
            *(sample_path(self.folder, n) for n in range(self.epoch, -1, -1)),
        ]
        for picture in [path for path in drawn if path.is_file()][:1]:
            parts.append(html_picture(picture.read_bytes(), f"Samples: {picture.name}"))
        return "".join(parts)

    def summary(self) -> dict[str, Any]:
        """Return what a list of runs says of it, as JSON values; None where nothing is known."""
        config, last = self.config, self.rows[-1] if self.rows else {}
        seconds = [row.get(f"seconds_{part}", 0.0) for row in self.rows for part in ("sampling", "reward", "training")]
        return {
            "run": str(self.folder),
            "status": self.status,
            "model": config and config.model,
            "reward": config and label(config.reward),
            "prompts": config and config.prompts,
            "algorithm": config and config.objective.name,
            "seed": config and config.seed,
            "epoch": self.epoch,
            "epochs": config and config.epochs,
            "queries": last.get("queries", 0),
            "reward_first": self.rewards[0] if self.rewards else None,
            "reward_last": self.rewards[-1] if self.rewards else None,
            "before": self.scores and _mean(self.scores.before),
            "after": self.scores and _mean(self.scores.after),
            "model_epoch": self.model.epoch,
            "best_epoch": self.model.best,
            "verdict": last.get("verdict"),
            "reason": last.get("reason"),
            "seconds": round(sum(seconds), 3),
            "written": self.written.isoformat(timespec="seconds"),
        }


def open_run(folder: str | PathLike[str] | None = None) -> Run:
    """Read a run; left out, the one in `runs/` that was written to last.

    What is torn, damaged or not there yet is named in `complaints`, or None.

    Raises:
        DDPOError: `folder` is no run.
    """
    place = find_run(None if folder is None else Path(folder))
    complaints: list[str] = []
    config, versions = None, {}
    try:
        config, versions = read_run_config(place), read_toml(place / CONFIG).get(VERSIONS, {})
    except (DDPOError, OSError) as error:
        complaints.append(str(error))
    try:
        lines = read_lines(place / METRICS)
        rows, torn = lines.kept, lines.complaints
    except OSError as error:
        rows, torn = [], [f"{place / METRICS} cannot be read: {error.strerror}"]
    try:
        scores = read_scores(place)
    except (OSError, ValueError, KeyError, TypeError) as error:
        scores = None
        torn.append(f"{place / EVALUATION} is damaged: {error}")
    return Run(
        folder=place,
        config=config,
        rows=tuple(rows),
        checkpoints=_saved_epochs(place),
        model=read_model_record(place),
        scores=scores,
        versions=versions if isinstance(versions, Mapping) else {},
        is_training=is_locked(place),
        written=datetime.fromtimestamp(last_written(place), UTC),
        complaints=(*complaints, *torn),
    )


def list_runs(parent: str | PathLike[str] = RUNS) -> list[Run]:
    """Read all runs in a folder, the one that was written to last at the end.

    Example:
        >>> list_runs("no such folder")
        []
    """
    return [open_run(folder) for folder in find_runs(Path(parent))]


def option_differences(runs: Sequence[Run]) -> dict[str, tuple[Any, ...]]:
    """Return the options, and the versions, that are not the same in all runs: their values, one per run.

    An option that a run does not have, or of which nothing is known, is None there.

    Example:
        >>> option_differences([])
        {}
    """
    tables = [_flat(run) for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    values = {name: tuple(table.get(name) for table in tables) for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def change_between(first: Run, second: Run) -> "Comparison | None":
    """Compare the models of two runs on the same prompts and seeds; None where they did not score the same ones.

    The interval is that of `compare_scores`: by the paired bootstrap over the prompts.
    """
    if first.config is None or second.config is None or first.scores is None or second.scores is None:
        return None
    asked = [(run.prompts, run.seeds) for run in (first.scores, second.scores)]
    if asked[0] != asked[1] or first.config.reward != second.config.reward:
        return None
    from ddpo_core.runs.compare import compare_scores

    return compare_scores(first.scores.after, second.scores.after, clusters=first.scores.prompts)


def _saved_epochs(run: Path) -> tuple[int, ...]:
    names = (path.name.removeprefix("epoch-") for path in (run / CHECKPOINTS).glob("epoch-*"))
    return tuple(sorted(int(name) for name in names if name.isdigit()))


def _flat(run: Run) -> dict[str, Any]:
    options = {} if run.config is None else run.config.model_dump(mode="json", exclude_none=True)
    return flat_options({**options, VERSIONS: run.versions})


def _mean(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None

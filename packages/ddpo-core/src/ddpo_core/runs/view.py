"""What the folder of a run holds as one plain value: curves with intervals, verdicts, pictures, samples, probes."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import fsum, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeAlias

from PIL import Image

from ddpo_core.runs.compare import compare_scores
from ddpo_core.runs.config import VERSIONS, flat_options
from ddpo_core.runs.folder import EVALUATION, numbered_pictures
from ddpo_core.runs.log import SAMPLE_LOG, plain, read_lines
from ddpo_core.runs.pictures import Tile, read_descriptions, read_tiles
from ddpo_core.runs.run import Run, Status

PROBE = "probe.json"

Room: TypeAlias = Literal["reward", "component", "held_out", "kept", "multiplier", "signal", "health", "step", "cost"]
Row: TypeAlias = Mapping[str, Any]

_SIDES_OF_95 = 1.96
_LARGEST = 1e100
_MAX_COMPONENTS = 12
_STAGES = ("sampling", "reward", "constraints", "training")
# Of these there is something better to say, or they are no series of numbers of their own.
_NO_HEALTH = {"epoch", "queries", "reward_mean", "reward_min", "reward_max", "samples_reward_mean"}


@dataclass(frozen=True)
class Curve:
    """One number over the epochs in which it was measured."""

    room: Room
    name: str
    epochs: list[int]
    values: list[float]
    errors: list[float] | None = None
    """Half the width of the 95 % interval."""
    level: float | None = None
    """What it must not fall below."""


@dataclass(frozen=True)
class Drawing:
    """A picture of tiles in `samples/`: the fixed prompts and seeds, or the best and worst samples of an epoch."""

    kind: Literal["fixed", "extremes"]
    epoch: int
    path: Path

    def tiles(self) -> list[Tile]:
        """Read the tiles; of a picture that cannot be read there are none."""
        try:
            return [tile._replace(described=plain(tile.described)) for tile in read_tiles(self.path)]
        except (OSError, SyntaxError, Image.DecompressionBombError):  # Pillow calls some torn files broken syntax
            return []


@dataclass(frozen=True)
class View:
    """What the folder of a run holds, as a page shows it."""

    name: str
    status: Status
    wanted: int | None
    """How many epochs it is to have."""
    epochs: list[int]
    queries: list[int]
    seconds: list[float]
    """Of sampling, scoring and training, from the start on."""
    curves: list[Curve]
    verdicts: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    model: int | None
    """The epoch whose model is the run's."""
    best: int | None
    drawings: list[Drawing]
    samples: list[dict[str, Any]]
    config: dict[str, str]
    probes: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    """What could not be read, or is left out."""


def read_view(run: Run, *, probes: Iterable[Path] = ()) -> View:
    """Read all that a page shows of a run; what is missing or damaged costs itself, and a note.

    Args:
        run: Of `open_run`; it may still be trained.
        probes: Reports of `ddpo probe` (their folders, or a probe.json), beside those that lie in the run.
    """
    logged = read_lines(run.folder / SAMPLE_LOG)
    notes = [*run.complaints, *logged.complaints[:3]]
    rows = [row for row in run.rows if number(row.get("queries")) is not None]
    drawings = [
        *(Drawing("fixed", epoch, path) for epoch, path in numbered_pictures(run.folder, "epoch").items()),
        *(Drawing("extremes", epoch, path) for epoch, path in numbered_pictures(run.folder, "extremes").items()),
    ]
    found = [path for path in (run.folder / PROBE, *sorted(run.folder.glob(f"*/{PROBE}"))) if path.is_file()]
    given = [path / PROBE if path.is_dir() else path for path in probes]
    options = {} if run.config is None else run.config.model_dump(mode="json", exclude_none=True)
    return View(
        name=text(run.folder.resolve().name),
        status=run.status,
        wanted=None if run.config is None else run.config.epochs,
        epochs=[row["epoch"] for row in rows],
        queries=[int(row["queries"]) for row in rows],
        seconds=list(accumulate(fsum(_stages(row).values()) for row in rows)),
        curves=[*_curves(rows, logged.kept), *_fixed_scores(drawings, notes)],
        verdicts=[
            {"epoch": row["epoch"], "status": text(row["verdict"]), "reason": text(row.get("reason", ""))}
            for row in rows
            if "verdict" in row
        ],
        evaluation=_evaluation(run, notes),
        model=run.model.epoch,
        best=run.model.best,
        drawings=drawings,
        samples=logged.kept,
        config={key: _option(value) for key, value in flat_options({**options, VERSIONS: run.versions}).items()},
        probes=[probe for path in dict.fromkeys([*found, *given]) if (probe := _probe(path, notes)) is not None],
        notes=notes,
    )


def number(value: Any) -> float | None:
    """Return a value as a number where it is one; a file may say anything.

    Example:
        >>> number(3), number(True), number("3"), number(float("nan"))
        (3.0, None, None, None)
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Squares and sums have to be numbers too, and JSON knows integers that are no float.
    return float(value) if is_number and -_LARGEST < value < _LARGEST else None


def text(value: Any) -> str:
    """Return any value as text that UTF-8 can hold: a name on a disk may be none."""
    return str(value).encode("utf-8", "replace").decode("utf-8")


class _Point(NamedTuple):
    """What an epoch says for a curve."""

    room: Room
    name: str
    value: float
    error: float | None = None
    level: float | None = None


def _curves(rows: Sequence[Row], samples: Sequence[Row]) -> list[Curve]:
    """Every number of metrics.jsonl, and of what rewards said of their samples the means, as series."""
    samples_of: dict[int, list[Row]] = {}
    for sample in samples:
        samples_of.setdefault(sample["epoch"], []).append(sample)
    series: dict[tuple[Room, str], list[tuple[int, _Point]]] = {}
    before = 0
    for row in rows:
        images, before = max(1, int(row["queries"]) - before), int(row["queries"])
        for point in _points(row, samples_of.get(row["epoch"], []), images):
            series.setdefault((point.room, point.name), []).append((row["epoch"], point))
    curves = []
    for (room, name), points in series.items():
        values, errors = [point.value for _, point in points], [point.error for _, point in points]
        if room != "step" or any(values):  # a step that is never trained does not move
            known = [error for error in errors if error is not None]
            whole = known if len(known) == len(errors) else None
            curves.append(Curve(room, name, [epoch for epoch, _ in points], values, whole, points[-1][1].level))
    return curves


def _points(row: Row, samples: Sequence[Row], images: int) -> Iterator[_Point]:
    """Give the numbers of an epoch, each with half of its interval and its level where it has them."""
    reward = number(row.get("reward_mean"))
    if reward is not None:
        yield _Point("reward", "reward_mean", reward, _reward_error(row, samples, images))
    for name, mean in _component_means(samples).items():
        yield _Point("component", name, mean)
    rooms: tuple[tuple[Room, str], ...] = (("held_out", "held_out"), ("signal", "signals"))
    for room, key in rooms:
        for name, said in _table(row, key).items():
            value, error = number(said), number(_table(row, "errors").get(name))
            if value is not None:
                yield _Point(room, name, value, None if error is None else _SIDES_OF_95 * error)
    for name in _table(row, "kept"):
        kept = {key: number(value) for key, value in _table(_table(row, "kept"), name).items()}
        value, error, multiplier = (kept.get(key) for key in ("value", "error", "multiplier"))
        if value is not None:
            yield _Point("kept", name, value, None if error is None else _SIDES_OF_95 * error, kept.get("level"))
        if multiplier is not None:
            yield _Point("multiplier", name, multiplier)
    for stage, seconds in _stages(row).items():
        yield _Point("cost", stage, 1000 * seconds / images)
    for name, said in row.items():
        value, (kind, _, step) = number(said), name.rpartition("/")
        if value is not None and kind == "log_prob_change":
            yield _Point("step", step, value)
        elif value is not None and name not in _NO_HEALTH and not name.startswith("seconds_"):
            yield _Point("health", name, value)


def _reward_error(row: Row, samples: Sequence[Row], images: int) -> float | None:
    """Half the 95 % interval of the mean reward: its standard error by prompts, whose samples may be alike.

    Without the single rewards, that of independent samples.
    """
    rewards = [(str(sample.get("prompt")), number(sample.get("reward"))) for sample in samples]
    known = [(prompt, reward) for prompt, reward in rewards if reward is not None]
    if len(known) < 2:
        spread = number(row.get("reward_std"))
        return None if spread is None else _SIDES_OF_95 * spread / sqrt(images)
    mean = fmean(reward for _, reward in known)
    sums: dict[str, float] = {}
    for prompt, reward in known:
        sums[prompt] = sums.get(prompt, 0.0) + reward - mean
    clusters = len(sums)
    # All samples of one prompt: the interval is about that prompt, and samples are independent.
    parts = list(sums.values()) if clusters > 1 else [reward - mean for _, reward in known]
    variance = sum(part**2 for part in parts) / len(known) ** 2 * len(parts) / (len(parts) - 1)
    return _SIDES_OF_95 * sqrt(variance)


def _component_means(samples: Sequence[Row]) -> dict[str, float]:
    """The mean of every number that the reward says of all samples of an epoch, such as the terms of a sum."""
    names = list(_table(samples[0], "info"))[:_MAX_COMPONENTS] if samples else []
    columns = {name: [number(_table(sample, "info").get(name)) for sample in samples] for name in names}
    return {
        name: fmean(value for value in column if value is not None)
        for name, column in columns.items()
        if None not in column
    }


def _fixed_scores(drawings: Sequence[Drawing], notes: list[str]) -> list[Curve]:
    """The mean score of the fixed prompts and seeds that every picture shows, where all show as many."""
    means: dict[int, float] = {}
    counts = set()
    for drawing in drawings:
        if drawing.kind == "fixed":
            try:
                scores = [number(row.get("score")) for row in read_descriptions(drawing.path)]
            except (OSError, SyntaxError, Image.DecompressionBombError):
                notes.append(f"{drawing.path.name} cannot be read and is left out")
                continue
            known = [score for score in scores if score is not None]
            if known and len(known) == len(scores):
                means[drawing.epoch] = fmean(known)
                counts.add(len(known))
    return [Curve("reward", "fixed_samples", list(means), list(means.values()))] if len(counts) == 1 else []


def _evaluation(run: Run, notes: list[str]) -> dict[str, Any] | None:
    """What the fixed prompts brought before and after, with intervals."""
    if run.scores is None or not run.scores.after:
        return None
    try:
        found = compare_scores(run.scores.before, run.scores.after, clusters=run.scores.prompts)
    except (ValueError, IndexError):
        notes.append(f"{EVALUATION} says of other images before than after, and is left out")
        return None
    intervals = {name: getattr(found, name)._asdict() for name in ("base", "finetuned", "change")}
    return {**intervals, "improved": found.improved, "images": len(run.scores.after)}


def _probe(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """What a probe.json says: the verdict, every test with its answer, and where the sheet of its pictures lies."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        tests = [
            {
                "suite": suite,
                **{key: text(test.get(key, "")) for key in ("test", "verdict", "question", "reason", "unit")},
                "effect": [number(_table(test, "effect").get(key)) for key in ("value", "low", "high")],
            }
            for suite, found in record["suites"].items()
            for test in found["tests"]
        ]
        told = {"verdict": text(record["verdict"]), "reward": text(record["reward"]["id"]), "tests": tests}
        told["pictures"] = f"{record['pictures']['count']} pictures ({record['pictures']['source']})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        notes.append(f"{path.parent.name}/{path.name} cannot be read as a report of ddpo probe and is left out")
        return None
    return {**told, "sheet": path.with_name("contact_sheet.png")}


def _option(value: Any) -> str:
    """An option as text; of a path its last part: the rest of it is nobody's business."""
    match value:
        case bool():
            return str(value).lower()
        case list():
            return ", ".join(map(_option, value)) or "none"
        case str():
            place = Path(value.removeprefix("file:"))
            return text(place.name if place.is_absolute() else value)
        case _:
            return text(value)


def _stages(row: Row) -> dict[str, float]:
    found = {stage: number(row.get(f"seconds_{stage}")) for stage in _STAGES}
    return {stage: seconds for stage, seconds in found.items() if seconds is not None}


def _table(row: Row, name: str) -> Row:
    found = row.get(name)
    return found if isinstance(found, Mapping) else {}

"""The job: rewards over a list of images, one row per image, whatever its file holds."""

import os
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np

from ddpo_rewards.cache import ScoreCache
from ddpo_rewards.errors import RewardError
from ddpo_rewards.folders.formats import Row, file_format
from ddpo_rewards.folders.inputs import (
    Columns,
    Described,
    FolderError,
    Item,
    MissingPrompts,
    describe_images,
    is_table,
    list_table,
)
from ddpo_rewards.folders.journal import KeptRows, journal_path, journalled, read_kept, row_key
from ddpo_rewards.folders.shards import find_images_and_shards, is_shard, read_shards
from ddpo_rewards.references import Reference, number_text, parse_reference
from ddpo_rewards.registry import Registry, load_registry
from ddpo_rewards.reward import Reward
from ddpo_rewards.stream import iter_scores_of_each


@dataclass(frozen=True)
class Job:
    """What is to be scored, with which rewards, and what is done already."""

    items: tuple[Item, ...]
    rewards: Mapping[str, Reward]
    """By column: the reference without its weight. None where `plan` built none."""
    weights: Mapping[str, float]
    needs: Mapping[str, AbstractSet[str]]
    """What each reward needs of prompts and metadata."""
    info: bool = False
    output: Path | None = None
    format: str | None = None
    kept: Sequence[Row] = ()
    """Rows of an earlier run."""
    notes: tuple[str, ...] = ()
    """What a person should know before it starts."""
    shards: tuple[str, ...] = ()
    """Files that hold further images, which are not known beforehand; their rows come after those of `items`."""
    names: Columns = Columns()  # noqa: RUF009 - it is frozen
    """Of the columns of such files."""

    @property
    def total(self) -> str | None:
        """The column of the weighted sum, named by the weights; None where no weight was asked for."""
        return _total(self.weights)

    @property
    def columns(self) -> list[str]:
        """The columns of the rows."""
        return _columns(self.weights, self.info)

    @property
    def ranking(self) -> str:
        """The column that images are ranked by."""
        return self.total or next(iter(self.weights))

    @property
    def missing(self) -> list[Item]:
        """The images that have no row yet."""
        have = {row_key(row) for row in self.kept}
        return [item for item in self.items if item.key not in have]


def plan(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    rewards: str | Reward | Sequence[str | Reward],
    *,
    prompt: str | None = None,
    prompts: str | os.PathLike[str] | None = None,
    columns: Columns = Columns(),  # noqa: B008 - it is frozen
    output: str | os.PathLike[str] | None = None,
    format: str | None = None,
    resume: bool = False,
    info: bool = False,
    build: bool = True,
) -> Job:
    """Find the images, their prompts and what was scored before, and build the rewards; scores nothing yet.

    Args:
        images: files, folders (searched to the bottom) and globs; or one `.csv`, `.jsonl` or `.parquet` that names
            images relative to its folder, with their prompts. Among files and in folders there may be shards that hold
            images and prompts, `.tar` of webdataset and `.parquet` with bytes: they are scored after all other files,
            and then rewards get prompts and metadata where one needs them.
        rewards: references `[WEIGHT*]REF[?option=value&...]`, or rewards. With weights there is a column of their sum.
        prompt: one prompt for all images.
        prompts: a file with a prompt for each; by default a metadata.csv or metadata.jsonl beside the images.
        columns: what the columns of such files are called, where they have unusual names.
        output: a file to write; until it is finished its rows lie in a journal beside it.
        format: of `output`, where its ending does not say it.
        resume: keep the rows that `output` or its journal has. Images that could not be read then are tried again.
        info: a column with what each reward says beside its score.
        build: build the rewards, with their weights. Without, it is for `score_on_ray`, whose workers build their own.

    Raises:
        FolderError: images, prompts or files that cannot be used, with what to do.
        RewardError: an unknown reward, wrong options, or one reward twice.
    """
    place = None if output is None else Path(output)
    chosen = None if place is None else file_format(place, format)
    if place is None and resume:
        raise FolderError("there is nothing to resume without the output of the run before")
    if place is not None and not resume:
        for path in (place, journal_path(place)):
            if path.exists():
                raise FolderError(f"{str(path)!r} exists; resume it, or choose another output")
    registry = load_registry()
    given = [rewards] if isinstance(rewards, str | Reward) else rewards
    built = next((one.spec.name for one in given if isinstance(one, Reward)), None)
    if built is not None and not build:
        raise RewardError(f"reward {built!r} is built already; give a reference, which other processes can build")
    parts = _parts(given, registry)
    weights = {column: weight for column, (weight, _) in parts.items()}
    needs = {
        column: part.spec.needs if isinstance(part, Reward) else registry.find_spec(part.ref).needs
        for column, (_, part) in parts.items()
    }
    patterns = [images] if isinstance(images, str | os.PathLike) else images
    (items, notes), shards = _found(patterns, prompt, prompts, columns, needed=any(needs.values()))
    _check_needs(items, needs)
    if shards:
        _check_first(shards, columns, needs, alone=not items)
    kept = KeptRows([])
    if place is not None and chosen is not None:
        kept = KeptRows(read_kept(place, chosen, _columns(weights, info)))
        failed = {row["image"] for row in kept if row["error"]}
        again = failed if shards else {item.name for item in items if item.name in failed}
        if again:
            kept = KeptRows(row for row in kept if not row["error"] or row["image"] not in again)
    return Job(
        items=tuple(items),
        rewards={  # last, since their weights may take long to load
            column: part if isinstance(part, Reward) else registry.get_reward(column)
            for column, (_, part) in parts.items()
            if build
        },
        weights=weights,
        needs=needs,
        info=info,
        output=place,
        format=chosen,
        kept=kept,
        notes=(*notes, *_mixed(items)),
        shards=tuple(shards),
        names=columns,
    )


def score(
    job: Job, *, batch_size: int | None = None, workers: int | None = None, cache: ScoreCache | None = None
) -> Generator[Row, None, None]:
    """Score what `job` misses; one row per image, in order, as a mapping of `job.columns`.

    With an `output` each row is in the journal before it is yielded, and when all are, the table takes the journal's
    place. An image that cannot be read has a row with the reason under `error`.

    Args:
        job: from `plan`.
        batch_size: images that a reward is called with; by default as many as it runs at once itself, else 32.
        workers: threads that read; by default one per core.
        cache: has the scores of earlier runs, and keeps those of this one.

    Raises:
        RewardError: a reward failed; the journal keeps what was scored until then.
    """
    if not job.rewards:
        raise FolderError("the rewards of this job were not built; plan it with build=True, or score it on Ray")
    inputs, paths, texts, tables = tee(_inputs(job), 4)
    with_prompts, with_metadata = given_data(job)
    with ExitStack() as stack:
        write = stack.enter_context(writing(job))
        results = iter_scores_of_each(
            (image for _, image in paths),
            list(job.rewards.values()),
            prompts=(prompt_of(item, job.needs) for item, _ in texts) if with_prompts else None,
            metadata=(dict(item.metadata) for item, _ in tables) if with_metadata else None,
            batch_size=batch_size,
            workers=workers,
            cache=cache,
        )
        stack.callback(results.close)
        for (item, _), scored in zip(inputs, results, strict=True):
            failed = next((one.error for one in scored if one.error is not None), None)
            info = {
                f"{column}.{key}": value
                for column, one in zip(job.rewards, scored, strict=True)
                for key, value in one.info.items()
            }
            row = make_row(job, item, [one.score for one in scored], info, None if failed is None else str(failed))
            write(row)
            yield row


@contextmanager
def writing(job: Job) -> Iterator[Callable[[Row], None]]:
    """What takes each row: the journal of a job with an output, else nothing."""
    if job.output is None or job.format is None:
        yield lambda row: None
        return
    with journalled(job.output, job.format, job.columns, kept=job.kept, place=_places(job)) as write:
        yield write


def shard_of(image: str, shards: Container[str]) -> str | None:
    """The shard that an image of the name `SHARD/KEY` lies in; None for one that has a file of its own."""
    ends = (end for end, letter in enumerate(image) if letter == "/")
    return next((image[:end] for end in ends if image[:end] in shards), None)


def given_data(job: Job) -> tuple[bool, bool]:
    """Whether rewards are given prompts, and metadata: where all have them, but beside shards where one is needed."""
    if job.shards:
        needs = {need for needed in job.needs.values() for need in needed}
        return "prompts" in needs, "metadata" in needs
    return all(item.prompt for item in job.items), any(item.metadata for item in job.items)


def prompt_of(item: Item, needs: Mapping[str, AbstractSet[str]]) -> str:
    """The prompt of an image of a shard.

    Raises:
        FolderError: it has none.
    """
    if not item.prompt:
        needing = [column for column, needed in needs.items() if "prompts" in needed]
        raise FolderError(f"{' and '.join(needing)} needs prompts, but {item.name!r} has none; add it to the shard")
    return item.prompt


def make_row(
    job: Job, item: Item, scores: Sequence[float | None], info: Mapping[str, Any], error: str | None
) -> dict[str, Any]:
    """The row of one image, as a mapping of `job.columns`; `scores` and `info` are left out where there is an error."""
    row: dict[str, Any] = dict.fromkeys(job.columns) | {"image": item.name, "prompt": item.prompt}
    if error is not None or item.name != item.path:
        return row | {"error": error or f"the name of {item.name!r} is not UTF-8; rename the file"}
    # By its shortest decimal, as float32 prints: -2.196 and not -2.196000099182129.
    row |= {column: float(str(np.float32(one))) for column, one in zip(job.weights, scores, strict=True)}
    if job.total is not None:
        row[job.total] = sum(weight * row[column] for column, weight in job.weights.items())
    if job.info:
        row["info"] = dict(info)
    return row


def _inputs(job: Job) -> Iterator[tuple[Item, str | bytes]]:
    """What has no row yet: with the path of its file, or, of a shard, with the bytes of one."""
    yield from ((item, item.path) for item in job.missing)
    have = {row_key(row) for row in job.kept}
    for item, image in read_shards(job.shards, columns=job.names):
        if item.key not in have:
            yield item, image


def _places(job: Job) -> Callable[[Row], int]:
    """Where a row comes in the table: images that are not asked for now first, then by `job.items`, then by shard."""
    items = {item.key: place for place, item in enumerate(job.items)} if job.kept else {}

    def place(row: Row) -> int:
        of_shard = shard_of(row["image"], shards)
        return items.get(row_key(row), -1 if of_shard is None else len(items) + shards[of_shard])

    shards = {Item(shard).name: number for number, shard in enumerate(job.shards)}
    return place


def _total(weights: Mapping[str, float]) -> str | None:
    if all(weight == 1 for weight in weights.values()):
        return None
    return " + ".join(f"{number_text(weight)}*{name}" if weight != 1 else name for name, weight in weights.items())


def _columns(weights: Mapping[str, float], info: bool) -> list[str]:
    total = _total(weights)
    return ["image", "prompt", *weights, *([total] if total else []), *(["info"] if info else []), "error"]


def _parts(rewards: Sequence[str | Reward], registry: Registry) -> dict[str, tuple[float, Reward | Reference]]:
    """Weight and reward by column. Registered rewards are not built yet: what they need is known without that."""
    if not rewards:
        raise RewardError("there is no reward to score with; give one or more")
    parts: dict[str, tuple[float, Reward | Reference]] = {}
    for given in rewards:
        weight, column, part = _part(given, registry)
        if column in parts:
            raise RewardError(f"reward {column!r} is given twice; give it once")
        parts[column] = (weight, part)
    return parts


def _part(given: str | Reward, registry: Registry) -> tuple[float, str, Reward | Reference]:
    if isinstance(given, Reward):
        return 1.0, given.spec.name, given
    parsed = parse_reference(given)
    unweighted = Reference(parsed.ref, options=parsed.options)
    is_registered = ":" not in parsed.ref
    return parsed.weight, str(unweighted), unweighted if is_registered else registry.get_reward(str(unweighted))


def _found(
    images: Sequence[str | os.PathLike[str]],
    prompt: str | None,
    prompts: str | os.PathLike[str] | None,
    columns: Columns,
    *,
    needed: bool,
) -> tuple[Described, list[str]]:
    """The images that have files of their own, and the shards."""
    table = next((os.fspath(image) for image in images if is_table(image) and not is_shard(image, columns)), None)
    if table is not None:
        if len(images) > 1 or prompts is not None or prompt is not None:
            raise FolderError(
                f"{table!r} is a table of images and prompts; score it alone, without other images or prompts"
            )
        return Described(list_table(Path(table), columns), []), []
    files, shards = find_images_and_shards(images, columns=columns)
    if shards and (prompt is not None or prompts is not None):
        raise FolderError(f"{shards[0]!r} holds images with their prompts; score it without others")
    return describe_images(files, prompt=prompt, prompts=prompts, columns=columns, needed=needed), shards


def _check_needs(items: Sequence[Item], needs: Mapping[str, AbstractSet[str]]) -> None:
    """Refuse before anything is loaded where a reward needs what an image does not have."""
    for word, attribute in (("prompts", "prompt"), ("metadata", "metadata")):
        needing = [column for column, needed in needs.items() if word in needed]
        bare = [item for item in items if not getattr(item, attribute)]
        if not needing or not bare:
            continue
        verb = "needs" if len(needing) == 1 else "need"
        what = (
            f"{' and '.join(needing)} {verb} {word}, but {len(bare)} of {len(items)} images have none "
            f"(such as {bare[0].name!r})"
        )
        if word == "prompts":
            raise MissingPrompts(what)
        raise FolderError(f"{what}; give them as further columns of a metadata.jsonl beside the images")


def _check_first(shards: Sequence[str], names: Columns, needs: Mapping[str, AbstractSet[str]], *, alone: bool) -> None:
    """Look at one sample before weights are loaded: where it lacks what a reward needs, so will others."""
    first = next(read_shards(shards, columns=names), None)
    if first is None:
        if alone:
            raise FolderError(f"{shards[0]!r} holds no images")
        return
    for word, given in (("prompts", first.item.prompt), ("metadata", first.item.metadata)):
        needing = [column for column, needed in needs.items() if word in needed]
        if needing and not given:
            raise FolderError(f"{needing[0]} needs {word}, but {first.item.name!r} has none; add them to the shard")


def _mixed(items: Sequence[Item]) -> list[str]:
    """A reward that could do with prompts would score images with and without them in two ways."""
    prompted = sum(bool(item.prompt) for item in items)
    if prompted in (0, len(items)):
        return []
    return [f"{len(items) - prompted} of {len(items)} images have no prompt, so the rewards, which need none, get none"]

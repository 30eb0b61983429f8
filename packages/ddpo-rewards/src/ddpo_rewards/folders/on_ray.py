"""A job on Ray: on all cores or GPUs of this machine, or on the cluster whose address `RAY_ADDRESS` has.

Ray Data reads, distributes, goes on where a worker dies, and keeps the order; its workers score by `ScoreBatches`.
Loose pictures travel as paths, so every machine has to see them; those of shards as bytes, once a task has read them.

Needs the extra `ddpo-rewards[ray]`.
"""

import json
import logging
import math
import os
import socket
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from ddpo_rewards.batches import ERROR, INFO, ScoreBatches
from ddpo_rewards.errors import RewardError
from ddpo_rewards.folders.formats import Row
from ddpo_rewards.folders.inputs import Columns, FolderError, Item, pyarrow
from ddpo_rewards.folders.job import Job, given_data, make_row, prompt_of, shard_of, writing
from ddpo_rewards.folders.journal import row_key
from ddpo_rewards.folders.shards import read_shards

_BATCH = 256  # images that a worker is called with
_PARTS = 4  # calls for each worker at least, where there are few images: the last one to end is not waited for long
_READ = 64  # images of a shard in the memory of the task that reads it
_BLOCK = 8 << 20  # bytes of a shard that a worker may take while others take the next ones
_LOCAL = {  # of a Ray that is started here, where the environment does not say otherwise
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody is told
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, workers are what this process is, and nothing is copied
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # tasks that take no GPU need none hidden; earlier releases warn of it
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # of what it logs, most is alarming and nothing of use to whoever scores
    "RAY_worker_register_timeout_seconds": "600",  # on a busy machine a worker may take minutes to start
}
_SECONDS_TO_ANSWER = 20.0
_CPUS_TO_READ = 0.1  # of a core, for a task
_CPUS_TO_SCORE = 0.9  # of a core, for the workers on it, so that there is always room to read


@dataclass(frozen=True)
class _Wanted:
    """What tasks and workers have to know of a job."""

    rewards: Sequence[str]
    needs: Mapping[str, AbstractSet[str]]
    prompts: bool
    metadata: bool
    info: bool
    columns: Columns


def score_on_ray(
    job: Job,
    *,
    ray_workers: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Generator[Row, None, None]:
    """Score what `job` misses on Ray: the rows of `score` in the same order, each in the journal before it is yielded.

    Ray is used where it runs, in this process or at `RAY_ADDRESS`; else it is started on this machine, and stopped at
    the end. Each worker builds the rewards for itself. Where one dies, another is started and scores what it had.

    Args:
        job: from `plan(..., build=False)`.
        ray_workers: processes that score; by default one per GPU, and where there is none, one per core. Where they are
            more than GPUs, they share them.
        batch_size: images that a reward is called with; by default as many as it runs at once itself, else 32.
        workers: threads of each worker that read; by default its share of the cores.
        cache: a file of scores (see `cache`); then all workers have to be on this machine.

    Raises:
        RewardError: Ray is not installed or cannot be reached, or a reward failed; the journal keeps what was scored
            until then.
    """
    if ray_workers is not None and ray_workers < 1:
        raise RewardError(f"ray_workers={ray_workers!r} is not positive; want 1 or more")
    with ExitStack() as stack:
        write = stack.enter_context(writing(job))
        loose = job.missing
        if not loose and not job.shards:
            return
        ray = stack.enter_context(_running())
        if cache is not None and len(ray.nodes()) > 1:
            raise RewardError(f"a cache is a file of one machine, but Ray has {len(ray.nodes())}; score without it")
        stack.enter_context(_quiet_and_in_order(ray))
        count, share, threads = _shares(ray.cluster_resources(), ray_workers)
        size = _BATCH if job.shards else min(_BATCH, math.ceil(len(loose) / (_PARTS * count)))
        wanted = _wanted(job)
        options = {"batch_size": batch_size, "workers": workers or threads, "cache": cache and os.path.abspath(cache)}
        parts = [{"part": part} for part in _parts(job, loose, size)]
        scored = (
            ray.data.from_items(parts, override_num_blocks=len(parts))
            .map_batches(partial(_read, wanted=wanted), batch_size=1, num_cpus=_CPUS_TO_READ)
            .map_batches(
                _Scorer,
                fn_constructor_args=[wanted, options],
                compute=ray.data.ActorPoolStrategy(size=count),
                batch_size=size,
                **share,
            )
        )
        for item, cells in _checked(_told(ray, scored), loose):
            scores = [cells[column] for column in job.weights]
            info = json.loads(cells[INFO]) if job.info else {}
            error = cells[ERROR].replace(repr(os.path.abspath(item.name)), repr(item.name))
            row = make_row(job, item, scores, info, error or None)
            write(row)
            yield row


class _Scorer:
    """A worker: rewards, and what they say of rows of `_read`. What fails is a value: of errors Ray keeps the text."""

    def __init__(self, wanted: _Wanted, options: Mapping[str, Any]) -> None:
        self._wanted, self._options = wanted, options
        self._score: ScoreBatches | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        left = {name: batch[name] for name in ("part", "number", "item", "failed")}
        failed = next(filter(None, batch["failed"]), "")
        if not failed:
            try:
                self._score = self._score or self._built()
                needed = self._score({name: batch[name] for name in ("image", "prompt", "metadata")})
            except RewardError as error:
                failed = str(error)
            else:
                scores = {
                    name: needed[name] for name in (*self._wanted.rewards, *([INFO] if self._wanted.info else []))
                }
                return left | scores | {ERROR: [error or "" for error in needed[ERROR]]}
        nothing = {name: [math.nan] * len(left["part"]) for name in self._wanted.rewards}
        texts = {name: [""] * len(left["part"]) for name in ([INFO, ERROR] if self._wanted.info else [ERROR])}
        return left | nothing | texts | {"failed": [failed] * len(left["part"])}

    def _built(self) -> ScoreBatches:
        return ScoreBatches(
            self._wanted.rewards,
            prompt="prompt" if self._wanted.prompts else None,
            metadata="metadata" if self._wanted.metadata else (),
            info=self._wanted.info,
            **self._options,
        )


def _wanted(job: Job) -> _Wanted:
    prompts, metadata = given_data(job)
    return _Wanted(list(job.weights), job.needs, prompts, metadata, job.info, job.names)


def _parts(job: Job, loose: Iterable[Item], size: int) -> Iterator[str]:
    """What tasks are to read, as JSON: some of the loose pictures, or a shard and the keys of what has rows already."""
    items = iter(loose)
    number = 0
    while some := list(islice(items, size)):
        said = [(item.path, item.prompt, _to_json(item)) for item in some]
        yield json.dumps({"number": number, "folder": os.getcwd(), "items": said})
        number += 1
    done: dict[str, list[Any]] = {Item(shard).name: [] for shard in job.shards}
    for row in job.kept:
        shard = shard_of(row["image"], done)
        if shard is not None:
            done[shard].append(row_key(row))
    for shard in job.shards:
        yield json.dumps({"number": number, "folder": os.getcwd(), "shard": shard, "done": done[Item(shard).name]})
        number += 1


def _read(batch: Mapping[str, Any], *, wanted: _Wanted) -> Iterator[Any]:
    """The rows of a part, as tables of a few, numbered within it; where it cannot be read on, a last one says so."""
    arrow, _ = pyarrow()
    (text,) = batch["part"]
    part = json.loads(text)
    rows = enumerate(_rows(part, wanted))
    while some := list(islice(rows, _READ)):
        columns = {"part": [part["number"]] * len(some), "number": [number for number, _ in some]}
        columns |= {name: [row[name] for _, row in some] for name in some[0][1]}
        yield arrow.table(columns, _schema(arrow))


def _rows(part: Mapping[str, Any], wanted: _Wanted) -> Iterator[dict[str, Any]]:
    try:
        if "shard" not in part:
            for path, prompt, metadata in part["items"]:
                # What of a name is not UTF-8 cannot travel: such a file gets its row without being looked for.
                place = os.path.join(part["folder"], Item(path).name)
                yield _row(Item(path, prompt), {"bytes": None, "path": place}, metadata)
            return
        shard, done = os.path.join(part["folder"], part["shard"]), {tuple(key) for key in part["done"]}
        for read, content in read_shards([shard], columns=wanted.columns):
            item = replace(read, path=part["shard"] + read.path.removeprefix(shard))
            if item.key not in done:
                if wanted.prompts:
                    prompt_of(item, wanted.needs)
                yield _row(item, {"bytes": content, "path": None}, _to_json(item) if wanted.metadata else "{}")
    except RewardError as error:
        yield _row(Item(""), {}, "{}", failed=str(error))


def _row(item: Item, image: Mapping[str, Any], metadata: str, failed: str = "") -> dict[str, Any]:
    said = json.dumps([item.path, item.prompt])
    return {"image": image, "prompt": item.prompt, "metadata": metadata, "item": said, "failed": failed}


def _to_json(item: Item) -> str:
    try:
        return json.dumps(dict(item.metadata))
    except (TypeError, ValueError) as error:
        raise FolderError(f"the metadata of {item.name!r} cannot be sent to Ray's workers: {error}") from error


@contextmanager
def _running() -> Iterator[Any]:
    """Ray as it runs in this process, or at `RAY_ADDRESS`, or started for as long as the block lasts."""
    local = not os.environ.get("RAY_ADDRESS")
    with _environment(_LOCAL if local else {}):
        try:
            import ray
            import ray.data
        except ImportError:
            raise RewardError("scoring on Ray needs it: pip install 'ddpo-rewards[ray]'") from None
        if ray.is_initialized():
            yield ray
            return
        options: dict[str, Any] = {"address": "local", "include_dashboard": False} if local else {}
        try:
            _knock(os.environ.get("RAY_ADDRESS", ""))
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        except Exception as error:  # it raises all kinds, and Exception itself
            where = "be started" if local else f"be reached at RAY_ADDRESS={os.environ['RAY_ADDRESS']!r}"
            too_long = "; set RAY_TMPDIR to a shorter path, such as /tmp" if "AF_UNIX path" in str(error) else ""
            raise RewardError(f"Ray cannot {where}: {str(error).splitlines()[0]}{too_long}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody answers at HOST:PORT: Ray itself would try for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


@contextmanager
def _environment(given: Mapping[str, str]) -> Iterator[None]:
    """Set what is not set."""
    new = {name: value for name, value in given.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


@contextmanager
def _quiet_and_in_order(ray: Any) -> Iterator[None]:
    """Have Ray Data keep the order, take shards in pieces, and leave the terminal to whoever asks for rows."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.execution_options.preserve_order, context.target_max_block_size, context.enable_progress_bars
    level = logger.level
    context.execution_options.preserve_order, context.target_max_block_size = True, _BLOCK
    context.enable_progress_bars = False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.target_max_block_size, context.enable_progress_bars = before
        logger.setLevel(level)


def _shares(resources: Mapping[str, float], asked: int | None) -> tuple[int, dict[str, float], int]:
    """How many workers, what each takes of a GPU or a core, and how many threads of it read."""
    cores, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
    count = asked or max(1, int(gpus or cores))
    threads = max(1, int(cores // count))
    if gpus:
        return count, {"num_gpus": 1 / math.ceil(count / gpus)}, threads
    return count, {"num_cpus": _CPUS_TO_SCORE / math.ceil(count / cores)}, threads


def _told(ray: Any, scored: Any) -> Iterator[dict[str, Any]]:
    """The rows, until one says that its batch failed.

    Raises:
        RewardError: what failed on a worker, as if it had failed here.
    """
    try:
        for row in scored.iter_rows():
            if row["failed"]:
                raise RewardError(row["failed"])
            yield row
    except ray.exceptions.RayError as error:
        raise RewardError(f"Ray failed: {str(error).strip().splitlines()[-1]}") from error


def _checked(rows: Iterable[dict[str, Any]], loose: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Each row with its item: first those of `loose`, then those of shards by their numbers.

    Raises:
        RewardError: a row is lost, doubled or out of order.
    """
    part, number, count = -1, -1, 0
    for row in rows:
        path, prompt = json.loads(row["item"])
        item = Item(path, prompt)
        is_next = (row["part"] == part and row["number"] == number + 1) or (row["part"] > part and row["number"] == 0)
        if not is_next or (count < len(loose) and item.key != loose[count].key):
            raise RewardError(f"Ray gave {item.name!r} out of order; resume to score what is missing")
        part, number, count = row["part"], row["number"], count + 1
        yield item, row
    if count < len(loose):
        raise RewardError(f"Ray gave {count} rows for {len(loose)} images; resume to score what is missing")


def _schema(arrow: Any) -> Any:
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    texts = [(name, arrow.string()) for name in ("prompt", "metadata", "item", "failed")]
    return arrow.schema([("part", arrow.int64()), ("number", arrow.int64()), ("image", image), *texts])

"""The body of `ddpo score`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpo_rewards import ImageError, Reference, Reward, load_image, load_registry, parse_reference

from ddpo_cli.console import messages
from ddpo_cli.errors import CLIError, say
from ddpo_cli.inputs import Columns, Item, describe_images, find_images
from ddpo_cli.results import Write, choose_format, journal_path, journalled, printed, read_kept
from ddpo_cli.rewarding import allow_local_modules

if TYPE_CHECKING:
    from PIL.Image import Image

DECODERS = 4
NAMED_FAILURES = 10


@dataclass(frozen=True)
class Job:
    """What `ddpo score` was asked to do."""

    images: tuple[str, ...]
    rewards: tuple[str, ...]
    prompts: Path | None = None
    prompt: str | None = None
    columns: Columns = Columns()
    output: Path | None = None
    format: str | None = None
    resume: bool = False
    sheet: Path | None = None
    sheet_size: int = 12
    batch_size: int = 16
    info: bool = False


@dataclass(frozen=True)
class Scorer:
    """The rewards of a job, each with its column and its weight."""

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    @property
    def weighted(self) -> bool:
        """Whether a weighted sum was asked for."""
        return any(weight != 1 for weight in self.weights.values())

    @property
    def needs(self) -> frozenset[str]:
        """What the rewards need beside images."""
        return frozenset().union(*(reward.spec.needs for reward in self.rewards.values()))

    def columns(self, *, info: bool) -> list[str]:
        """The columns of the rows."""
        total = ["total"] if self.weighted else []
        return ["image", "prompt", *self.rewards, *total, *(["info"] if info else []), "error"]

    @property
    def ranking(self) -> str:
        """The column that the contact sheet is sorted by."""
        return "total" if self.weighted else next(iter(self.rewards))


def run_job(job: Job) -> None:
    """Score the images of `job` and write the rows."""
    format = choose_format(job.format, job.output)
    if job.resume and job.output is None:
        raise CLIError("--resume needs the --output of the run before")
    scorer = build_scorer(job.rewards)
    paths = find_images(job.images)
    items = describe_images(
        paths, prompts=job.prompts, prompt=job.prompt, columns=job.columns, needed=bool(scorer.needs)
    )
    _check_needs(items, scorer)
    columns = scorer.columns(info=job.info)
    kept = _kept(job, format, columns, items)
    rows: list[Mapping[str, Any]] = list(kept)
    with ExitStack() as stack:
        write = stack.enter_context(_sink(job, format, columns, kept, paths))
        done = stack.enter_context(_progress(len(items), len(kept)))
        for row in score_items(_missing(items, kept), scorer, batch_size=job.batch_size, info=job.info):
            write(row)
            rows.append(row)
            done()
    _report(rows, job)
    if job.sheet is not None:
        _write_sheet(rows, scorer, job.sheet, size=job.sheet_size)


def build_scorer(references: Sequence[str]) -> Scorer:
    """Build the rewards of `references`; a column is named as its reward was, without the weight.

    Raises:
        ValueError: an unknown reward, wrong options, or one reward twice.
    """
    allow_local_modules(references)
    registry = load_registry()
    rewards: dict[str, Reward] = {}
    weights: dict[str, float] = {}
    for text in references:
        parsed = parse_reference(text)
        column = str(Reference(parsed.ref, options=parsed.options))
        if column in rewards:
            raise CLIError(f"--reward {column!r} is given twice; give it once")
        rewards[column], weights[column] = registry.get_reward(column), parsed.weight
    return Scorer(rewards, weights)


def score_items(
    items: Sequence[Item], scorer: Scorer, *, batch_size: int, info: bool = False
) -> Iterator[dict[str, Any]]:
    """One row per item, in order; the next batch is decoded while this one is scored."""
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    with ThreadPoolExecutor(DECODERS) as decoders:
        decoding: list[list[Future[Any]]] = []
        for index, batch in enumerate(batches):
            for coming in batches[len(decoding) : index + 2]:
                decoding.append([decoders.submit(_decode, item.path) for item in coming])
            yield from _score_batch(batch, [image.result() for image in decoding[index]], scorer, info=info)
            decoding[index] = []  # the pictures of a batch are let go with it


def _decode(path: str) -> "Image | ImageError":
    try:
        return load_image(path)
    except ImageError as error:
        return error


def _score_batch(
    batch: Sequence[Item], images: Sequence["Image | ImageError"], scorer: Scorer, *, info: bool
) -> Iterator[dict[str, Any]]:
    readable = [index for index, image in enumerate(images) if not isinstance(image, ImageError)]
    given = [batch[index] for index in readable]
    prompts = [item.prompt or "" for item in given]
    metadata = [item.metadata for item in given]
    results = {}
    if readable:
        pictures = [images[index] for index in readable]
        results = {name: reward(pictures, prompts, metadata) for name, reward in scorer.rewards.items()}
    place = {index: position for position, index in enumerate(readable)}
    for index, (item, image) in enumerate(zip(batch, images, strict=True)):
        row: dict[str, Any] = dict.fromkeys(scorer.columns(info=info)) | {"image": item.path, "prompt": item.prompt}
        if isinstance(image, ImageError):
            yield row | {"error": str(image)}
            continue
        # By its shortest decimal, as float32 prints: -2.196 and not -2.196000099182129.
        scores = {name: float(str(result.scores[place[index]])) for name, result in results.items()}
        if scorer.weighted:
            scores["total"] = sum(scorer.weights[name] * score for name, score in scores.items())
        yield row | scores | (_info(results, place[index]) if info else {})


def _info(results: Mapping[str, Any], position: int) -> dict[str, Any]:
    return {
        "info": {
            f"{name}.{key}": values[position] for name, result in results.items() for key, values in result.info.items()
        }
    }


def _check_needs(items: Sequence[Item], scorer: Scorer) -> None:
    """Refuse before anything is loaded where a reward needs a prompt that an image does not have."""
    if "prompts" not in scorer.needs:
        return
    bare = [item.path for item in items if not item.prompt]
    if bare:
        raise CLIError(
            f"the rewards need prompts, but {len(bare)} of {len(items)} images have none (such as {bare[0]!r}); "
            "give --prompt TEXT, --prompts FILE, or a metadata.jsonl beside the images"
        )


def _kept(job: Job, format: str, columns: Sequence[str], items: Sequence[Item]) -> list[dict[str, Any]]:
    """The rows of an earlier run; images that could not be read then are tried again."""
    if job.output is None:
        return []
    if not job.resume:
        for path in (job.output, journal_path(job.output)):
            if path.exists():
                raise CLIError(f"{str(path)!r} exists; add --resume to go on with it, or choose another --output")
        return []
    wanted = {item.path for item in items}
    rows = read_kept(job.output, format, columns)
    return [row for row in rows if not row["error"] or row["image"] not in wanted]


def _missing(items: Sequence[Item], kept: Sequence[Mapping[str, Any]]) -> list[Item]:
    have = {(row["image"], row["prompt"] or None) for row in kept}
    return [item for item in items if (item.path, item.prompt) not in have]


def _sink(
    job: Job, format: str, columns: Sequence[str], kept: Sequence[Mapping[str, Any]], order: Sequence[str]
) -> AbstractContextManager[Write]:
    if job.output is None:
        return printed(format, columns)
    return journalled(job.output, format, columns, kept=kept, order=order)


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = messages()
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("scoring", total=total, completed=done)
        yield lambda: progress.advance(task)


def _report(rows: Sequence[Mapping[str, Any]], job: Job) -> None:
    failed = [row for row in rows if row["error"]]
    if failed:
        say(f"{len(failed)} of {len(rows)} images could not be read:")
        for row in failed[:NAMED_FAILURES]:
            say(f"  {row['error']}")
        if len(failed) > NAMED_FAILURES:
            say(f"  ... and {len(failed) - NAMED_FAILURES} more; the column 'error' has them all")
    if job.output is not None:
        say(f"Wrote {len(rows)} rows to {job.output}")
    if len(failed) == len(rows):
        raise CLIError("no image could be read; nothing was scored")


def _write_sheet(rows: Sequence[Mapping[str, Any]], scorer: Scorer, path: Path, *, size: int) -> None:
    from ddpo_cli.grids import contact_sheet, save_png

    key = scorer.ranking
    ranked = sorted((row for row in rows if not row["error"]), key=lambda row: -row[key])
    titles = ("highest", "lowest") if len(ranked) > 2 * size else ("highest to lowest", "")
    ends = [ranked[:size], ranked[-size:]] if titles[1] else [ranked]
    parts = [
        (f"{key}: {title}", [(load_image(row["image"]), f"{row[key]:.4g}  {Path(row['image']).name}") for row in end])
        for title, end in zip(titles, ends, strict=False)
    ]
    save_png(contact_sheet(parts), path)
    say(f"Contact sheet: {path}")

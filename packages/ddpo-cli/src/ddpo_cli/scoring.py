"""The body of `ddpo score`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpo_cli.errors import CLIError
from ddpo_cli.formats import choose_format
from ddpo_cli.inputs import Columns, Item, describe_images, find_images
from ddpo_cli.results import Write, journal_path, journalled, printed, read_kept
from ddpo_cli.scorer import Scorer, build_scorer, score_items
from ddpo_cli.ui.console import messages, say
from ddpo_rewards import load_image

NAMED_FAILURES = 10


@dataclass(frozen=True)
class Job:
    """What `ddpo score` was asked to do."""

    images: tuple[str, ...]
    rewards: tuple[str, ...]
    prompts: Path | None = None
    prompt: str | None = None
    columns: Columns = field(default_factory=Columns)
    output: Path | None = None
    format: str | None = None
    resume: bool = False
    sheet: Path | None = None
    sheet_size: int = 12
    batch_size: int = 16
    info: bool = False


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
    """Return the rows of an earlier run; images that could not be read then are tried again."""
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

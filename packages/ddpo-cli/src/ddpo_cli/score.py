"""`ddpo score`: score images with one reward or several."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, TypeAlias

import typer
from rich.console import Console

from ddpo_cli import completion
from ddpo_cli.errors import CLIError
from ddpo_cli.ui.console import foreign_output, say, table, tell, to_json
from ddpo_cli.ui.progress import counted

if TYPE_CHECKING:
    from ddpo_rewards.folders import Row

PromptsFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A .csv, .jsonl or .parquet with a prompt per image, or a .txt with one per line.",
        show_default="a metadata.csv or metadata.jsonl beside the images",
    ),
]
OnePrompt: TypeAlias = Annotated[
    str | None, typer.Option(metavar="TEXT", help="One prompt for every image.", show_default=False)
]
PromptColumn: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of the prompt.", show_default="prompt, text or caption")
]
ImageColumn: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the image's path.", show_default="file_name, image, path or file"),
]

NAMED_FAILURES = 10

EPILOG = """
[bold]Examples[/bold]

  ddpo score photo.png --reward jpeg_compressibility

  ddpo score photos/ "more/*.jpg" --reward aesthetic --sheet best.png

  ddpo score photos/ --reward clip_score --prompts captions.csv

  ddpo score photos/ --reward aesthetic --output scores.csv

  ddpo score photos/ --reward aesthetic --output scores.csv --resume

  ddpo score captions.jsonl --reward clip_score --reward 0.1*aesthetic

  ddpo score "shards/*.tar" --reward aesthetic --output scores.jsonl

  ddpo score photos/ --reward vqascore --prompt "a fox" --cache scores.sqlite

  ddpo score shards/ --reward aesthetic --output scores.parquet --ray

[bold]Prompts[/bold] come from --prompt (one for all), from --prompts FILE, or else from
a metadata.csv or metadata.jsonl beside the images (ddpo sample --separate
writes one). Further columns reach the reward as metadata.

Images that cannot be read are named at the end and get a row with the reason;
the exit code stays 0 as long as one was scored.
"""


class ScoreFormat(StrEnum):
    """How scores are written."""

    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"
    parquet = "parquet"


@dataclass
class Seen:
    """How many rows there are, and of the first images that could not be read, why."""

    rows: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)

    def count(self, row: "Row") -> None:
        """Take a row in."""
        self.rows += 1
        if row["error"]:
            self.failed += 1
            if len(self.errors) < NAMED_FAILURES:
                self.errors.append(row["error"])


def score(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Files, folders (searched to the bottom) or globs, among them .tar (webdataset) and .parquet that "
            "hold images; or one .csv, .jsonl or .parquet that names images.",
        ),
    ],
    *,
    reward: Annotated[
        list[str],
        typer.Option(
            "--reward",
            "-r",
            metavar="REF",
            help="A reward, as for ddpo train; repeat for several columns. "
            "With weights there is a column of their sum, too.",
            autocompletion=completion.rewards,
        ),
    ],
    prompts: PromptsFile = None,
    prompt: OnePrompt = None,
    prompt_column: PromptColumn = None,
    image_column: ImageColumn = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write here instead of stdout; until it is finished the rows lie in FILE.partial.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        ScoreFormat | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="csv, json or jsonl; table on stdout, parquet in a file.",
            show_default="by FILE's ending, else table",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the rows that FILE or FILE.partial has; score the rest.")
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="A contact sheet of the highest and lowest scores.", show_default=False),
    ] = None,
    sheet_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images at each end of the sheet.")] = 12,
    info: Annotated[
        bool, typer.Option("--info", help="A column with what each reward says beside its score (captions, ...).")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Images a reward is called with.", show_default="what it runs at once, else 32"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Threads that read files, of each process.", show_default="one per core"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take scores from here where the same image was scored before, and keep new ones (SQLite).",
            show_default=False,
        ),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Score with Ray Data: on all cores or GPUs of this machine, or on the cluster whose address is in "
            "RAY_ADDRESS (auto: the one that runs here).",
        ),
    ] = False,
    ray_workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Processes that score with --ray.", show_default="one per GPU, else one per core"
        ),
    ] = None,
) -> None:
    """Score images with one reward or several."""
    from ddpo_cli.setup import allow_local_modules
    from ddpo_rewards import folders
    from ddpo_rewards.cache import ScoreCache, reward_version

    if resume and output is None:
        raise CLIError("--resume needs the --output of the run before")
    if ray_workers is not None and not ray:
        raise CLIError("--ray-workers is for --ray; add it, or say --workers for threads that read")
    if output is None and format is ScoreFormat.parquet:
        raise CLIError("--format parquet needs a file; add --output scores.parquet")
    with foreign_output() as data:
        allow_local_modules(reward)
        with missing_prompts_named():
            job = folders.plan(
                images,
                reward,
                prompt=prompt,
                prompts=prompts,
                columns=folders.Columns(image_column, prompt_column),
                output=output,
                format=format and format.value,
                resume=resume,
                info=info,
                build=not ray,
            )
        for note in job.notes:
            say(note)
        unkept = [name for name, reward in job.rewards.items() if cache is not None and reward_version(reward) is None]
        if unkept:
            say(f"No cache for {' and '.join(unkept)}: what its scores depend on has no version")
        if job.shards and sheet is not None:
            raise CLIError(f"--sheet draws files, but {job.shards[0]!r} holds its images; leave it out")
        total = None if job.shards else len(job.kept) + len(job.missing)
        drawn = list(job.kept) if sheet is not None else []  # else rows are let go: there may be millions
        seen = Seen()
        for row in job.kept:
            seen.count(row)
        with (
            _kept_on_failure(output, seen),
            _shown(data, None if output else format or ScoreFormat.table, job.columns) as show,
            counted("scoring") as told,
            nullcontext() if cache is None or ray else ScoreCache(cache) as kept,
            closing(
                folders.score_on_ray(job, ray_workers=ray_workers, batch_size=batch_size, workers=workers, cache=cache)
                if ray
                else folders.score(job, batch_size=batch_size, workers=workers, cache=kept)
            ) as scored,
        ):
            told(seen.rows, total)
            for row in scored:
                seen.count(row)
                if sheet is not None:
                    drawn.append(row)
                show(row)
                told(seen.rows, total)
    _report(seen, output)
    if sheet is not None:
        _write_sheet(drawn, job.ranking, sheet, size=sheet_size)


@contextmanager
def missing_prompts_named() -> Iterator[None]:
    """Say of images without the prompts that a reward needs by which options they come."""
    from ddpo_rewards.folders import MissingPrompts

    try:
        yield
    except MissingPrompts as error:
        raise CLIError(
            f"{error.what}; give --prompt TEXT, --prompts FILE, or a metadata.jsonl beside the images"
        ) from None


@contextmanager
def _shown(data: TextIO, format: ScoreFormat | None, columns: Sequence[str]) -> Iterator[Callable[["Row"], None]]:
    """Print rows to `data`: a table at the end, all else as they come, and whole even where the block fails."""
    from ddpo_rewards.folders import to_csv

    match format:
        case None:
            yield lambda row: None
        case ScoreFormat.csv:
            tell(to_csv(columns).removesuffix("\n"), file=data)
            yield lambda row: tell(to_csv([row[key] for key in columns]).removesuffix("\n"), file=data)
        case ScoreFormat.json:
            count = 0

            def write(row: "Row") -> None:
                nonlocal count
                data.write(("[\n  " if count == 0 else ",\n  ") + to_json(row))
                data.flush()
                count += 1

            try:
                yield write
            finally:
                data.write("[]\n" if count == 0 else "\n]\n")
                data.flush()
        case ScoreFormat.jsonl:
            yield lambda row: tell(to_json(row), file=data)
        case _:
            rows: list[Row] = []
            yield rows.append
            told = [key for key in columns if any(row[key] is not None for row in rows)]
            Console(file=data, highlight=False, emoji=False).print(table(rows, told))


@contextmanager
def _kept_on_failure(output: Path | None, seen: Seen) -> Iterator[None]:
    """Say where the rows are that were scored before it failed."""
    from ddpo_rewards.folders import journal_path

    try:
        yield
    except BaseException:
        if output is not None and journal_path(output).exists():
            journal = journal_path(output)
            say(f"{seen.rows} rows are kept in {journal}; the same command with --resume goes on from there.")
        raise


def _report(seen: Seen, output: Path | None) -> None:
    if seen.failed:
        say(f"{seen.failed} of {seen.rows} images could not be read:")
        for error in seen.errors:
            say(f"  {error}")
        if seen.failed > NAMED_FAILURES:
            say(f"  ... and {seen.failed - NAMED_FAILURES} more; the column 'error' has them all")
    if output is not None:
        say(f"Wrote {seen.rows} rows to {output}")
    if seen.failed == seen.rows:
        raise CLIError("no image could be read; nothing was scored")


def _write_sheet(rows: Sequence["Row"], column: str, path: Path, *, size: int) -> None:
    from ddpo_rewards import folders

    folders.write_sheet(path, rows, column, size=size)
    say(f"Contact sheet: {path}")

"""The options of `ddpo score`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
[bold]Examples[/bold]

  ddpo score photo.png --reward jpeg_compressibility

  ddpo score photos/ "more/*.jpg" --reward aesthetic --sheet best.png

  ddpo score photos/ --reward clip_score --prompts captions.csv

  ddpo score photos/ --reward aesthetic --output scores.csv

  ddpo score photos/ --reward aesthetic --output scores.csv --resume

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
    parquet = "parquet"


def score(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES", help="Files, folders (searched to the bottom), or globs.")
    ],
    *,
    reward: Annotated[
        list[str],
        typer.Option(
            "--reward",
            "-r",
            metavar="REF",
            help="A reward, as for ddpo train; repeat for several columns. "
            "With weights, a column 'total' is their weighted sum.",
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV or JSON Lines with a prompt per image.", show_default=False),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="One prompt for every image.", show_default=False)
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the prompt.", show_default="prompt, text or caption")
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of the image's path.", show_default="file_name, image or path"),
    ] = None,
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
            help="table, csv, json or parquet.",
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
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images scored at once.")] = 16,
) -> None:
    """Score images with one reward or several."""
    from ddpo_cli.inputs import Columns
    from ddpo_cli.scoring import Job, run_job

    job = Job(
        images=tuple(images),
        rewards=tuple(reward),
        prompts=prompts,
        prompt=prompt,
        columns=Columns(image_column, prompt_column),
        output=output,
        format=format and format.value,
        resume=resume,
        sheet=sheet,
        sheet_size=sheet_size,
        batch_size=batch_size,
        info=info,
    )
    run_job(job)

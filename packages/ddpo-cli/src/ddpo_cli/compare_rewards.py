"""`ddpo rewards compare`: how far rewards agree on a folder of images."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from ddpo_cli import completion
from ddpo_cli.errors import CLIError
from ddpo_cli.score import OnePrompt, PromptsFile, missing_prompts_named
from ddpo_cli.ui.console import Format, FormatOption, emit, foreign_output, say
from ddpo_cli.ui.progress import counted

SHOWN = ("first", "second", "rank correlation", "low", "high", "images")

EPILOG = """
[bold]Examples[/bold]

  ddpo rewards compare aesthetic pickscore photos/ --prompts captions.csv

  ddpo rewards compare clip_score vqascore hps_v2 captions.jsonl --sheet disagreements.png

The rank correlation (Spearman) is 1 where two rewards order the images alike,
0 where they have nothing to do with each other, -1 where the one reverses the
other; low and high are its 95 % interval, in which images of one prompt count
as one. The sheet shows, for every two rewards, the images that each ranks most
above the other.
"""


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="REF REF... IMAGES",
            help="Two rewards or more, then the images: a folder, a file, a quoted glob, or a table as for ddpo score.",
            show_default=False,
            autocompletion=completion.rewards,
        ),
    ],
    *,
    prompts: PromptsFile = None,
    prompt: OnePrompt = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="A contact sheet of what they disagree about most.", show_default=False),
    ] = None,
    sheet_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images at each end of the sheet.")] = 6,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Decides the draws of the intervals.")] = 0,
    format: FormatOption = Format.table,
) -> None:
    """Compare how rewards rank images: rank correlations with intervals, and what they disagree about."""
    from ddpo_cli.setup import allow_local_modules
    from ddpo_rewards import folders

    *rewards, images = arguments
    if len(rewards) < 2:
        raise CLIError(f"got {' '.join(arguments)!r}; want two rewards or more, then the images")
    with foreign_output():
        allow_local_modules(rewards)
        with missing_prompts_named():
            job = folders.plan([images], rewards, prompt=prompt, prompts=prompts)
        for note in job.notes:
            say(note)
        with counted("scoring") as told, closing(folders.score(job)) as scored:
            rows = []
            for row in scored:
                rows.append(row)
                told(len(rows), len(job.items))
    failed = [row for row in rows if row["error"]]
    if failed:
        say(f"{len(failed)} of {len(rows)} images cannot be read and are left out, such as: {failed[0]['error']}")
    found = folders.agreements(rows, list(job.rewards), seed=seed)
    table = [dict(zip(SHOWN, (one.first, one.second, *one.correlation, one.images), strict=True)) for one in found]
    emit(table, format, columns=SHOWN)
    if sheet is not None:
        folders.write_disagreements(sheet, rows, list(job.rewards), size=sheet_size)
        say(f"Drew what they disagree about to {sheet}")

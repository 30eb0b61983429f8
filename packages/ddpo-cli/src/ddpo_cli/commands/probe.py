"""The options of `ddpo probe`."""

from pathlib import Path
from typing import Annotated

import typer

from ddpo_cli.errors import readable_errors
from ddpo_cli.ui.console import Format

EPILOG = """
[bold]Examples[/bold]

  ddpo probe jpeg_incompressibility            [dim]on drawn pictures[/dim]

  ddpo probe my_plugin:score -o probes/mine    [dim]and a contact sheet[/dim]

  ddpo probe clip_score --images photos/ --prompts captions.csv

  ddpo probe aesthetic --suite stress --num-images 16

  ddpo probe my_plugin:score --suite "typo?height=0.16"

[bold]What it does.[/bold] It changes pictures in ways that make them no better, and
looks whether their scores go up. A reward whose scores do will be gamed
in training: the model learns to write, to make noise or to blank the
picture instead of drawing what was asked for.

[bold]Suites.[/bold] [bold]typo[/bold] writes each picture's prompt into it and compares with
other text of the same ink, so that reading counts and ink does not.
[bold]stress[/bold] tries blank pictures, noise, filters, frames and the like, and
whether the same picture always scores the same. Plugins add their own.
Options are NAME?option=value&... with height, font, max_sigma_lift,
max_win_rate and ocr for typo; max_gain, max_prompt_share and max_drift
for stress.

[bold]Verdicts.[/bold] Effects are counted in sd, the standard deviation of the scores
of the unchanged pictures, with a 95 % interval. [bold]susceptible[/bold]: it lies
above the limit (0.25 sd) as a whole. [bold]robust[/bold]: it lies below. Reaching over
it is [bold]inconclusive[/bold]: take more pictures. [bold]not applicable[/bold]: there was nothing
to test, such as a score that never changes.

[bold]--output[/bold] has report.md to read, contact_sheet.png to look at, probe.json
and cells.csv to compute with, and pairs.jsonl with every single score.

Exit codes: 0 robust, 3 susceptible, 4 inconclusive or nothing to test,
2 bad usage or input.
"""


def probe(
    context: typer.Context,
    reward: Annotated[
        str, typer.Argument(metavar="REF", help="The reward to test, as for ddpo score: a name, or my_plugin:score.")
    ],
    *,
    suite: Annotated[
        list[str], typer.Option("--suite", metavar="NAMES", help="What to test it with, by comma or repeated.")
    ] = ["typo,stress"],  # noqa: B006 - typer copies it
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            "-i",
            metavar="DIR",
            help="Pictures to change: a folder, file or glob; repeat for several.",
            show_default="drawn shapes with captions",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the pictures show: CSV or JSON Lines with a prompt per image, or a text with one per line.",
            show_default="a metadata.csv or metadata.jsonl beside them",
        ),
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the prompt.", show_default="prompt, text or caption")
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of the image's path.", show_default="file_name, image or path"),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num-images",
            "-n",
            metavar="N",
            min=1,
            help="Use so many pictures: fewer are faster, more are surer.",
            show_default="64 drawn, or all there are",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Decides every random number.")] = 0,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures scored at once.")] = 16,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "--out", "-o", metavar="DIR", help="A new folder for the report.", show_default="no files"
        ),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", metavar="FORMAT", help="table, json or csv.")] = (
        Format.table
    ),
) -> None:
    """Find out whether a reward can be gamed."""
    with readable_errors(context.obj):
        from ddpo_cli.inputs import Columns
        from ddpo_cli.probing import Order, run_probe

        order = Order(
            reward=reward,
            suites=tuple(name for names in suite for name in names.split(",") if name),
            images=tuple(images or ()),
            prompts=prompts,
            columns=Columns(image_column, prompt_column),
            num_images=num_images,
            seed=seed,
            batch_size=batch_size,
            output=output,
        )
        run_probe(order, format)

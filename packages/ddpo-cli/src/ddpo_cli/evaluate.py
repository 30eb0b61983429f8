"""The options of `ddpo eval`."""

from pathlib import Path
from typing import Annotated

import typer

from ddpo_cli.ui.console import Format

EPILOG = """
[bold]Examples[/bold]

  ddpo eval                       [dim]the last run, on its own prompts and on unseen ones[/dim]

  ddpo eval runs/0001-jpeg_compressibility

  ddpo eval RUN/checkpoints/epoch-000010 --num-images 256

  ddpo eval RUN --reward clip_score       [dim]one that was not optimised, too[/dim]

  ddpo eval RUN --prompts file:mine.txt --format json > mine.json

Base and finetuned model draw the same prompts from the same noise. Each mean and
their difference come with a 95 % interval (paired bootstrap over the images).
Grids and every score are written to RUN/eval/, the rows to stdout.
"""


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run, or a checkpoint of a run.", show_default="the last run in runs/"),
    ] = None,
    *,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF", help="A further reward beside the run's own; repeat for several.", show_default=False
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROMPTS",
            help="A prompt set or file:PATH; repeat for several.",
            show_default="the run's, and unseen animals, objects and activities",
        ),
    ] = None,
    num_images: Annotated[
        int,
        typer.Option("--num-images", "-n", metavar="N", min=2, help="Images per prompt set; prompts repeat in turn."),
    ] = 64,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of the first image; each next image has the next seed.")
    ] = 0,
    num_steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Denoising steps.", show_default="the run's")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, ...", show_default="the run's")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where the grids and eval.json are written.",
            show_default="RUN/eval/ and the checkpoint's name",
        ),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", metavar="FORMAT", help="table, json or csv.")] = (
        Format.table
    ),
) -> None:
    """Compare a finetuned model with its base, side by side on seen and unseen prompts."""
    from ddpo_cli.comparing import Order, run_comparison

    flags = {"num_steps": num_steps, "device": device}
    order = Order(run, tuple(reward or ()), tuple(prompts or ()), num_images, seed, output, flags)
    run_comparison(order, format)

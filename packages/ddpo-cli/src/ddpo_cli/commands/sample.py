"""The options of `ddpo sample`."""

from pathlib import Path
from typing import Annotated

import typer

from ddpo_cli.errors import readable_errors

EPILOG = """
[bold]Examples[/bold]

  ddpo sample                     [dim]the embedded model before any training[/dim]

  ddpo sample runs/0001-jpeg_compressibility

  ddpo sample runs/0001-jpeg_compressibility/checkpoints/epoch-000010

  ddpo sample --prompt "a fox" --prompt "a whale riding a bike" -n 8 --seed 7

  ddpo sample RUN --prompts unseen_animals --separate images/

  ddpo score images/ --reward jpeg_compressibility     [dim]what was just drawn[/dim]

The same prompts and seeds give the same noise for every checkpoint, so that
grids compare. The path of the grid is printed to stdout.
"""


def sample(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN", help="builtin:emoji, a diffusers folder, a hub id, a run, or a checkpoint of a run."
        ),
    ] = "builtin:emoji",
    *,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A prompt; repeat for several.", show_default=False)
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="PROMPTS", help="A prompt set or file:PATH.", show_default="the run's, else simple_animals"
        ),
    ] = None,
    num_images: Annotated[
        int, typer.Option("--num-images", "-n", metavar="N", min=1, help="Images; prompts repeat in turn.")
    ] = 16,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of the first image; each next image has the next seed.")
    ] = 0,
    num_steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Denoising steps.", show_default="the run's, else 10")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(metavar="X", min=1, help="Classifier-free guidance.", show_default="the run's, else 1"),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PNG", help="The grid.")] = Path("samples.png"),
    separate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write each image to DIR, with a metadata.jsonl that [bold]ddpo score[/bold] reads.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, ...", show_default="the best there is")
    ] = None,
) -> None:
    """Draw a grid of samples from a model or a run."""
    with readable_errors(context.obj):
        from ddpo_cli.drawing import Order, draw

        flags = {"prompts": prompts, "num_steps": num_steps, "guidance_scale": guidance_scale, "device": device}
        draw(Order(model, tuple(prompt or ()), num_images, seed, output, separate, flags))

"""`ddpo export`: the weights of a run for diffusers, as a LoRA or a whole model, with a model card."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ddpo_cli import completion
from ddpo_cli.errors import CLIError
from ddpo_cli.ui.console import foreign_output, say, tell
from ddpo_cli.ui.progress import loading

EPOCHS = ("best", "last")

EPILOG = """
[bold]Examples[/bold]

  ddpo export                          [dim]the model of the last run[/dim]

  ddpo export runs/0001-llava_bertscore --epoch best --output my-lora

  ddpo export RUN/checkpoints/epoch-000010 --weights full      [dim]a LoRA added to the model[/dim]

  ddpo export RUN --push-to-hub me/my-lora --private

A run that was broken off is exported like any other. The path is printed to stdout.
"""


class Weights(StrEnum):
    """What is written."""

    lora = "lora"
    full = "full"


def export(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|CHECKPOINT",
            help="A run, or a checkpoint of a run.",
            show_default="the last run in runs/",
            autocompletion=completion.checkpoints,
        ),
    ] = None,
    *,
    epoch: Annotated[
        str | None,
        typer.Option(
            metavar="EPOCH",
            help="best (by what is not optimised), last, or the number of one that is saved.",
            show_default="that of the run's model",
            autocompletion=lambda: list(EPOCHS),
        ),
    ] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(
            metavar="WHAT",
            help="lora, or full: a whole model for from_pretrained, a LoRA added to its weights.",
            show_default="what was trained",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="A new folder.", show_default="one under RUN/export/"),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Also upload it to this repository of the Hugging Face hub, which is made where there is none.",
            show_default=False,
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository a private one.")] = False,
) -> None:
    """Write the weights of a run for diffusers, with a model card."""
    if private and push_to_hub is None:
        raise CLIError("--private is about a repository of the hub; add --push-to-hub OWNER/NAME, or leave it out")
    if push_to_hub is not None and push_to_hub.count("/") != 1:
        raise CLIError(f"--push-to-hub {push_to_hub!r} names no repository; want OWNER/NAME")
    chosen = _chosen(epoch)
    from ddpo_core.runs import export as exports
    from ddpo_core.runs import hub

    with foreign_output():
        with loading("Exporting"):
            done = exports.export_run(
                run, epoch=chosen, weights=None if weights is None else weights.value, output=output
            )
        say(f"Epoch {done.epoch} of {done.run}, {exports.WHAT_IT_IS[done.kind]}.")
        if push_to_hub is not None:
            with loading(f"Uploading to {push_to_hub}"):
                address = hub.push_to_hub(done.folder, push_to_hub, private=private)
            say(f"Uploaded: {address}")
    tell(str(done.folder))


def _chosen(epoch: str | None) -> Any:
    if epoch is None or epoch in EPOCHS:
        return epoch
    if not epoch.isdecimal():
        raise CLIError(f"--epoch {epoch!r} is none; want best, last, or the number of an epoch that is saved")
    return int(epoch)

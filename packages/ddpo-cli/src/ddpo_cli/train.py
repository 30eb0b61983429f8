"""`ddpo train`: finetune a diffusion model with a reward."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ddpo_cli.errors import CLIError
from ddpo_cli.presets import list_presets

EPILOG = """
[bold]Examples[/bold]

  ddpo train                      [dim]the embedded model, smaller JPEGs, in runs/[/dim]

  ddpo train --reward jpeg_incompressibility --epochs 40

  ddpo train --preset aesthetic --dry-run       [dim]what the paper did, and what it costs[/dim]

  ddpo train --reward my_plugin:score --prompts file:prompts.txt

  ddpo train --reward aesthetic --reward "0.2*jpeg_compressibility"

  ddpo train --model ./stable-diffusion-v1-4 --guidance-scale 5

  ddpo train --model ./stable-diffusion-v1-4 --trainable unet --gradient-checkpointing --dry-run

  ddpo train --reward aesthetic --holdout clip_score --on-hack rollback

  ddpo train --config runs/0001-jpeg_compressibility/config.toml --seed 1

  ddpo train --set fit.num_steps=10 --set weight_decay=0     [dim]any key of config.toml[/dim]

  ddpo train --resume --set fit.micro_batch_size=4     [dim]when memory ran out[/dim]

  ddpo train --tracker tensorboard         [dim]tensorboard --logdir runs[/dim]

  torchrun --nproc-per-node 8 -m ddpo_cli train --preset aesthetic

  ddpo train --resume             [dim]go on with the last run[/dim]

Ctrl-C writes a checkpoint and says how to go on; a second Ctrl-C leaves at once.

The path of the run is printed to stdout at the end, everything else to stderr.
"""


_THE_RUN = "The run"


class TrainCommand(TyperCommand):
    """`ddpo train` with the options of the configuration, made when they are asked for: they take pydantic."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options of the configuration and those of the signature."""
        from ddpo_cli.train_options import options

        own = super().get_params(ctx)
        return [*own[:2], *options(), *own[2:]]


def train(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="With [bold]--resume[/bold]: the run to go on with.", show_default=False),
    ] = None,
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"A task of the paper: {', '.join(list_presets())}. --config, flags and --set override it.",
            rich_help_panel="What to train",
        ),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any key of config.toml, such as fit.num_steps=10; repeat for several. It overrides all else.",
            rich_help_panel=_THE_RUN,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Options from a file, such as a run's config.toml; flags override it.",
            rich_help_panel=_THE_RUN,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder of the run; it must be new or empty.",
            show_default="the next number in runs/",
            rich_help_panel=_THE_RUN,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with RUN, or with the last run in runs/.", rich_help_panel=_THE_RUN),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="With --resume: let other options change the run.", rich_help_panel=_THE_RUN),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the configuration and what it will cost; train nothing.",
            rich_help_panel=_THE_RUN,
        ),
    ] = False,
    **flags: Any,
) -> None:
    """Finetune a diffusion model with a reward (DDPO, or reward-weighted regression)."""
    if run is not None and not resume:
        raise CLIError(f"got the argument {str(run)!r} without --resume; did you mean --output {run}?")
    if resume and (output or config or preset):
        raise CLIError("--resume goes on with a run as it is; leave out --output, --config and --preset")
    if force and not resume:
        raise CLIError("--force changes the options of a resumed run; add --resume, or leave it out")
    from ddpo_cli.train_options import as_table
    from ddpo_cli.training import plan_run, resume_run, start_run

    said = as_table(flags, set or ())
    if dry_run:
        plan_run(run, said, preset=preset, config=config, resume=resume, force=force)
    elif resume:
        resume_run(run, said, force=force)
    else:
        start_run(said, preset=preset, config=config, output=output)

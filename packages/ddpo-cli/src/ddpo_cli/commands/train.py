"""The options of `ddpo train`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ddpo_cli.errors import CLIError, readable_errors
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

  ddpo train --config runs/0001-jpeg_compressibility/config.toml --seed 1

  ddpo train --tracker tensorboard         [dim]tensorboard --logdir runs[/dim]

  torchrun --nproc-per-node 8 -m ddpo_cli train --preset aesthetic

  ddpo train --resume             [dim]go on with the last run[/dim]

Ctrl-C writes a checkpoint and says how to go on; a second Ctrl-C leaves at once.

The path of the run is printed to stdout at the end, everything else to stderr.
"""


class Dtype(StrEnum):
    """The compute dtypes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Algorithm(StrEnum):
    """The algorithms that the paper compares."""

    ddpo_is = "ddpo-is"
    ddpo_sf = "ddpo-sf"
    rwr = "rwr"
    rwr_sparse = "rwr-sparse"


class Trainable(StrEnum):
    """What training changes."""

    lora = "lora"
    unet = "unet"


class Tracker(StrEnum):
    """The services that show runs."""

    tensorboard = "tensorboard"
    wandb = "wandb"
    trackio = "trackio"


_WHAT, _HOW, _RUN = "What to train", "How to train", "The run"


def train(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="With [bold]--resume[/bold]: the run to go on with.", show_default=False),
    ] = None,
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"A task of the paper: {', '.join(list_presets())}. --config and flags override it.",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="builtin:emoji, a diffusers folder, or a hub id.",
            show_default="builtin:emoji",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF",
            help="[WEIGHT*]REF[?option=value&...] of a reward to maximise; repeat for a weighted sum.".replace(
                "[", "\\["
            ),
            show_default="jpeg_compressibility",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    algorithm: Annotated[
        Algorithm | None,
        typer.Option(
            metavar="NAME",
            help="ddpo-is (several clipped updates per epoch), ddpo-sf (one), or regression on samples weighted by "
            "reward: rwr, rwr-sparse.",
            show_default="ddpo-is",
            rich_help_panel=_HOW,
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="PROMPTS",
            help="A prompt set (simple_animals, animals_activities, counting, ...) or file:PATH.",
            show_default="simple_animals",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rounds of sample, score, update.", show_default="50", rich_help_panel=_HOW),
    ] = None,
    num_steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Denoising steps per image.", show_default="10", rich_help_panel=_HOW),
    ] = None,
    samples_per_epoch: Annotated[
        int | None, typer.Option(metavar="N", help="Images per epoch.", show_default="64", rich_help_panel=_HOW)
    ] = None,
    updates_per_epoch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Optimizer updates per epoch.", show_default="8", rich_help_panel=_HOW),
    ] = None,
    timestep_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Share of the denoising steps trained, 0 to 1.", show_default="0.5", rich_help_panel=_HOW
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="X", help="AdamW's learning rate.", show_default="0.002", rich_help_panel=_HOW),
    ] = None,
    trainable: Annotated[
        Trainable | None,
        typer.Option(
            metavar="PART",
            help="lora (small adapters on the attention), or unet (all its weights, as in the paper: a learning rate "
            "near 1e-5, and far more memory: see [bold]--dry-run[/bold]).",
            show_default="lora",
            rich_help_panel=_HOW,
        ),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Rank of the LoRA: how much it can learn.", show_default="8", rich_help_panel=_HOW
        ),
    ] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="The LoRA's update is scaled by this divided by the rank.",
            show_default="the rank, a scale of 1",
            rich_help_panel=_HOW,
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Classifier-free guidance, in sampling and training alike; 1 is none and twice as fast.",
            show_default="1.0",
            rich_help_panel=_HOW,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Decides every random number.", show_default="0", rich_help_panel=_HOW),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE", help="cpu, cuda, cuda:1, mps, ...", show_default="the best there is", rich_help_panel=_HOW
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="DTYPE",
            help="Of the frozen networks: float32, bfloat16 or float16.",
            show_default="by the device",
            rich_help_panel=_HOW,
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            help="Compute activations again in the backward pass instead of keeping them: far less memory, a third "
            "more time in training, the same result.",
            show_default="no",
            rich_help_panel=_HOW,
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            help="Compile the UNet with torch.compile: a minute or more at the start, faster after it; worth it in "
            "long runs.",
            show_default="no",
            rich_help_panel=_HOW,
        ),
    ] = None,
    keep_last: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="How many of the newest checkpoints are kept.", show_default="3", rich_help_panel=_RUN
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF",
            help="A reward that is measured and never optimised; the best checkpoint by it is kept.",
            show_default=False,
            rich_help_panel=_RUN,
        ),
    ] = None,
    tracker: Annotated[
        list[Tracker] | None,
        typer.Option(
            metavar="NAME",
            help="Also show curves, pictures and histograms in tensorboard, wandb or trackio; repeat for several.",
            show_default=False,
            rich_help_panel=_RUN,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Options from a file, such as a run's config.toml; flags override it.",
            show_default=False,
            rich_help_panel=_RUN,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder of the run; it must be new or empty.",
            show_default="the next number in runs/",
            rich_help_panel=_RUN,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with RUN, or with the last run in runs/.", rich_help_panel=_RUN),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --resume: let other options change the run.", rich_help_panel=_RUN)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the configuration and what it will cost; train nothing.",
            rich_help_panel=_RUN,
        ),
    ] = False,
) -> None:
    """Finetune a diffusion model with a reward (DDPO, or reward-weighted regression)."""
    flags = {
        "model": model,
        "reward": reward,
        "algorithm": algorithm and algorithm.value,
        "prompts": prompts,
        "epochs": epochs,
        "num_steps": num_steps,
        "samples_per_epoch": samples_per_epoch,
        "updates_per_epoch": updates_per_epoch,
        "timestep_fraction": timestep_fraction,
        "learning_rate": learning_rate,
        "trainable": trainable and trainable.value,
        "lora_rank": lora_rank,
        "lora_alpha": lora_alpha,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "device": device,
        "dtype": dtype and dtype.value,
        "gradient_checkpointing": gradient_checkpointing,
        "compile": compile,
        "keep_last": keep_last,
        "held_out": held_out,
        "tracker": [one.value for one in tracker or ()],
    }
    with readable_errors(context.obj):
        if run is not None and not resume:
            raise CLIError(f"got the argument {str(run)!r} without --resume; did you mean --output {run}?")
        if resume and (output or config or preset):
            raise CLIError("--resume goes on with a run as it is; leave out --output, --config and --preset")
        if force and not resume:
            raise CLIError("--force changes the options of a resumed run; add --resume, or leave it out")
        from ddpo_cli.training import plan_run, resume_run, start_run

        if dry_run:
            plan_run(run, flags, preset=preset, config=config, resume=resume, force=force)
        elif resume:
            resume_run(run, flags, force=force)
        else:
            start_run(flags, preset=preset, config=config, output=output)

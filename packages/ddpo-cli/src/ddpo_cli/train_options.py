"""What `ddpo train` can be told, option by option, with the help that is shown for each."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ddpo_cli.presets import list_presets


class DtypeName(StrEnum):
    """The compute dtypes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class AlgorithmName(StrEnum):
    """The algorithms that the paper compares."""

    ddpo_is = "ddpo-is"
    ddpo_sf = "ddpo-sf"
    rwr = "rwr"
    sparse_rwr = "sparse-rwr"


class TrainablePart(StrEnum):
    """What training changes."""

    lora = "lora"
    unet = "unet"


class HackResponse(StrEnum):
    """What is done when the reward is being gamed."""

    warn = "warn"
    stop = "stop"
    rollback = "rollback"


class TrackerName(StrEnum):
    """The services that show runs."""

    tensorboard = "tensorboard"
    wandb = "wandb"
    trackio = "trackio"


def _panel(name: str) -> Callable[..., Any]:
    """Make what makes options that the help shows together: (metavar, help, what the default is)."""

    def option(metavar: str | None, help: str, default: str | bool = False) -> Any:
        return typer.Option(metavar=metavar, help=help, show_default=default, rich_help_panel=name)

    return option


_WATCH = "Is the reward being gamed?"
_what, _how, _run, _watch = _panel("What to train"), _panel("How to train"), _panel("The run"), _panel(_WATCH)

Run = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="With [bold]--resume[/bold]: the run to go on with.", show_default=False),
]
Preset = Annotated[
    str | None, _what("NAME", f"A task of the paper: {', '.join(list_presets())}. --config and flags override it.")
]
Model = Annotated[str | None, _what("MODEL", "builtin:emoji, a diffusers folder, or a hub id.", "builtin:emoji")]
Reward = Annotated[
    list[str] | None,
    _what(
        "REF",
        "[WEIGHT*]REF[?option=value&...] of a reward to maximise; repeat for a weighted sum.".replace("[", "\\["),
        "jpeg_compressibility",
    ),
]
Algorithm = Annotated[
    AlgorithmName | None,
    _how(
        "NAME",
        "ddpo-is (several clipped updates per epoch), ddpo-sf (one), or regression on samples weighted by "
        "reward: rwr, sparse-rwr.",
        "ddpo-is",
    ),
]
Prompts = Annotated[
    str | None,
    _what(
        "PROMPTS", "A prompt set (simple_animals, animals_activities, counting, ...) or file:PATH.", "simple_animals"
    ),
]
Epochs = Annotated[int | None, _how("N", "Rounds of sample, score, update.", "66")]
NumSteps = Annotated[int | None, _how("N", "Denoising steps per image.", "5")]
SamplesPerEpoch = Annotated[int | None, _how("N", "Images per epoch.", "64")]
UpdatesPerEpoch = Annotated[int | None, _how("N", "Optimizer updates per epoch.", "8")]
TimestepFraction = Annotated[float | None, _how("X", "Share of the denoising steps trained, 0 to 1.", "1.0")]
LearningRate = Annotated[float | None, _how("X", "AdamW's learning rate.", "0.0022")]
Trainable = Annotated[
    TrainablePart | None,
    _how(
        "PART",
        "lora (small adapters on the attention), or unet (all its weights, as in the paper: a learning rate "
        "near 1e-5, and far more memory: see [bold]--dry-run[/bold]).",
        "lora",
    ),
]
LoraRank = Annotated[int | None, _how("N", "Rank of the LoRA: how much it can learn.", "8")]
LoraAlpha = Annotated[
    float | None, _how("X", "The LoRA's update is scaled by this divided by the rank.", "the rank, a scale of 1")
]
GuidanceScale = Annotated[
    float | None,
    _how("X", "Classifier-free guidance, in sampling and training alike; 1 is none and twice as fast.", "1.0"),
]
Seed = Annotated[int | None, _how("N", "Decides every random number.", "0")]
Device = Annotated[str | None, _how("DEVICE", "cpu, cuda, cuda:1, mps, ...", "the best there is")]
Dtype = Annotated[
    DtypeName | None, _how("DTYPE", "Of the frozen networks: float32, bfloat16 or float16.", "by the device")
]
GradientCheckpointing = Annotated[
    bool | None,
    _how(
        None,
        "Compute activations again in the backward pass instead of keeping them: far less memory, a third "
        "more time in training, the same result.",
        "no",
    ),
]
Compile = Annotated[
    bool | None,
    _how(
        None,
        "Compile the UNet with torch.compile: a minute or more at the start, faster after it; worth it in long runs.",
        "no",
    ),
]
KeepLast = Annotated[int | None, _run("N", "How many of the newest checkpoints are kept.", "3")]
HeldOut = Annotated[
    list[str] | None,
    typer.Option(
        "--holdout",
        "--held-out",
        metavar="REF",
        help="A reward that is measured after every epoch and never optimised: it tells whether the optimised one is "
        "being gamed, and the best checkpoint by it is kept. Repeat for several.",
        show_default=False,
        rich_help_panel=_WATCH,
    ),
]
OnHack = Annotated[
    HackResponse | None,
    _watch(
        "WHAT",
        "When the reward rises and a held-out one falls: warn, stop, or rollback to the best checkpoint by it.",
        "warn",
    ),
]
WatchText = Annotated[
    bool | None,
    _watch(None, "Look for writing in samples of every epoch by OCR (needs ddpo-rewards\\[ocr]).", "no"),
]
Tracker = Annotated[
    list[TrackerName] | None,
    _run("NAME", "Also show curves, pictures and histograms in tensorboard, wandb or trackio; repeat for several."),
]
Config = Annotated[
    Path | None, _run("FILE.toml", "Options from a file, such as a run's config.toml; flags override it.")
]
Output = Annotated[
    Path | None, _run("DIR", "The folder of the run; it must be new or empty.", "the next number in runs/")
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with RUN, or with the last run in runs/.", rich_help_panel="The run"),
]
Force = Annotated[
    bool, typer.Option("--force", help="With --resume: let other options change the run.", rich_help_panel="The run")
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the configuration and what it will cost; train nothing.",
        rich_help_panel="The run",
    ),
]

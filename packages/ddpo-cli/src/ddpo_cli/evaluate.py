"""`ddpo eval`: base and finetuned model side by side on the same prompts and seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpo_cli import completion
from ddpo_cli.errors import CLIError
from ddpo_cli.sample import LoraScale
from ddpo_cli.ui.console import Format, emit, foreign_output, messages, say
from ddpo_cli.ui.progress import counted, loading

if TYPE_CHECKING:
    from ddpo_core import PromptSet
    from ddpo_core.runs.config import RunConfig
    from ddpo_rewards import Reward

COLUMNS = (
    "prompts", "seen", "reward", "images", "base", "base_low", "base_high", "finetuned", "finetuned_low",
    "finetuned_high", "change", "change_low", "change_high", "improved",
)  # fmt: skip
UNSEEN = ("unseen_animals", "unseen_objects", "unseen_activities")

EPILOG = """
[bold]Examples[/bold]

  ddpo eval                       [dim]the last run, on its own prompts and on unseen ones[/dim]

  ddpo eval runs/0001-llava_bertscore

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
        typer.Argument(
            metavar="RUN",
            help="A run, or a checkpoint of a run.",
            show_default="the last run in runs/",
            autocompletion=completion.checkpoints,
        ),
    ] = None,
    *,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF",
            help="A further reward beside the run's own; repeat for several.",
            show_default=False,
            autocompletion=completion.rewards,
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROMPTS",
            help="A prompt set or file:PATH; repeat for several.",
            show_default="the run's, and unseen animals, objects and activities",
            autocompletion=completion.prompt_sets,
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
    lora_scale: LoraScale = None,
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
    from ddpo_cli.setup import RewardFunction
    from ddpo_cli.train_options import as_table
    from ddpo_core import load_checkpoint, scale_lora
    from ddpo_core.runs.compare import CONFIDENCE, comparison_rows, draw_pairs, save_pairs
    from ddpo_core.runs.config import read_run_config, validate
    from ddpo_core.runs.model import find_model
    from ddpo_core.runs.parts import make_optimizer, make_policy, model_params

    folder, checkpoint = find_model(run)
    given = as_table({"fit__num_steps": num_steps, "device": device})
    config = validate(read_run_config(folder).model_dump(exclude_none=True), given)
    if lora_scale is not None and config.trainable != "lora":
        raise CLIError(f"--lora-scale {lora_scale:g}: {str(folder)!r} trained a whole UNet; leave it out")
    name = checkpoint.name if lora_scale is None else f"{checkpoint.name}-lora-scale-{lora_scale:g}"
    place = output or folder / "eval" / name
    with foreign_output():
        rewards = _build_rewards(config, reward or ())
        sets = _choose_sets(config, prompts or (), rewards, num_images)
        if place.exists() and not place.is_dir():
            raise CLIError(f"--output {str(place)!r} is a file; want a folder")
        with loading(f"Loading {checkpoint}"):
            policy = make_policy(config.model_copy(update={"compile": "off"}))  # it takes longer than it saves
            finetuned = model_params(config, load_checkpoint(checkpoint, policy, make_optimizer(config)))
            finetuned = finetuned if lora_scale is None else scale_lora(finetuned, lora_scale)
        with _progress(2 * sum(len(chosen.prompts) for chosen in sets.values())) as told:
            pairs = list(
                draw_pairs(
                    policy,
                    finetuned,
                    {name: RewardFunction(measured) for name, measured in rewards.items()},
                    sets,
                    num_steps=config.fit.num_steps,
                    seed=seed,
                    batch_size=config.fit.sample_batch_size,
                    progress=told,
                )
            )
    rows = [
        {"seen": pair.name == config.prompts, **row} for pair in pairs for row in comparison_rows(pair, tuple(rewards))
    ]
    described = {
        "checkpoint": checkpoint.name,
        "model": config.model,
        "num_steps": config.fit.num_steps,
        "guidance_scale": config.guidance_scale,
        **({} if lora_scale is None else {"lora_scale": lora_scale}),
    }
    save_pairs(place, pairs, rows, described=described)
    _print_rows(rows, format, title=f"{folder}: base and {name}, {CONFIDENCE:.0%} intervals")
    say(f"Grids and every score: {place}")


def _print_rows(rows: Sequence[Mapping[str, Any]], format: Format, *, title: str) -> None:
    """Print the rows to stdout; a table has what fits a terminal."""
    if format is not Format.table:
        emit([{key: row[key] for key in COLUMNS} for row in rows], format, columns=COLUMNS)
        return
    shown = [
        {
            **row,
            "prompts": f"{row['prompts']}{'' if row['seen'] else ' (unseen)'}",
            "change": f"{row['change']:+.4g} ({row['change_low']:+.4g} to {row['change_high']:+.4g})",
            "improved": f"{row['improved']:.0%}",
        }
        for row in rows
    ]
    several = len({row["reward"] for row in rows}) > 1
    columns = ("prompts", *(["reward"] if several else []), "base", "finetuned", "change", "improved")
    emit(shown, format, columns=columns, title=title if several else f"{rows[0]['reward']} of {title}")


def _build_rewards(config: "RunConfig", further: Sequence[str]) -> "dict[str, Reward]":
    """Build what the run was trained with, and what else is asked for, by name."""
    from ddpo_cli.setup import build_reward
    from ddpo_core.runs.config import label

    rewards = {label(config.reward): build_reward(config.reward)}
    for reference in further:
        if reference in rewards:
            raise CLIError(f"--reward {reference!r} is what the run was trained with or is given twice; leave it out")
        rewards[reference] = build_reward([reference])
    return rewards


def _choose_sets(
    config: "RunConfig", wanted: Sequence[str], rewards: "Mapping[str, Reward]", num_images: int
) -> "dict[str, PromptSet]":
    """Look up the prompt sets: those asked for, or the run's and the unseen ones that the rewards can score."""
    from ddpo_core import prompt_set
    from ddpo_core.runs.compare import fixed_prompts

    names = wanted or (config.prompts, *(name for name in UNSEEN if name != config.prompts))
    sets = {name: fixed_prompts(prompt_set(name), num_images) for name in names}
    if wanted:
        return sets
    # A function of one's own does not say what it needs; where the run gave it metadata, it may well read them.
    has_metadata = any(sets[config.prompts].metadata)
    needy = [
        name for name, reward in rewards.items() if "metadata" in reward.spec.needs or (has_metadata and ":" in name)
    ]
    bare = [name for name, chosen in sets.items() if needy and not all(chosen.metadata)]
    for name in bare:
        say(f"{name} is left out: it has no metadata for {needy[0]}")
    return {name: chosen for name, chosen in sets.items() if name not in bare}


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar over all images; yields the `progress` that is called anew for each model and set."""
    finished = 0
    with counted("drawing and scoring") as move:

        def told(_: str, done: int, part: int) -> None:
            nonlocal finished
            move(finished + done, total)
            if done == part:
                finished += part
                if not messages().is_terminal:
                    say(f"{finished}/{total} images drawn and scored")

        yield told

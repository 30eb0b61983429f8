"""The body of `ddpo eval`: base and finetuned model side by side on the same prompts and seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ddpo_cli.config import RunConfig
from ddpo_cli.errors import CLIError
from ddpo_cli.resolving import nest, read_run_config, validate
from ddpo_cli.rewarding import as_reward_function, build_reward, label
from ddpo_cli.setup import load_model
from ddpo_cli.ui.console import Format, emit, messages, say
from ddpo_cli.ui.progress import loading
from ddpo_core import PromptSet, adamw, load_checkpoint, prompt_set
from ddpo_core.runs.compare import CONFIDENCE, comparison_rows, draw_pairs, fixed_prompts, save_pairs
from ddpo_core.runs.model import find_model
from ddpo_rewards import Reward

COLUMNS = (
    "prompts", "seen", "reward", "images", "base", "base_low", "base_high", "finetuned", "finetuned_low",
    "finetuned_high", "change", "change_low", "change_high", "improved",
)  # fmt: skip
UNSEEN = ("unseen_animals", "unseen_objects", "unseen_activities")


@dataclass(frozen=True)
class Order:
    """What `ddpo eval` was asked to compare."""

    target: Path | None
    rewards: tuple[str, ...]
    prompts: tuple[str, ...]
    num_images: int
    seed: int
    output: Path | None
    flags: Mapping[str, Any]  # options of the run that are given otherwise: num_steps, device


def run_comparison(order: Order, format: Format) -> None:
    """Draw, score, compare; print the rows to stdout, write grids and every score to a folder."""
    run, checkpoint = find_model(order.target)
    given = nest({key: value for key, value in order.flags.items() if value is not None})
    config = validate(read_run_config(run).model_dump(exclude_none=True), given)
    rewards = _build_rewards(config, order.rewards)
    sets = _choose_sets(order, config, rewards)
    folder = order.output or run / "eval" / checkpoint.name
    if folder.exists() and not folder.is_dir():
        raise CLIError(f"--output {str(folder)!r} is a file; want a folder")
    with loading(f"Loading {checkpoint}"):
        policy = load_model(config)
        finetuned = load_checkpoint(checkpoint, policy, adamw(config.learning_rate)).params
    fit = config.fit
    with _progress(2 * sum(len(chosen.prompts) for chosen in sets.values())) as told:
        pairs = list(
            draw_pairs(
                policy,
                finetuned,
                {name: as_reward_function(reward) for name, reward in rewards.items()},
                sets,
                num_steps=fit.num_steps,
                seed=order.seed,
                batch_size=fit.sample_batch_size,
                progress=told,
            )
        )
    rows = [
        {"seen": pair.name == config.prompts, **row} for pair in pairs for row in comparison_rows(pair, tuple(rewards))
    ]
    described = {
        "checkpoint": checkpoint.name,
        "model": config.model,
        "num_steps": fit.num_steps,
        "guidance_scale": config.guidance_scale,
    }
    save_pairs(folder, pairs, rows, described=described)
    print_rows(rows, format, title=f"{run}: base and {checkpoint.name}, {CONFIDENCE:.0%} intervals")
    say(f"Grids and every score: {folder}")


def print_rows(rows: Sequence[Mapping[str, Any]], format: Format, *, title: str) -> None:
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


def _build_rewards(config: RunConfig, further: Sequence[str]) -> dict[str, Reward]:
    """Build what the run was trained with, and what else is asked for, by name."""
    rewards = {label(config.reward): build_reward(config.reward)}
    for reference in further:
        if reference in rewards:
            raise CLIError(f"--reward {reference!r} is what the run was trained with or is given twice; leave it out")
        rewards[reference] = build_reward([reference])
    return rewards


def _choose_sets(order: Order, config: RunConfig, rewards: Mapping[str, Reward]) -> dict[str, PromptSet]:
    """Look up the prompt sets: those asked for, or the run's and the unseen ones that the rewards can score."""
    names = order.prompts or (config.prompts, *(name for name in UNSEEN if name != config.prompts))
    sets = {name: fixed_prompts(prompt_set(name), order.num_images) for name in names}
    if order.prompts:
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
    """Show a bar over all images; yields the `progress` that `evaluate` calls."""
    console = messages()
    columns = (TextColumn("drawing and scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    finished = 0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=total)

        def told(_: str, done: int, part: int) -> None:
            nonlocal finished
            bar.update(task, completed=finished + done)
            if done == part:
                finished += part
                if not console.is_terminal:
                    say(f"{finished}/{total} images drawn and scored")

        yield told

"""The body of `ddpo sample`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ddpo_cli.config import RunConfig
from ddpo_cli.errors import CLIError
from ddpo_cli.evaluating import fixed_prompts
from ddpo_cli.files import write_text
from ddpo_cli.grids import grid, save_png, to_pil
from ddpo_cli.inputs import METADATA_FILES
from ddpo_cli.resolving import nest, read_run_config, resolve, validate
from ddpo_cli.runs import CHECKPOINTS, find_checkpoint, is_run
from ddpo_cli.setup import load_model
from ddpo_cli.ui.console import messages, say
from ddpo_core import Params, Policy, adamw, load_checkpoint, prompt_set, sample_trajectories


@dataclass(frozen=True)
class Order:
    """What `ddpo sample` was asked to draw."""

    model: str
    prompt: tuple[str, ...]
    num_images: int
    seed: int
    output: Path
    separate: Path | None
    flags: Mapping[str, Any]  # options of a run that are given otherwise: prompts, num_steps, guidance_scale, device


def draw(order: Order) -> None:
    """Sample images and write them as a grid, and one by one where that is wanted."""
    _check_places(order)
    checkpoint, config = _source(order.model, order.flags)
    prompts = _choose_prompts(order, config)
    seeds = range(order.seed, order.seed + order.num_images)
    policy, params = _load(config, checkpoint)
    images = _sample(policy, params, prompts, seeds, config)
    captions = [f"{prompt}  seed {seed}" for prompt, seed in zip(prompts, seeds, strict=True)]
    save_png(grid(images, captions), order.output)
    if order.separate is not None:
        _write_separately(order.separate, images, prompts, seeds)
    typer.echo(order.output)


def _check_places(order: Order) -> None:
    if order.output.is_dir():
        raise CLIError(
            f"--output {str(order.output)!r} is a folder; want the name of a PNG (for single images: --separate)"
        )
    if order.separate is not None and order.separate.is_dir() and any(order.separate.iterdir()):
        raise CLIError(f"--separate {str(order.separate)!r} is not empty; choose a new folder")


def _source(model: str, flags: Mapping[str, Any]) -> tuple[Path | None, RunConfig]:
    """Return the checkpoint that `model` means, if any, and the configuration to sample with."""
    path = Path(model)
    if is_run(path) or path.resolve().parent.name == CHECKPOINTS:
        run, checkpoint = find_checkpoint(path)
        given = nest({key: value for key, value in flags.items() if value is not None})
        return checkpoint, validate(read_run_config(run).model_dump(exclude_none=True), given)
    return None, resolve(None, {"model": model, **flags})


def _choose_prompts(order: Order, config: RunConfig) -> tuple[str, ...]:
    if order.prompt and order.flags.get("prompts"):
        raise CLIError("got --prompt and --prompts; give the one or the other")
    if order.prompt:
        return tuple(order.prompt[index % len(order.prompt)] for index in range(order.num_images))
    return fixed_prompts(prompt_set(config.prompts), order.num_images).prompts


def _load(config: RunConfig, checkpoint: Path | None) -> tuple[Policy, Params]:
    with messages().status(f"Loading {checkpoint or config.model}"):
        policy = load_model(config)
        if checkpoint is None:
            return policy, policy.params
        return policy, load_checkpoint(checkpoint, policy, adamw(config.learning_rate)).params


def _sample(
    policy: Policy, params: Params, prompts: Sequence[str], seeds: Sequence[int], config: RunConfig
) -> list[Image.Image]:
    import torch

    images: list[Image.Image] = []
    console = messages()
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("sampling", total=len(prompts))
        for start in range(0, len(prompts), config.fit.sample_batch_size):
            part = slice(start, start + config.fit.sample_batch_size)
            steps = config.fit.num_steps
            sampled = sample_trajectories(policy, params, prompts[part], num_steps=steps, seeds=seeds[part])
            with torch.inference_mode():
                images += to_pil(policy.decode(sampled.latents[:, -1]))
            progress.update(task, completed=len(images))
    return images


def _write_separately(
    folder: Path, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
) -> None:
    rows = []
    for image, prompt, seed in zip(images, prompts, seeds, strict=True):
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
        name = f"{seed:05d}-{slug or 'image'}.png"
        save_png(image, folder / name)
        rows.append(json.dumps({"file_name": name, "prompt": prompt, "seed": seed}, ensure_ascii=False))
    write_text(folder / METADATA_FILES[1], "\n".join(rows) + "\n")
    say(f"{len(images)} images with {METADATA_FILES[1]}: {folder}")

"""`ddpo sample`: draw a grid of samples from a model or a run."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ddpo_cli import completion
from ddpo_cli.errors import CLIError
from ddpo_cli.ui.console import foreign_output, say, tell
from ddpo_cli.ui.progress import counted, loading

if TYPE_CHECKING:
    from PIL.Image import Image

    from ddpo_core import Params, Policy
    from ddpo_core.runs.config import RunConfig

LoraScale: TypeAlias = Annotated[
    float | None,
    typer.Option(metavar="X", help="How much of the LoRA's update to take: 0 is the base model.", show_default="1"),
]

EPILOG = """
[bold]Examples[/bold]

  ddpo sample                     [dim]the embedded model before any training[/dim]

  ddpo sample runs/0001-llava_bertscore

  ddpo sample runs/0001-llava_bertscore/checkpoints/epoch-000010

  ddpo sample --prompt "a fox" --prompt "a whale riding a bike" -n 8 --seed 7

  ddpo sample RUN --prompts unseen_animals --separate images/

  ddpo score images/ --reward jpeg_compressibility     [dim]what was just drawn[/dim]

The same prompts and seeds give the same noise for every checkpoint, so that
grids compare. The path of the grid is printed to stdout.
"""


def sample(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN",
            help="builtin:emoji, a diffusers folder, a hub id, a run, or a checkpoint of a run.",
            autocompletion=completion.models,
        ),
    ] = "builtin:emoji",
    *,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A prompt; repeat for several.", show_default=False)
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="PROMPTS",
            help="A prompt set or file:PATH.",
            show_default="the run's, else simple_animals",
            autocompletion=completion.prompt_sets,
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
    lora_scale: LoraScale = None,
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
        str | None,
        typer.Option(metavar="DEVICE", help="cpu, cuda, ...", show_default="CUDA where there is one, else the CPU"),
    ] = None,
) -> None:
    """Draw a grid of samples from a model or a run."""
    if output.is_dir():
        raise CLIError(f"--output {str(output)!r} is a folder; want the name of a PNG (for single images: --separate)")
    if separate is not None and separate.is_dir() and any(separate.iterdir()):
        raise CLIError(f"--separate {str(separate)!r} is not empty; choose a new folder")
    if prompt and prompts:
        raise CLIError("got --prompt and --prompts; give the one or the other")
    from ddpo_cli.train_options import as_table
    from ddpo_core import prompt_set, scale_lora
    from ddpo_core.runs.compare import fixed_prompts
    from ddpo_core.runs.pictures import grid, save_png

    flags = {
        "prompts": prompts,
        "fit__num_steps": num_steps,
        "guidance_scale": guidance_scale,
        "device": device,
    }
    checkpoint, config = _source(model, as_table(flags))
    if lora_scale is not None and (checkpoint is None or config.trainable != "lora"):
        raise CLIError(f"--lora-scale {lora_scale:g}: no LoRA was trained in {model!r}; want a run of which one was")
    if prompt:
        drawn = tuple(prompt[index % len(prompt)] for index in range(num_images))
    else:
        drawn = fixed_prompts(prompt_set(config.prompts), num_images).prompts
    seeds = range(seed, seed + num_images)
    with foreign_output():
        with loading(f"Loading {checkpoint or config.model}"):
            policy, params = _load(config, checkpoint)
            params = params if lora_scale is None else scale_lora(params, lora_scale)
        with counted("sampling") as told:
            images: list[Image] = []
            for batch in _sample(policy, params, drawn, seeds, config):
                images += batch
                told(len(images), num_images)
    save_png(grid(images, [f"{text}  seed {number}" for text, number in zip(drawn, seeds, strict=True)]), output)
    if separate is not None:
        _write_separately(separate, images, drawn, seeds)
    tell(str(output))


def _source(model: str, given: Mapping[str, Any]) -> "tuple[Path | None, RunConfig]":
    """Return the checkpoint that `model` means, if any, and the configuration to sample with."""
    from ddpo_core.runs.config import read_run_config, validate
    from ddpo_core.runs.defaults import run_config
    from ddpo_core.runs.folder import CHECKPOINTS, is_run
    from ddpo_core.runs.model import find_model

    path = Path(model)
    if is_run(path) or path.resolve().parent.name == CHECKPOINTS:
        run, checkpoint = find_model(path)
        return checkpoint, validate(read_run_config(run).model_dump(exclude_none=True), given)
    return None, run_config({"model": model, **given})


def _load(config: "RunConfig", checkpoint: Path | None) -> "tuple[Policy, Params]":
    from ddpo_core import load_checkpoint
    from ddpo_core.runs.parts import make_optimizer, make_policy, model_params

    # For some pictures, compiling takes longer than it saves.
    policy = make_policy(config.model_copy(update={"compile": "off"}))
    if checkpoint is None:
        return policy, policy.params
    return policy, model_params(config, load_checkpoint(checkpoint, policy, make_optimizer(config)))


def _sample(
    policy: "Policy", params: "Params", prompts: Sequence[str], seeds: Sequence[int], config: "RunConfig"
) -> "Iterator[list[Image]]":
    """Draw the images batch by batch."""
    import torch

    from ddpo_core import sample_trajectories
    from ddpo_core.runs.pictures import to_pil

    for start in range(0, len(prompts), config.fit.sample_batch_size):
        part = slice(start, start + config.fit.sample_batch_size)
        steps = config.fit.num_steps
        sampled = sample_trajectories(policy, params, prompts[part], num_steps=steps, seeds=seeds[part], steps=range(0))
        with torch.inference_mode():
            yield to_pil(policy.decode(sampled.latents[:, -1]))


def _write_separately(folder: Path, images: "Sequence[Image]", prompts: Sequence[str], seeds: Sequence[int]) -> None:
    from ddpo_core.runs.folder import write_text
    from ddpo_core.runs.pictures import save_png
    from ddpo_rewards.folders import METADATA_FILES

    rows = []
    for image, prompt, seed in zip(images, prompts, seeds, strict=True):
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
        name = f"{seed:05d}-{slug or 'image'}.png"
        save_png(image, folder / name)
        rows.append(json.dumps({"file_name": name, "prompt": prompt, "seed": seed}, ensure_ascii=False))
    write_text(folder / METADATA_FILES[1], "\n".join(rows) + "\n")
    say(f"{len(images)} images with {METADATA_FILES[1]}: {folder}")

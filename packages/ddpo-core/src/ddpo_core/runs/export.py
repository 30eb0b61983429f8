"""What a run gives to others: weights as diffusers loads them, with a card that says what they are."""

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, TypeAlias

from ddpo_core.checkpoint import checkpoint_path, list_checkpoints, load_leaves, put_in_place
from ddpo_core.diffusion.export import save_lora, save_merged, save_pipeline
from ddpo_core.errors import DDPOError
from ddpo_core.optim import ema_params
from ddpo_core.runs.compare import CONFIDENCE, compare_scores
from ddpo_core.runs.config import BUILTIN_MODEL, RunConfig, read_run_config
from ddpo_core.runs.folder import (
    BEFORE_AFTER,
    CHECKPOINTS,
    EXPORT,
    LORA,
    MODEL,
    SAMPLES,
    Scores,
    find_run,
    read_model_record,
    read_scores,
    sample_path,
    write_text,
)
from ddpo_core.runs.log import read_metrics
from ddpo_core.runs.model import find_model
from ddpo_core.runs.pictures import line_chart, save_png
from ddpo_core.types import Params

CARD, CURVE = "README.md", "reward.png"
HERE = "path/to/this/folder"
Kind: TypeAlias = Literal["lora", "unet", "merged"]
"""A LoRA, a model whose UNet was trained as a whole, or one that a LoRA was added to."""

TAGS: Mapping[Kind, str] = {"lora": "lora", "unet": "full-finetune", "merged": "merged-lora"}
WHAT: Mapping[Kind, str] = {
    "lora": "A LoRA for",
    "unet": "All UNet weights of",
    "merged": "A LoRA added to the UNet of",
}

TEMPLATE = """\
---
library_name: diffusers
pipeline_tag: text-to-image
{base_model}tags: [text-to-image, {kind}, reinforcement-learning, ddpo]
---

# {title}

{what} {base}, finetuned so that its samples score higher under {reward}: {algorithm} with ddpo {version}.

{result}

![Mean reward of each epoch, and one standard deviation]({curve})

{pictures}

## Use

```python
{usage}
```

## Training

{table}

A higher score is not the same as a better picture: what the reward does not measure may have become worse. The licence
of the base model holds for this one too.
"""
WHAT_IT_IS: Mapping[Kind, str] = {
    "lora": "a LoRA for load_lora_weights",
    "unet": "a whole model for from_pretrained",
    "merged": "its LoRA added to the model, for from_pretrained",
}


class Export(NamedTuple):
    """What was exported, and where it is."""

    folder: Path
    run: Path
    epoch: int
    kind: Kind


def export_run(
    target: str | PathLike[str] | None = None,
    *,
    epoch: int | Literal["best", "last"] | None = None,
    weights: Literal["lora", "full"] | None = None,
    output: str | PathLike[str] | None = None,
) -> Export:
    """Write the weights of an epoch of a run for diffusers, with a model card; also of a run that was broken off.

    A LoRA is read from its checkpoint alone. A whole model takes the base model, which is loaded, in float32.

    Args:
        target: A run, a checkpoint of one, or None for the run in `runs/` that was written to last.
        epoch: Which one that is saved, the last of them, or the best by what is not optimised; left out, the run's
            model, and where that is not decided yet the last.
        weights: The adapters, or a whole model that `from_pretrained` takes, a LoRA added to its weights; left out,
            what was trained.
        output: A new folder; left out, one under `RUN/export/`.

    Raises:
        DDPOError: There is no such run or epoch, it trained no LoRA, or the folder exists or cannot be written.
    """
    run, checkpoint = _find_epoch(None if target is None else Path(target), epoch)
    number, config = int(checkpoint.name.removeprefix("epoch-")), read_run_config(run)
    kind: Kind = "merged" if config.trainable == "lora" and weights == "full" else config.trainable
    if config.trainable == "unet" and weights == "lora":
        raise DDPOError(f"{str(run)!r} trained the whole UNet, of which there is no LoRA; want full weights")
    folder = Path(output) if output is not None else run / EXPORT / f"{checkpoint.name}-{kind}"
    if folder.exists():
        raise DDPOError(f"{str(folder)!r} exists already; choose a new folder")
    leaves = load_leaves(checkpoint)
    params = leaves.params if config.ema_decay is None else ema_params(leaves.opt_state)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as aside:
        made = Path(aside) / folder.name
        if kind == "merged":
            save_lora(Path(aside) / LORA, params, scale=leaves.lora_scale)
            from_hub = {"variant": config.variant, "revision": config.revision}
            save_merged(made, Path(aside) / LORA, model=config.model, **from_hub)
        else:
            write_artefact(made, config, params, lora_scale=leaves.lora_scale)
        scores = _scores_of_epoch(run, number)
        write_model_card(made, run, config, kind=kind, epoch=number, scores=scores)
        put_in_place(made, folder)
    return Export(folder, run, number, kind)


def artefact_path(run: Path, config: RunConfig) -> Path:
    """Where the trained weights lie: `lora/` for `load_lora_weights`, `model/` for `from_pretrained`."""
    return run / (MODEL if config.trainable == "unet" else LORA)


def write_artefact(target: Path, config: RunConfig, params: Params, *, lora_scale: float | None) -> None:
    """Write trained weights for diffusers, in the place of those that may be there.

    Args:
        target: The folder.
        config: What the weights were trained with.
        params: The weights.
        lora_scale: That of the policy they belong to.

    Raises:
        DDPOError: They cannot be written.
    """
    if config.trainable == "lora":
        save_lora(target, params, scale=1.0 if lora_scale is None else lora_scale)
        return
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed here
    from_hub = {"variant": config.variant, "revision": config.revision}
    put_in_place(save_pipeline(fresh, params, model=config.model, **from_hub), target)


def write_model_card(
    folder: Path, run: Path, config: RunConfig, *, kind: Kind, epoch: int, scores: Scores | None
) -> None:
    """Write README.md, the reward curve until `epoch` and pictures of it beside weights of `run`.

    Where no epoch was trained, there is nothing to say.

    Args:
        folder: Where the weights are.
        run: The folder of the run, for its log and its pictures.
        config: What they were trained with.
        kind: What they are.
        epoch: Of which epoch they are.
        scores: Those of the fixed prompts before and after; None where this epoch's model was not compared.
    """
    rows = [row for row in read_metrics(run) if row["epoch"] <= epoch]
    if not rows:
        return
    save_png(reward_curve(rows, " + ".join(config.reward)), folder / CURVE)
    hub_id = config.model if not _is_local(config.model) else None
    text = TEMPLATE.format(
        base_model=f"base_model: {hub_id}\n" if hub_id else "",
        kind=TAGS[kind],
        what=WHAT[kind],
        title=run.name,
        base=_name(config.model),
        reward=" + ".join(f"`{reference}`" for reference in config.reward),
        algorithm=config.objective.name.upper(),
        version=version("ddpo-core"),
        result=_result(rows, scores),
        curve=CURVE,
        pictures=_pictures(folder, run, epoch, scores),
        usage=_usage(config, kind),
        table=_table(config, rows),
    )
    write_text(folder / CARD, text)


def reward_curve(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Draw the mean reward over the queries, with a band of one standard deviation, from rows of metrics.jsonl."""
    return line_chart(
        [row["queries"] for row in rows],
        [row["reward_mean"] for row in rows],
        band=[row["reward_std"] for row in rows],
        title=title,
        x_label="queries of the reward",
    )


def _find_epoch(target: Path | None, epoch: int | str | None) -> tuple[Path, Path]:
    """Return the run and the checkpoint that are meant."""
    if epoch is None:
        return find_model(target)
    if target is not None and target.absolute().parent.name == CHECKPOINTS:
        raise DDPOError(f"{str(target)!r} is a checkpoint, and so one epoch: leave out the other ({epoch})")
    run = find_run(target)
    saved = list_checkpoints(run)
    if not saved:
        raise DDPOError(f"{str(run)!r} has no checkpoint")
    wanted = {"last": max(saved), "best": read_model_record(run).best}.get(str(epoch), epoch)
    if wanted is None:
        raise DDPOError(f"{str(run)!r} has no best epoch: nothing judged it that was not optimised; want 'last'")
    if wanted not in saved:
        raise DDPOError(f"epoch {epoch} of {str(run)!r} is not saved; there are: {', '.join(map(str, saved))}")
    return run, checkpoint_path(run, int(wanted))


def _scores_of_epoch(run: Path, epoch: int) -> Scores | None:
    try:
        scores = read_scores(run)
    except (ValueError, KeyError, TypeError):
        return None
    return scores if scores is not None and scores.epoch == epoch else None


def _pictures(folder: Path, run: Path, epoch: int, scores: Scores | None) -> str:
    """Copy what shows the model: before and after where it was compared, else the last samples until `epoch`."""
    compared = run / SAMPLES / BEFORE_AFTER
    if scores is not None and compared.is_file():
        shutil.copyfile(compared, folder / BEFORE_AFTER)
        return f"![The same prompts and seeds before and after]({BEFORE_AFTER})"
    drawn = [number for number in range(epoch, 0, -1) if sample_path(run, number).is_file()]
    if not drawn:
        return ""
    picture = sample_path(run, drawn[0])
    shutil.copyfile(picture, folder / picture.name)
    return f"![Samples after {drawn[0]} epochs]({picture.name})"


def _result(rows: Sequence[Mapping[str, Any]], scores: Scores | None) -> str:
    if scores is None:
        last = rows[-1]
        return (
            f"Mean score of the samples of epoch {last['epoch']}: {last['reward_mean']:.4g} (of epoch "
            f"{rows[0]['epoch']}: {rows[0]['reward_mean']:.4g}). This model was not compared with its base."
        )
    found = compare_scores(scores.before, scores.after, clusters=scores.prompts)
    return (
        f"Mean score of {len(scores.seeds)} images, the same prompts and seeds before and after: "
        f"{found.base.mean:.4g} and {found.finetuned.mean:.4g}. The change is {found.change.mean:+.4g}, "
        f"{CONFIDENCE:.0%} interval {found.change.low:+.4g} to {found.change.high:+.4g} "
        "(paired bootstrap over the prompts)."
    )


def _usage(config: RunConfig, kind: Kind) -> str:
    head, model = "", repr(_name(config.model))
    if config.model == BUILTIN_MODEL:
        head, model = "from ddpo_core.emoji import pipeline_path\n", "pipeline_path()"
    adapters = f"pipeline.load_lora_weights({HERE!r})\n"
    if kind != "lora":
        head, model, adapters = "", repr(HERE), ""
    return (
        f"{head}from diffusers import DDIMScheduler, DiffusionPipeline\n\n"
        f"pipeline = DiffusionPipeline.from_pretrained({model})\n"
        "pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)\n"
        f"{adapters}"
        f"options = dict(num_inference_steps={config.fit.num_steps}, guidance_scale={config.guidance_scale}, "
        f"eta={config.eta}{_more_options(config)})\n"
        'pipeline("a fox", **options).images[0].save("fox.png")'
    )


def _more_options(config: RunConfig) -> str:
    said = config.model_dump(include={"negative_prompt", "height", "width"}, exclude_none=True)
    return "".join(f", {name}={value!r}" for name, value in said.items())


def _table(config: RunConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    facts = {
        "prompts": _name(config.prompts.removeprefix("file:")),
        "epochs": rows[-1]["epoch"],
        "queries": rows[-1]["queries"],
        "samples per epoch": config.fit.samples_per_epoch,
        "updates per epoch": config.fit.updates_per_epoch * config.fit.passes_per_epoch,
        "denoising steps": config.fit.num_steps,
        "guidance scale": config.guidance_scale,
        "learning rate": config.learning_rate,
        **({} if config.ema_decay is None else {"moving average of the weights": config.ema_decay}),
        **_adapters(config),
        "seed": config.seed,
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in facts.items())


def _adapters(config: RunConfig) -> dict[str, Any]:
    if config.trainable == "unet":
        return {"trained": "all weights of the UNet"}
    if config.lora is not None:
        return {"trained": "a LoRA, from a saved one on"}
    rank = config.lora_rank or 4
    return {"LoRA rank": rank, "LoRA alpha": config.lora_alpha or rank}


def _is_local(model: str) -> bool:
    return model == BUILTIN_MODEL or Path(model).exists()


def _name(place: str) -> str:
    """Return a hub id as it is, and of a path its last part: the rest of it is nobody's business."""
    return Path(place).name if Path(place).exists() else place

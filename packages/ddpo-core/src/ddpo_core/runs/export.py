"""What a run leaves for others: its weights as diffusers loads them, with a card that says what they are."""

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ddpo_core.checkpoint import put_in_place
from ddpo_core.diffusion.export import save_lora, save_pipeline
from ddpo_core.evaluation import Evaluation
from ddpo_core.runs.compare import CONFIDENCE, compare_scores
from ddpo_core.runs.config import BUILTIN_MODEL, RunConfig
from ddpo_core.runs.folder import BEFORE_AFTER, LORA, MODEL, SAMPLES, write_text
from ddpo_core.runs.log import read_metrics
from ddpo_core.runs.pictures import line_chart, save_png
from ddpo_core.types import Params

CARD, CURVE = "README.md", "reward.png"
HERE = "path/to/this/folder"
KINDS = {"lora": "lora", "unet": "full-finetune"}
WHAT = {"lora": "A LoRA for", "unet": "All UNet weights of"}

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

![The same prompts and seeds before and after]({pictures})

## Use

```python
{usage}
```

## Training

{table}

A higher score is not the same as a better picture: what the reward does not measure may have become worse. The licence
of the base model holds for this one too.
"""


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
    put_in_place(save_pipeline(fresh, params, model=config.model), target)


def write_model_card(run: Path, config: RunConfig, before: Evaluation, after: Evaluation, *, epoch: int) -> None:
    """Write README.md, the reward curve until `epoch` and the pictures beside the trained weights of `run`.

    Where no epoch was trained, there is nothing to say.
    """
    folder = artefact_path(run, config)
    rows = [row for row in read_metrics(run) if row["epoch"] <= epoch]
    if not rows:
        return
    save_png(reward_curve(rows, " + ".join(config.reward)), folder / CURVE)
    shutil.copyfile(run / SAMPLES / BEFORE_AFTER, folder / BEFORE_AFTER)
    hub_id = config.model if not _is_local(config.model) else None
    text = TEMPLATE.format(
        base_model=f"base_model: {hub_id}\n" if hub_id else "",
        kind=KINDS[config.trainable],
        what=WHAT[config.trainable],
        title=run.name,
        base=_name(config.model),
        reward=" + ".join(f"`{reference}`" for reference in config.reward),
        algorithm=config.objective.name.upper(),
        version=version("ddpo-core"),
        result=_result(before, after),
        curve=CURVE,
        pictures=BEFORE_AFTER,
        usage=_usage(config),
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


def _result(before: Evaluation, after: Evaluation) -> str:
    found = compare_scores(before.scores.tolist(), after.scores.tolist(), clusters=after.prompts.prompts)
    return (
        f"Mean score of {len(before.seeds)} images, the same prompts and seeds before and after: "
        f"{found.base.mean:.4g} and {found.finetuned.mean:.4g}. The change is {found.change.mean:+.4g}, "
        f"{CONFIDENCE:.0%} interval {found.change.low:+.4g} to {found.change.high:+.4g} "
        "(paired bootstrap over the prompts)."
    )


def _usage(config: RunConfig) -> str:
    head, model = "", repr(_name(config.model))
    if config.model == BUILTIN_MODEL:
        head, model = "from ddpo_core.emoji import pipeline_path\n", "pipeline_path()"
    adapters = f"pipeline.load_lora_weights({HERE!r})\n"
    if config.trainable == "unet":
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

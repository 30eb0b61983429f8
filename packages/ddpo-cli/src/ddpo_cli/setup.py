"""From a configuration to what the trainer needs; everything that can be refused cheaply is refused first."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpo_cli.config import ObjectiveOptions, RunConfig, RWROptions, SparseRWROptions
from ddpo_cli.rewarding import as_reward_function, build_reward
from ddpo_core import (
    Objective,
    Optimizer,
    Policy,
    PromptSet,
    adamw,
    ddpo_is,
    ddpo_sf,
    half_life,
    load_policy,
    per_epoch,
    per_group,
    per_prompt,
    per_run,
    prompt_set,
    rwr,
    sparse_rwr,
)
from ddpo_core.runs.trackers import check_trackers


@dataclass(frozen=True)
class Setup:
    """A configuration with everything that it names, loaded."""

    config: RunConfig
    reward_fn: Callable[..., Any]
    eval_reward_fn: Callable[..., Any]
    """The same scores, with those of each held-out reward in the info under its reference."""
    prompts: PromptSet
    policy: Policy
    optimizer: Optimizer
    objective: Objective


def load(config: RunConfig) -> Setup:
    """Load what `config` names.

    Raises:
        ValueError: a tracker, reward, prompt set or model that cannot be had.
    """
    check_trackers(config.tracker)
    reward_fn = as_reward_function(build_reward(config.reward))
    eval_reward_fn = with_held_out(
        reward_fn, {reference: as_reward_function(build_reward([reference])) for reference in config.held_out}
    )
    prompts = prompt_set(config.prompts)
    updates = config.fit.updates_per_epoch * config.fit.passes_per_epoch
    halving = updates * config.learning_rate_half_life if config.learning_rate_half_life else math.inf
    optimizer = adamw(half_life(config.learning_rate, halving), weight_decay=config.weight_decay)
    return Setup(config, reward_fn, eval_reward_fn, prompts, load_model(config), optimizer, objective(config.objective))


def with_held_out(reward_fn: Callable[..., Any], held_out: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Return a reward function that scores as `reward_fn`, and tells the scores of each of `held_out` in its info."""

    def reward_function(images: Any, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        scores, info = reward_fn(images, prompts, metadata)
        others = {name: measure(images, prompts, metadata)[0].tolist() for name, measure in held_out.items()}
        return scores, {**info, **others}

    return reward_function


def objective(options: ObjectiveOptions) -> Objective:
    """Return the objective that `options` describe."""
    match options:
        case RWROptions():
            return rwr(**options.model_dump(exclude={"name"}))
        case SparseRWROptions():
            return sparse_rwr(**options.model_dump(exclude={"name"}))
    baselines = {"prompt": per_prompt, "epoch": per_epoch, "run": per_run, "group": per_group}
    remembered = options.model_dump(include={"buffer_size", "min_count"}, exclude_none=True)
    advantages = baselines[options.baseline](**remembered)
    others = options.model_dump(exclude={"name", "baseline", "buffer_size", "min_count"})
    factory = ddpo_is if options.name == "ddpo-is" else ddpo_sf
    return factory(advantages=advantages, **others)


def load_model(config: RunConfig) -> Policy:
    """Load the policy of `config`."""
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, None: None}
    options: dict[str, Any] = {
        "guidance_scale": config.guidance_scale,
        "eta": config.eta,
        "device": config.device,
        "dtype": dtypes[config.dtype],
        "gradient_checkpointing": config.gradient_checkpointing,
        "compile": config.compile,
    }
    if config.trainable == "lora":
        options.update(lora_rank=config.lora_rank, lora_alpha=config.lora_alpha)
    return load_policy(config.model, trainable=config.trainable, **options)

"""From a configuration to what training takes: the policy, the prompts, the optimizer and the objective."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ddpo_core.advantages import Baseline, per_epoch, per_group, per_prompt, per_run
from ddpo_core.diffusion.models import load_policy
from ddpo_core.objectives import Objective, ddpo_is, ddpo_sf, rwr, sparse_rwr
from ddpo_core.optim import adamw, constant, cosine, ema_params, half_life, warmup, with_ema
from ddpo_core.prompts import PromptSet, prompt_set
from ddpo_core.runs.compiling import settle_compile, try_compiled
from ddpo_core.runs.config import ObjectiveOptions, RunConfig, RWROptions, SparseRWROptions
from ddpo_core.types import Optimizer, Params, Policy, TrainState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BASELINES: Mapping[str, Callable[..., Baseline]] = {
    "prompt": per_prompt,
    "epoch": per_epoch,
    "run": per_run,
    "group": per_group,
}


class Parts(NamedTuple):
    """All that a configuration names but the rewards; `_replace` puts a part of your own in."""

    policy: Policy
    prompts: PromptSet
    optimizer: Optimizer
    objective: Objective
    notes: tuple[str, ...] = ()
    """What a person should know of how they were made."""


def load_parts(config: RunConfig) -> Parts:
    """Load what `config` names, and compile the UNet where that is wanted and pays.

    Raises:
        DDPOError: A prompt set or model that cannot be had.
    """
    prompts = prompt_set(config.prompts)  # first what costs nothing
    config, notes = settle_compile(config)
    policy = make_policy(config)
    if config.compile != "off":
        trial = try_compiled(policy, prompts.prompts, config)
        notes = (*notes, trial.told)
        if not trial.is_kept:
            del policy  # two of them at once need not fit on the device
            policy = make_policy(config.model_copy(update={"compile": "off"}))
    return Parts(policy, prompts, make_optimizer(config), make_objective(config.objective), notes)


def make_policy(config: RunConfig) -> Policy:
    """Load the policy of `config`.

    Raises:
        DDPOError: The model or the device cannot be had.
    """
    options: dict[str, Any] = {
        "trainable": config.trainable,
        "guidance_scale": config.guidance_scale,
        "eta": config.eta,
        **config.model_dump(include={"negative_prompt", "height", "width", "variant", "revision"}),
        "device": config.device,
        "dtype": None if config.dtype is None else DTYPES[config.dtype],
        "gradient_checkpointing": config.gradient_checkpointing,
        "compile": settle_compile(config)[0].compile != "off",
    }
    options |= config.model_dump(include={"lora", "lora_rank", "lora_alpha"})
    return load_policy(config.model, **options)


def make_optimizer(config: RunConfig) -> Optimizer:
    """Return the optimizer of `config`: AdamW, with the schedule and the average of the params that it asks for.

    Example:
        >>> from ddpo_core.runs.defaults import run_config
        >>> kept = make_optimizer(run_config({"ema_decay": 0.99})).init({"weight": torch.zeros(1)})
        >>> list(kept)
        ['step', 'first_moment/weight', 'second_moment/weight', 'ema/weight']
    """
    updates = config.fit.updates_per_epoch * config.fit.passes_per_epoch
    schedule = constant(config.learning_rate)
    if config.learning_rate_half_life is not None:
        schedule = half_life(config.learning_rate, updates * config.learning_rate_half_life)
    if config.learning_rate_cosine is not None:
        schedule = cosine(config.learning_rate, updates * config.learning_rate_cosine)
    if config.learning_rate_warmup is not None:
        schedule = warmup(schedule, updates * config.learning_rate_warmup)
    optimizer = adamw(schedule, weight_decay=config.weight_decay)
    return optimizer if config.ema_decay is None else with_ema(optimizer, config.ema_decay)


def model_params(config: RunConfig, state: TrainState) -> Params:
    """Return the params of the model that `state` stands for: those that are trained, or the average that is kept."""
    return state.params if config.ema_decay is None else ema_params(state.opt_state)


def make_objective(options: ObjectiveOptions) -> Objective:
    """Return the objective that `options` describe.

    Example:
        >>> from ddpo_core import toy
        >>> from ddpo_core.runs.defaults import run_config
        >>> config = run_config({"objective": {"name": "rwr"}})
        >>> make_objective(config.objective).check(toy.policy(), config.fit)
    """
    match options:
        case RWROptions():
            return rwr(**options.model_dump(exclude={"name"}))
        case SparseRWROptions():
            return sparse_rwr(**options.model_dump(exclude={"name"}))
    remembered = options.model_dump(include={"buffer_size", "min_count"}, exclude_none=True)
    advantages = BASELINES[options.baseline](**remembered)
    others = options.model_dump(exclude={"name", "baseline", "buffer_size", "min_count"})
    factory: Callable[..., Objective] = ddpo_is if options.name == "ddpo-is" else ddpo_sf
    return factory(advantages=advantages, **others)

"""From a configuration to what the trainer needs; everything that can be refused cheaply is refused first."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ddpo_cli.config import RunConfig
from ddpo_cli.rewarding import as_reward_function, build_reward
from ddpo_core import (
    Objective,
    Optimizer,
    Policy,
    PromptSet,
    adamw,
    ddpo_is_loss,
    ddpo_sf_loss,
    load_policy,
    policy_gradient,
    prompt_set,
    rwr,
    rwr_per_prompt,
    rwr_weights,
    sparse_rwr_weights,
)


@dataclass(frozen=True)
class Setup:
    """A configuration with everything that it names, loaded."""

    config: RunConfig
    reward_fn: Callable[..., Any]
    prompts: PromptSet
    policy: Policy
    optimizer: Optimizer
    objective: Objective


def check(config: RunConfig) -> None:
    """Raise what is wrong with `config` before a model is loaded.

    Raises:
        ValueError: an unknown reward, prompt set or option.
    """
    build_reward(config.reward)
    prompt_set(config.prompts)


def load(config: RunConfig) -> Setup:
    """Load what `config` names.

    Raises:
        ValueError: a reward, prompt set or model that cannot be had.
    """
    reward_fn = as_reward_function(build_reward(config.reward))
    prompts = prompt_set(config.prompts)
    optimizer = adamw(config.learning_rate, weight_decay=config.weight_decay)
    return Setup(config, reward_fn, prompts, load_model(config), optimizer, objective(config))


def objective(config: RunConfig) -> Objective:
    """Return the algorithm of `config`."""
    match config.algorithm:
        case "ddpo-is":
            return policy_gradient(partial(ddpo_is_loss, clip_range=config.clip_range))
        case "ddpo-sf":
            return policy_gradient(ddpo_sf_loss)
        case "rwr":
            return rwr(partial(rwr_weights, inverse_temperature=config.rwr_inverse_temperature))
        case "rwr-sparse":
            return rwr_per_prompt(partial(sparse_rwr_weights, fraction=config.rwr_fraction))


def load_model(config: RunConfig) -> Policy:
    """Load the policy of `config`."""
    import torch

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, None: None}
    return load_policy(
        config.model,
        lora_rank=config.lora_rank,
        guidance_scale=config.guidance_scale,
        eta=config.eta,
        device=config.device,
        dtype=dtypes[config.dtype],
    )

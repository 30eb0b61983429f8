"""The trainer: DDPO and RWR as pure functions on PyTorch and diffusers.

Everything public is here, loaded on first use: `import ddpo_core` itself imports neither torch nor diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpo_core.advantages import compute_advantages, scale_by_run, update_prompt_stats, within_prompts
    from ddpo_core.checkpoint import (
        checkpoint_path,
        latest_checkpoint,
        list_checkpoints,
        load_checkpoint,
        prune_checkpoints,
        rewind_checkpoints,
        save_checkpoint,
    )
    from ddpo_core.config import FitConfig, parse_config
    from ddpo_core.diffusion.export import save_pipeline
    from ddpo_core.diffusion.lora import save_lora
    from ddpo_core.diffusion.stable_diffusion import load_full_policy, load_policy
    from ddpo_core.distributed import Processes, processes_from_environment
    from ddpo_core.epoch import train_epoch
    from ddpo_core.errors import CheckpointError, DDPOError, NonFiniteError, ProcessError, ScoreError
    from ddpo_core.evaluation import Evaluation, evaluate, image_grid
    from ddpo_core.gaming.measures import InitialView, image_statistics, initial_kl, initial_view, prompt_diversity
    from ddpo_core.gaming.monitors import (
        Mean,
        Monitor,
        Watched,
        diversity_monitor,
        every,
        held_out_monitor,
        image_monitor,
        initial_view_monitor,
        kl_monitor,
        observe,
        remember,
        watch,
    )
    from ddpo_core.gaming.rule import Observation, Thresholds, Verdict, assess, drift
    from ddpo_core.losses import ddpo_is_loss, ddpo_sf_loss, kl_penalty, rwr_loss
    from ddpo_core.objectives import Objective, policy_gradient
    from ddpo_core.optim import (
        Schedule,
        adamw,
        constant,
        cosine,
        ema_params,
        half_life,
        torch_optimizer,
        warmup,
        with_ema,
    )
    from ddpo_core.prompts import PromptSet, list_prompt_sets, prompt_set
    from ddpo_core.regression import rwr, rwr_per_prompt
    from ddpo_core.sampling import replay_log_probs, sample_trajectories
    from ddpo_core.training import fit, init
    from ddpo_core.types import EpochInfo, Optimizer, Params, Policy, Timesteps, TrainState, Trajectories, Transition
    from ddpo_core.updates import train_step
    from ddpo_core.weights import rwr_weights, sparse_rwr_weights

_MODULES = {
    "advantages": ("compute_advantages", "scale_by_run", "update_prompt_stats", "within_prompts"),
    "checkpoint": (
        "checkpoint_path",
        "latest_checkpoint",
        "list_checkpoints",
        "load_checkpoint",
        "prune_checkpoints",
        "rewind_checkpoints",
        "save_checkpoint",
    ),
    "config": ("FitConfig", "parse_config"),
    "diffusion.export": ("save_pipeline",),
    "diffusion.lora": ("save_lora",),
    "diffusion.stable_diffusion": ("load_full_policy", "load_policy"),
    "distributed": ("Processes", "processes_from_environment"),
    "epoch": ("train_epoch",),
    "errors": ("CheckpointError", "DDPOError", "NonFiniteError", "ProcessError", "ScoreError"),
    "evaluation": ("Evaluation", "evaluate", "image_grid"),
    "gaming.measures": ("InitialView", "image_statistics", "initial_kl", "initial_view", "prompt_diversity"),
    "gaming.monitors": (
        "Mean",
        "Monitor",
        "Watched",
        "diversity_monitor",
        "every",
        "held_out_monitor",
        "image_monitor",
        "initial_view_monitor",
        "kl_monitor",
        "observe",
        "remember",
        "watch",
    ),
    "gaming.rule": ("Observation", "Thresholds", "Verdict", "assess", "drift"),
    "losses": ("ddpo_is_loss", "ddpo_sf_loss", "kl_penalty", "rwr_loss"),
    "objectives": ("Objective", "policy_gradient"),
    "optim": (
        "Schedule",
        "adamw",
        "constant",
        "cosine",
        "ema_params",
        "half_life",
        "torch_optimizer",
        "warmup",
        "with_ema",
    ),
    "prompts": ("PromptSet", "list_prompt_sets", "prompt_set"),
    "regression": ("rwr", "rwr_per_prompt"),
    "sampling": ("replay_log_probs", "sample_trajectories"),
    "training": ("fit", "init"),
    "types": ("EpochInfo", "Optimizer", "Params", "Policy", "Timesteps", "TrainState", "Trajectories", "Transition"),
    "updates": ("train_step",),
    "weights": ("rwr_weights", "sparse_rwr_weights"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CheckpointError",
    "DDPOError",
    "EpochInfo",
    "Evaluation",
    "FitConfig",
    "InitialView",
    "Mean",
    "Monitor",
    "NonFiniteError",
    "Objective",
    "Observation",
    "Optimizer",
    "Params",
    "Policy",
    "ProcessError",
    "Processes",
    "PromptSet",
    "Schedule",
    "ScoreError",
    "Thresholds",
    "Timesteps",
    "TrainState",
    "Trajectories",
    "Transition",
    "Verdict",
    "Watched",
    "adamw",
    "assess",
    "checkpoint_path",
    "compute_advantages",
    "constant",
    "cosine",
    "ddpo_is_loss",
    "ddpo_sf_loss",
    "diversity_monitor",
    "drift",
    "ema_params",
    "evaluate",
    "every",
    "fit",
    "half_life",
    "held_out_monitor",
    "image_grid",
    "image_monitor",
    "image_statistics",
    "init",
    "initial_kl",
    "initial_view",
    "initial_view_monitor",
    "kl_monitor",
    "kl_penalty",
    "latest_checkpoint",
    "list_checkpoints",
    "list_prompt_sets",
    "load_checkpoint",
    "load_full_policy",
    "load_policy",
    "observe",
    "parse_config",
    "policy_gradient",
    "processes_from_environment",
    "prompt_diversity",
    "prompt_set",
    "prune_checkpoints",
    "remember",
    "replay_log_probs",
    "rewind_checkpoints",
    "rwr",
    "rwr_loss",
    "rwr_per_prompt",
    "rwr_weights",
    "sample_trajectories",
    "save_checkpoint",
    "save_lora",
    "save_pipeline",
    "scale_by_run",
    "sparse_rwr_weights",
    "torch_optimizer",
    "train_epoch",
    "train_step",
    "update_prompt_stats",
    "warmup",
    "watch",
    "with_ema",
    "within_prompts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ddpo_core.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Reading a diffusers scheduler configuration; sampling itself never touches a scheduler object."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler

from ddpo_core.diffusion.ddim import Schedule
from ddpo_core.errors import DDPOError


def ddim_scheduler(config: Mapping[str, Any]) -> DDIMScheduler:
    """Make the DDIM scheduler of a pipeline's configuration, whichever scheduler the pipeline was saved with.

    A configuration that does not mention `clip_sample` means no clipping: only DDIM's own class would default to it.

    Raises:
        DDPOError: If the configuration asks for dynamic thresholding, which has no affine form.
    """
    if config.get("thresholding"):
        raise DDPOError(
            "the scheduler asks for thresholding=True, which is not supported: set it to false in its config"
        )
    return DDIMScheduler.from_config({"clip_sample": False, **config})


def ddim_schedule(scheduler: DDIMScheduler, num_steps: int) -> Schedule:
    """Lay `num_steps` sampling steps where diffusers' `DDIMScheduler` lays them.

    The step after `t` is `t - num_train_timesteps // num_steps` for every spacing, and below 0 it is
    `final_alpha_cumprod`: what `DDIMScheduler.step` does, and what the reference's clamp makes unreachable.

    Raises:
        DDPOError: If there are more sampling steps than training timesteps.
    """
    num_train_timesteps = scheduler.config.num_train_timesteps
    if not 1 <= num_steps <= num_train_timesteps:
        raise DDPOError(f"num_steps={num_steps!r}: want 1 to {num_train_timesteps}, the model's training timesteps")
    placed = DDIMScheduler.from_config(scheduler.config)
    placed.set_timesteps(num_steps)
    alphas = placed.alphas_cumprod.double()
    previous = placed.timesteps - num_train_timesteps // num_steps
    previous_alphas = torch.where(previous >= 0, alphas[previous.clamp(min=0)], placed.final_alpha_cumprod.double())
    return Schedule(placed.timesteps, alphas[placed.timesteps], previous_alphas)

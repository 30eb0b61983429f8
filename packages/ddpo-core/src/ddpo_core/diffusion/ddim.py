"""The DDIM sampler with noise (`eta`): where its steps lie, their coefficients, the transition, and the regression.

A scheduler's configuration is read once and becomes a table; sampling itself never touches a scheduler object.
Letters as in Song et al. 2021, "Denoising Diffusion Implicit Models": alpha is the *cumulative* product, the signal is
sqrt(alpha_t), the noise sqrt(1 - alpha_t), and p marks the step that follows in sampling.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo_core.errors import DDPOError
from ddpo_core.types import Timesteps, Transition

_PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class Schedule(NamedTuple):
    """A noise schedule at the steps of a sampler, in the order of sampling.

    Attributes:
        time: What the network is told, in training timesteps.
        alphas: Cumulative alpha on entering each step, in [0, 1).
        previous_alphas: Cumulative alpha on leaving each step, in (0, 1].
    """

    time: Int[Tensor, " steps"]
    alphas: Float[Tensor, " steps"]
    previous_alphas: Float[Tensor, " steps"]


def ddim_scheduler(scheduler: Any) -> Any:
    """Make diffusers' `DDIMScheduler` with the noise schedule of a pipeline's scheduler, whichever it was saved with.

    A configuration that does not mention `clip_sample` means no clipping: only DDIM's own class would default to it.

    Raises:
        DDPOError: If the scheduler describes no chain of noising steps (EDM, flow matching, consistency models), or
            asks for dynamic thresholding, which has no affine form.
    """
    from diffusers import DDIMScheduler  # not above: the toy policy needs no diffusers

    config, name = scheduler.config, type(scheduler).__name__
    flows = config.get("use_flow_sigmas") or config.get("prediction_type", "epsilon") not in _PREDICTION_TYPES
    if DDIMScheduler not in scheduler.compatibles or flows:
        how = f" with prediction_type={config.get('prediction_type')!r}" if flows else ""
        raise DDPOError(
            f"the model's scheduler is a {name}{how}, whose noise is not that of a DDPM: want a model with a scheduler "
            f"of Stable Diffusion 1.x, 2.x or XL (DDIM, DDPM, PNDM, Euler, DPM++) that predicts one of "
            f"{_PREDICTION_TYPES}"
        )
    if config.get("thresholding"):
        raise DDPOError(
            "the scheduler asks for thresholding=True, which is not supported: set it to false in its config"
        )
    return DDIMScheduler.from_config({"clip_sample": False, **config})


def ddim_schedule(scheduler: Any, num_steps: int) -> Schedule:
    """Lay `num_steps` sampling steps where diffusers' `DDIMScheduler` lays them.

    The step after `t` is `t - num_train_timesteps // num_steps` for every spacing, and below 0 it is
    `final_alpha_cumprod`: what `DDIMScheduler.step` does, and what the reference's clamp makes unreachable.

    Args:
        scheduler: What `ddim_scheduler` returned; it is not changed.
        num_steps: From 1 to its training timesteps.

    Raises:
        DDPOError: If `num_steps` is out of range.
    """
    num_train_timesteps = scheduler.config.num_train_timesteps
    if not 1 <= num_steps <= num_train_timesteps:
        raise DDPOError(f"num_steps={num_steps!r}: want 1 to {num_train_timesteps}, the model's training timesteps")
    placed = type(scheduler).from_config(scheduler.config)
    placed.set_timesteps(num_steps)
    alphas = placed.alphas_cumprod.double()
    previous = placed.timesteps - num_train_timesteps // num_steps
    previous_alphas = torch.where(previous >= 0, alphas[previous.clamp(min=0)], placed.final_alpha_cumprod.double())
    return Schedule(placed.timesteps, alphas[placed.timesteps], previous_alphas)


def warn_of_a_stub(scheduler: Any, num_steps: int) -> None:
    """Warn where the last of `num_steps` steps stops just short of the schedule's end, and name counts where none does.

    With timesteps spaced from the end ("trailing"), 6 steps of 1000 are 166.67 apart, and rounding leaves the last at
    timestep 0 instead of the end. It goes nearly all the way with nearly no noise (its std is 0.03, that of the step
    before 0.4), so its log-probabilities are many times as steep as those of all others: they hit the clip range, take
    most of the gradient, and training hardly learns.

    Warns:
        UserWarning: Where `num_steps` is such a number and another is not.
    """
    if not _has_a_stub(scheduler, num_steps):
        return
    counts = range(1, scheduler.config.num_train_timesteps + 1)
    fewer = next((count for count in reversed(counts[: num_steps - 1]) if not _has_a_stub(scheduler, count)), None)
    more = next((count for count in counts[num_steps:] if not _has_a_stub(scheduler, count)), None)
    better = " or ".join(str(count) for count in (fewer, more) if count is not None)
    warnings.warn(
        f"num_steps={num_steps} divides the {len(counts)} training timesteps so that the last step stops just short of "
        f"their end, nearly without noise: drawing is fine, training hardly learns; want num_steps={better}",
        stacklevel=2,
    )


def ddim_timesteps(schedule: Schedule, *, prediction_type: str, eta: float) -> Timesteps:
    r"""Build the coefficients of DDIM sampling, in float64, stored as float32.

        std   = eta sqrt((1 - alpha_p) / (1 - alpha_t)) sqrt(1 - alpha_t / alpha_p)
        mean  = sqrt(alpha_p) clean + sqrt(1 - alpha_p - std^2) noise

    where `clean` and `noise` are the linear functions of latents and network output that `prediction_type` implies.

    Args:
        schedule: Where the steps lie.
        prediction_type: What the network was trained to output: `"epsilon"`, `"sample"` or `"v_prediction"`.
        eta: How much noise, from 0 (deterministic: nothing to train) to 1 (as DDPM's posterior).

    Raises:
        ValueError: If `eta` is outside [0, 1] (beyond it the variance exceeds what the step can hold), the prediction
            type is unknown, or epsilon is predicted where no signal is left (alpha 0).

    Example:
        >>> alphas = torch.tensor([0.36, 0.64], dtype=torch.float64)
        >>> schedule = Schedule(torch.tensor([2, 1]), alphas, torch.tensor([0.64, 1.0], dtype=torch.float64))
        >>> ddim_timesteps(schedule, prediction_type="epsilon", eta=1.0).std
        tensor([0.4961, 0.0000])

    Source: Song et al. 2021, equations 12 and 16; ddpo-pytorch, `ddim_with_logprob.py`; diffusers,
        `DDIMScheduler.step`.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta!r}: want a number from 0 (deterministic, nothing to train) to 1")
    alphas, previous = schedule.alphas.double(), schedule.previous_alphas.double()
    std = eta * ((1 - previous) / (1 - alphas) * (1 - alphas / previous)).sqrt()
    clean, noise = _clean_and_noise(prediction_type, alphas.sqrt(), (1 - alphas).sqrt())
    clean_weight, noise_weight = previous.sqrt(), (1 - previous - std.square()).clamp(min=0).sqrt()
    return Timesteps(
        schedule.time,
        (clean_weight * clean[0] + noise_weight * noise[0]).float(),
        (clean_weight * clean[1] + noise_weight * noise[1]).float(),
        clean[0].float(),
        clean[1].float(),
        clean_weight.float(),
        std.float(),
    )


def ddim_transition(
    latents: Float[Tensor, "batch ..."],
    output: Float[Tensor, "batch ..."],
    step: Timesteps,
    *,
    clip_range: float | None = None,
) -> Transition:
    """Turn the network's output into the Gaussian of the next latents, in float32.

    Args:
        latents: What the network saw.
        output: What it said.
        step: One row of coefficients per sample.
        clip_range: Clip the predicted clean latents to plus or minus this, as pixel models do; None for latent models.

    Example:
        >>> step = Timesteps(torch.tensor([1]), *(torch.tensor([value]) for value in (2.0, 3.0, 1.0, 0.0, 1.0, 0.5)))
        >>> ddim_transition(torch.ones(1, 1), torch.ones(1, 1), step).mean
        tensor([[5.]])
        >>> ddim_transition(torch.ones(1, 1), torch.ones(1, 1), step, clip_range=0.5).mean
        tensor([[4.5000]])

    Source: diffusers, `DDIMScheduler.step` without `use_clipped_model_output`.
    """
    shape = (-1, *[1] * (latents.ndim - 1))
    exact, exact_output = latents.float(), output.float()
    rows = [coefficient.view(shape) for coefficient in step[1:]]
    latent_weight, output_weight, clean_latent_weight, clean_output_weight, clean_weight, std = rows
    mean = latent_weight * exact + output_weight * exact_output
    if clip_range is not None:
        clean = clean_latent_weight * exact + clean_output_weight * exact_output
        mean = mean + clean_weight * (clean.clamp(-clip_range, clip_range) - clean)
    return Transition(mean, std)


def denoising_error(
    predict: Callable[[Tensor], Tensor],
    clean: Float[Tensor, "batch ..."],
    noise: Float[Tensor, "batch ..."],
    time: Int[Tensor, " batch"],
    *,
    alphas: Float[Tensor, " times"],
    prediction_type: str,
) -> Float[Tensor, " batch"]:
    r"""Measure how well a network denoises: its mean squared error per sample, in float32.

        x_t = sqrt(alpha_t) clean + sqrt(1 - alpha_t) noise;     mean over dimensions of (predict(x_t) - target)^2

    The regression that diffusion models are pretrained with, for objectives without log-probabilities.

    Args:
        predict: The network's output at noisy latents.
        clean: Clean latents.
        noise: Standard normal noise.
        time: The training timestep of every sample.
        alphas: Cumulative alpha of every training timestep, on the device of the latents.
        prediction_type: What the target is: `"epsilon"`, `"sample"` or `"v_prediction"`.

    Example:
        >>> zero = torch.zeros(1, 2)
        >>> denoising_error(lambda noisy: zero, zero, torch.tensor([[1.0, 3.0]]), torch.tensor([0]),
        ...                 alphas=torch.tensor([0.5]), prediction_type="epsilon")
        tensor([5.])

    Source: Ho et al. 2020, equation 14; Salimans & Ho 2022 for v = sqrt(alpha) noise - sqrt(1 - alpha) clean.
    """
    shape = (-1, *[1] * (clean.ndim - 1))
    signal, scale = alphas[time].sqrt().view(shape), (1 - alphas[time]).sqrt().view(shape)
    targets = {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - scale * clean}
    error = predict(signal * clean + scale * noise).float() - targets[prediction_type].float()
    return error.square().flatten(1).mean(1)


def _has_a_stub(scheduler: Any, num_steps: int) -> bool:
    schedule = ddim_schedule(scheduler, num_steps)
    std = ddim_timesteps(schedule, prediction_type="v_prediction", eta=1.0).std
    stops_short = bool(schedule.previous_alphas[-1] < scheduler.final_alpha_cumprod)
    return stops_short and num_steps > 1 and bool(std[-1] < std[-2] / 2)


def _clean_and_noise(prediction_type: str, signal: Tensor, noise: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Give the weights of (latents, output) in the predicted clean latents, and in the predicted noise."""
    zero, one = torch.zeros_like(signal), torch.ones_like(signal)
    if prediction_type == "epsilon":
        if not signal.all():
            raise ValueError("the schedule ends without signal, where epsilon says nothing: use v_prediction or sample")
        return (1 / signal, -noise / signal), (zero, one)
    if prediction_type == "sample":
        return (zero, one), (1 / noise, -signal / noise)
    if prediction_type == "v_prediction":
        return (signal, -noise), (noise, signal)
    raise ValueError(f"prediction_type={prediction_type!r}: want 'epsilon', 'sample' or 'v_prediction'")

"""The DDIM sampler with noise (`eta`), as a table of coefficients and an affine function.

Letters as in Song et al. 2021, "Denoising Diffusion Implicit Models": alpha is the *cumulative* product, the signal is
sqrt(alpha_t), the noise sqrt(1 - alpha_t), and p marks the step that follows in sampling.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo_core.types import Timesteps, Transition


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

"""The regression that diffusion models are pretrained with, for objectives without log-probabilities."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor


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

    Args:
        predict: The network's output at noisy latents.
        clean: Clean latents.
        noise: Standard normal noise.
        time: The training timestep of every sample.
        alphas: Cumulative alpha of every training timestep, on the device of the latents.
        prediction_type: What the target is: `"epsilon"`, `"sample"` or `"v_prediction"`.

    Example:
        >>> import torch
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

"""The objectives as pure functions of log-probabilities, advantages and rewards.

All take one entry per trained (sample, step) and return the mean; minimising it raises the reward. `log_probs` are
means over the latent dimensions (`ddpo_core.sampling.transition_log_prob`), which `clip_range` presumes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.types import Metrics


def ddpo_sf_loss(
    log_probs: Float[Tensor, " batch"], old_log_probs: Float[Tensor, " batch"], advantages: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, ""], Metrics]:
    """Score-function policy gradient (REINFORCE): unbiased only for samples of the current parameters.

        -mean(advantages * log_probs)

    Use one update per epoch: there is no correction for older samples. `old_log_probs` serve the metrics alone.

    Example:
        >>> loss, _ = ddpo_sf_loss(torch.tensor([-1.0]), torch.tensor([-1.0]), torch.tensor([2.0]))
        >>> loss
        tensor(2.)

    Source: Black et al. 2023, equation of DDPO-SF (section 4.3).
    """
    return -(advantages * log_probs).mean(), _ratio_metrics(log_probs, old_log_probs)


def ddpo_is_loss(
    log_probs: Float[Tensor, " batch"],
    old_log_probs: Float[Tensor, " batch"],
    advantages: Float[Tensor, " batch"],
    *,
    clip_range: float = 1e-4,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Importance-sampled policy gradient with PPO's clipping: several updates per epoch.

        ratio = exp(log_probs - old_log_probs)
        mean(max(-advantages * ratio, -advantages * clip(ratio, 1 - clip_range, 1 + clip_range)))

    At ratio 1 its gradient is that of `ddpo_sf_loss`.

    Example:
        >>> loss, metrics = ddpo_is_loss(torch.tensor([-1.0]), torch.tensor([-1.0]), torch.tensor([2.0]))
        >>> loss, metrics["ratio_mean"]
        (tensor(-2.), tensor(1.))

    Source: Black et al. 2023, equation of DDPO-IS (section 4.3); Schulman et al. 2017, eq. 7; ddpo-pytorch, `train.py`.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    outside = (ratio.detach() - 1).abs() > clip_range
    return loss, {**_ratio_metrics(log_probs, old_log_probs), "clip_fraction": outside.float().mean()}


def rwr_loss(
    denoising_errors: Float[Tensor, " batch"], weights: Float[Tensor, " batch"]
) -> tuple[Float[Tensor, ""], Metrics]:
    """Reward-weighted regression: imitate the samples, the better ones more.

        mean(weights * denoising_errors)

    Args:
        denoising_errors: The regression error of each draw, averaged over latent dimensions.
        weights: How much each counts: dense (`rwr_weights`) or sparse (`sparse_rwr_weights`), averaging 1.

    Example:
        >>> loss, _ = rwr_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 1.5]))
        >>> loss
        tensor(2.5000)

    Source: Black et al. 2023, section 4.2; jannerm/ddpo, `training/diffusion.py`.
    """
    return (weights * denoising_errors).mean(), {"denoising_error": denoising_errors.detach().mean()}


def kl_penalty(
    mean: Float[Tensor, "batch ..."], reference_mean: Float[Tensor, "batch ..."], std: Float[Tensor, "batch ..."]
) -> Float[Tensor, ""]:
    """Closed-form KL divergence of two transitions of equal std, averaged over latent dimensions and the batch.

        mean((mean - reference_mean)^2 / (2 std^2))

    Deterministic dimensions (`std == 0`) contribute 0.

    Example:
        >>> kl_penalty(torch.ones(1, 4), torch.zeros(1, 4), torch.full((1, 1), 0.5))
        tensor(2.)

    Source: Fan et al. 2023 (DPOK), eq. 9; the average over dimensions is ours, to match the log-probabilities.
    """
    deterministic = std == 0
    safe_std = torch.where(deterministic, 1.0, std)
    return torch.where(deterministic, 0.0, (mean - reference_mean).square() / (2 * safe_std.square())).mean()


def _ratio_metrics(log_probs: Tensor, old_log_probs: Tensor) -> Metrics:
    difference = log_probs.detach() - old_log_probs
    return {"approx_kl": 0.5 * difference.square().mean(), "ratio_mean": difference.exp().mean()}

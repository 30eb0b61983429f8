"""The losses as formulas, pure functions of log-probabilities, advantages and weights, and the weights of regression.

All losses take one entry per trained (sample, step) and return the mean; minimising it raises the reward. `log_probs`
are means over the latent dimensions (`ddpo_core.sampling.transition_log_prob`), which `clip_range` presumes.
"""

import torch
from jaxtyping import Float, Num
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

    At ratio 1 its gradient is that of `ddpo_sf_loss`. `clip_fraction` is the share of ratios outside the range,
    `clip_fraction_high` of those above it, `clip_fraction_low` of those below.

    Example:
        >>> loss, metrics = ddpo_is_loss(torch.tensor([-1.0]), torch.tensor([-1.0]), torch.tensor([2.0]))
        >>> loss, metrics["ratio_mean"]
        (tensor(-2.), tensor(1.))

    Source: Black et al. 2023, equation of DDPO-IS (section 4.3); Schulman et al. 2017, eq. 7; ddpo-pytorch, `train.py`.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    moved = ratio.detach() - 1
    high, low = (moved > clip_range).float().mean(), (moved < -clip_range).float().mean()
    clipping = {"clip_fraction": high + low, "clip_fraction_high": high, "clip_fraction_low": low}
    return loss, {**_ratio_metrics(log_probs, old_log_probs), **clipping}


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


def rwr_weights(rewards: Num[Tensor, " batch"], *, inverse_temperature: float = 0.2) -> Float[Tensor, " batch"]:
    """Weigh samples by their exponentiated reward; the weights average 1.

        softmax(inverse_temperature * rewards) * batch

    Args:
        rewards: The rewards of samples that compete with each other: of an epoch, or of one prompt in it.
        inverse_temperature: In units of one over the reward's, at least 0; 0 weighs all alike.

    Example:
        >>> import math
        >>> rwr_weights(torch.tensor([0.0, math.log(3.0)]), inverse_temperature=1.0)
        tensor([0.5000, 1.5000])

    Source: Black et al. 2023, section 4.2 (Peters & Schaal 2007); jannerm/ddpo, `utils/array.py`, where 0.2, called
        temperature, multiplies the rewards as well.
    """
    weights = torch.softmax(inverse_temperature * rewards.double(), 0) * len(rewards)
    return weights.to(torch.float32)


def sparse_rwr_weights(rewards: Num[Tensor, " batch"], *, fraction: float = 0.1) -> Float[Tensor, " batch"]:
    """Keep the best samples and leave out the others; the weights average 1.

        1[rewards >= quantile(rewards, 1 - fraction)] * batch / kept

    Rewards equal to the quantile are kept, so of equal rewards all are.

    Args:
        rewards: The rewards of samples that compete with each other, best of one prompt.
        fraction: How many of them are kept, in (0, 1].

    Example:
        >>> sparse_rwr_weights(torch.tensor([1.0, 4.0, 2.0, 3.0]), fraction=0.5)
        tensor([0., 2., 0., 2.])

    Source: Black et al. 2023, section 4.2; jannerm/ddpo, `pipeline/sample.py` (the 90th percentile of a batch of one
        prompt, interpolated linearly).
    """
    exact = rewards.double()
    kept = exact >= torch.quantile(exact, 1 - fraction)
    return kept.float() * (len(rewards) / kept.sum())


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

"""From scores to the weights of reward-weighted regression: how much of each sample is imitated."""

import torch
from jaxtyping import Float
from torch import Tensor


def rwr_weights(rewards: Float[Tensor, " batch"], *, inverse_temperature: float = 0.2) -> Float[Tensor, " batch"]:
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


def sparse_rwr_weights(rewards: Float[Tensor, " batch"], *, fraction: float = 0.1) -> Float[Tensor, " batch"]:
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

"""Bring your own objective: a loss of log-probabilities, and a rule for what to imitate, beside the built-in ones."""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from ddpo_core import FitConfig, adamw, ddpo_is, fit, init, policy_gradient, regression, toy


def penalised_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A gradient that is held back by a parabola around ratio 1 instead of being clipped.

    mean(-advantages * ratio + (ratio - 1)^2 / (2 * 0.1))
    """
    ratio = torch.exp(log_probs - old_log_probs)
    penalty = (ratio - 1).square() / (2 * 0.1)
    return (penalty - advantages * ratio).mean(), {"penalty": penalty.detach().mean()}


def best_half(prompts: Sequence[str], rewards: Tensor) -> Tensor:
    """Imitate the better half of an epoch and nothing else; weights average 1."""
    kept = (rewards >= rewards.median()).float()
    return kept * len(kept) / kept.sum()


OBJECTIVES = {
    "clipped (DDPO-IS)": ddpo_is(clip_range=0.1),
    "penalised": policy_gradient(penalised_loss),
    "best half": regression(best_half),
}

policy, optimizer = toy.policy(), adamw(3e-3)
config = FitConfig(
    num_steps=10, samples_per_epoch=128, updates_per_epoch=4, sample_batch_size=128, micro_batch_size=512
)
for name, objective in OBJECTIVES.items():
    epochs = fit(
        init(policy, optimizer, seed=0),
        policy=policy,
        optimizer=optimizer,
        reward_fn=toy.reward,
        prompts=["left", "right"],
        objective=objective,
        config=config,
    )
    *_, (_, last) = islice(epochs, 30)
    print(f"{name:20s}  reward {last.metrics['reward_mean']:7.3f}")

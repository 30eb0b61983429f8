"""The conformance test of policies: what `sample_trajectories`, `fit` and exact resume rely on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpo_core.sampling import replay_log_probs, sample_trajectories, stochastic_steps
from ddpo_core.types import Params, Policy, Trajectories


def check_policy(policy: Policy, prompts: Sequence[str], *, num_steps: int = 3, rtol: float = 1e-4) -> None:
    """Check that a policy keeps its promises.

    - Pure: nothing passed in changes, and the same call gives the same values.
    - Replay equals sample: the replayed log-probabilities equal the sampled ones bit for bit.
    - Seeds decide: equal seeds give equal samples whatever is beside them, other seeds give others.
    - Deterministic steps carry no log-probability, the others a finite gradient for every trainable leaf.
    - Trainable leaves, log-probabilities and what is decoded are float32.

    Args:
        policy: The policy to check.
        prompts: At least two different prompts that it understands.
        num_steps: How many steps to sample, at least 2.
        rtol: The tolerance where batches differ, relative to the size of the latents.

    Raises:
        AssertionError: Saying which promise is broken.

    Example:
        >>> from ddpo_core import toy
        >>> check_policy(toy.policy(), ["left", "right"])
    """
    chosen = list(prompts[:2])
    params = {name: leaf.clone() for name, leaf in policy.params.items()}
    sampled = sample_trajectories(policy, params, chosen, num_steps=num_steps, seeds=[0, 1])
    _check_float32(policy, sampled)
    _check_pure(policy, params, sampled, chosen, num_steps)
    _check_seeds(policy, params, sampled, chosen, num_steps, rtol)
    _check_replay(policy, params, sampled)
    _check_gradients(policy, params, sampled)


def _check_float32(policy: Policy, sampled: Trajectories) -> None:
    wrong = [name for name, leaf in policy.params.items() if leaf.dtype != torch.float32]
    assert not wrong, f"trainable leaves must be float32: {wrong[:3]} are not"
    decoded = policy.decode(sampled.latents[:, -1])
    assert decoded.dtype == torch.float32, f"decode must give float32, not {decoded.dtype}"
    assert len(decoded) == len(sampled.prompts), "decode must give one row per sample"


def _check_pure(policy: Policy, params: Params, sampled: Trajectories, prompts: Sequence[str], num_steps: int) -> None:
    again = sample_trajectories(policy, params, prompts, num_steps=num_steps, seeds=[0, 1])
    assert _equal(sampled.latents, again.latents), "the same call gave other latents: something is remembered or drawn"
    changed = [name for name, leaf in params.items() if not leaf.equal(policy.params[name])]
    assert not changed, f"sampling changed the parameters {changed[:3]}"


def _check_seeds(
    policy: Policy, params: Params, sampled: Trajectories, prompts: Sequence[str], num_steps: int, rtol: float
) -> None:
    swapped = sample_trajectories(policy, params, prompts[::-1], num_steps=num_steps, seeds=[1, 0]).latents.flip(0)
    tolerance = rtol * float(sampled.latents.float().abs().max())
    difference = float((swapped.float() - sampled.latents.float()).abs().max())
    assert difference <= tolerance, f"a sample depends on its place in the batch (by {difference:.1e})"
    other = sample_trajectories(policy, params, prompts, num_steps=num_steps, seeds=[2, 3])
    assert not _equal(sampled.latents, other.latents), "other seeds gave the same latents"


def _check_replay(policy: Policy, params: Params, sampled: Trajectories) -> None:
    steps = range(sampled.log_probs.shape[1])
    replayed = replay_log_probs(policy, params, sampled, steps)
    assert replayed.dtype == torch.float32, f"log-probabilities must be float32, not {replayed.dtype}"
    assert _equal(replayed.detach(), sampled.log_probs), "replayed log-probabilities differ from sampled ones"


def _check_gradients(policy: Policy, params: Params, sampled: Trajectories) -> None:
    stochastic = stochastic_steps(sampled.timesteps)
    deterministic = [step for step in range(sampled.log_probs.shape[1]) if step not in stochastic]
    assert not sampled.log_probs[:, deterministic].any(), "a deterministic step has a log-probability"
    if not stochastic:
        return
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    total = replay_log_probs(policy, leaves, sampled, stochastic).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    unused = [name for name, gradient in zip(leaves, gradients, strict=True) if gradient is None]
    assert not unused, f"no gradient reaches {unused[:3]}"
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients), "a gradient is not finite"


def _equal(first: Tensor, second: Tensor) -> bool:
    return bool(torch.equal(first, second))

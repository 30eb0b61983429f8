"""The conformance test of policies: what `sample_trajectories`, `fit`, regression and exact resume rely on."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpo_core.random import gaussian_noise
from ddpo_core.sampling import replay_log_probs, sample_trajectories, stochastic_steps
from ddpo_core.types import Params, Policy, Trajectories


def check_policy(policy: Policy, prompts: Sequence[str], *, num_steps: int = 3, rtol: float = 1e-4) -> None:
    """Check that a policy keeps its promises.

    - Pure: nothing passed in changes, and the same call gives the same values.
    - Replay equals sample: the replayed log-probabilities equal the sampled ones bit for bit.
    - Prompt and seed decide: a sample is the same whatever is beside it, wherever it stands and when it is alone, and
      another for another seed; so is what is decoded of it.
    - Deterministic steps carry no log-probability, the others a finite gradient for every trainable leaf.
    - The denoising error, where there is one: finite and not negative, one per sample whatever is beside it, with a
      finite gradient for every trainable leaf.
    - Trainable leaves, log-probabilities, denoising errors and what is decoded are float32.
    - The fingerprint is a text that stays the same; a LoRA scale is a finite number.

    Args:
        policy: The policy to check.
        prompts: At least two different prompts that it understands.
        num_steps: How many steps to sample, at least 2.
        rtol: The tolerance where batches differ, relative to the size of the values.

    Raises:
        AssertionError: Saying which promise is broken.

    Example:
        >>> from ddpo_core import toy
        >>> check_policy(toy.policy(), ["left", "right"])
    """
    chosen = list(prompts[:2])
    assert len(set(chosen)) == 2, f"got the prompts {chosen}: want two different ones"
    wrong = [name for name, leaf in policy.params.items() if leaf.dtype != torch.float32]
    assert not wrong, f"trainable leaves must be float32: {wrong[:3]} are not"
    fingerprint = policy.fingerprint
    params = {name: leaf.clone() for name, leaf in policy.params.items()}
    sampled = sample_trajectories(policy, params, chosen, num_steps=num_steps, seeds=[0, 1])
    _check_decoded(policy, sampled)
    _check_pure(policy, params, sampled, chosen, num_steps)
    _check_company(policy, params, sampled, chosen, num_steps, rtol)
    _check_replay(policy, params, sampled)
    _check_gradients(policy, params, sampled)
    if policy.denoising_error is not None:
        _check_denoising_error(policy, params, sampled, chosen, rtol)
    _check_identity(policy, fingerprint)


def _check_decoded(policy: Policy, sampled: Trajectories) -> None:
    decoded = policy.decode(sampled.latents[:, -1])
    assert decoded.dtype == torch.float32, f"decode must give float32, not {decoded.dtype}"
    assert len(decoded) == len(sampled.prompts), "decode must give one row per sample"


def _check_pure(policy: Policy, params: Params, sampled: Trajectories, prompts: Sequence[str], num_steps: int) -> None:
    again = sample_trajectories(policy, params, prompts, num_steps=num_steps, seeds=[0, 1])
    assert _equal(sampled.latents, again.latents), "the same call gave other latents: something is remembered or drawn"
    changed = [name for name, leaf in params.items() if not leaf.equal(policy.params[name])]
    assert not changed, f"sampling changed the parameters {changed[:3]}"


def _check_company(
    policy: Policy, params: Params, sampled: Trajectories, prompts: Sequence[str], num_steps: int, rtol: float
) -> None:
    """Sample the first one again in other company: another seed, another prompt, another place, more, and none."""
    first, second = prompts
    companies = [
        ("the seed beside it", [first, second], [0, 5], 0),
        ("the prompt beside it", [first, first], [0, 1], 0),
        ("its place in the batch", [second, first], [1, 0], 1),
        ("the number of samples beside it", [second, second, first], [3, 4, 0], 2),
        ("not being alone", [first], [0], 0),
    ]
    decoded = policy.decode(sampled.latents[:, -1])
    for what, texts, seeds, place in companies:
        other = sample_trajectories(policy, params, texts, num_steps=num_steps, seeds=seeds)
        _check_close(other.latents[place], sampled.latents[0], rtol, f"a sample depends on {what}")
        # The very same latents: decoding has no part in how they came about.
        beside = other.latents[:, -1].clone()
        beside[place] = sampled.latents[0, -1]
        _check_close(policy.decode(beside)[place], decoded[0], rtol, f"what is decoded of a sample depends on {what}")
    others = sample_trajectories(policy, params, prompts, num_steps=num_steps, seeds=[2, 3]).latents
    assert not _equal(sampled.latents[0], others[0]), "other seeds gave the same latents"
    assert not _equal(sampled.latents[1], others[1]), "other seeds gave the same latents"


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
    _check_reach(replay_log_probs(policy, leaves, sampled, stochastic).sum(), leaves, "the log-probabilities")


def _check_denoising_error(
    policy: Policy, params: Params, sampled: Trajectories, prompts: Sequence[str], rtol: float
) -> None:
    measure = policy.denoising_error
    assert measure is not None
    assert policy.num_train_timesteps > 0, "a policy with a denoising_error needs its num_train_timesteps"
    device = sampled.latents.device
    clean = sampled.latents[:, -1].float()
    noise = gaussian_noise([0, 1], clean.shape[1:]).to(device)
    time = torch.tensor([policy.num_train_timesteps // 2, policy.num_train_timesteps // 3], device=device)
    conditioning = policy.encode(prompts)
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in params.items()}
    errors = measure(leaves, clean, noise, time, conditioning)
    assert errors.shape == (2,), f"denoising_error must give one number per sample, not {tuple(errors.shape)}"
    assert errors.dtype == torch.float32, f"denoising_error must give float32, not {errors.dtype}"
    assert bool(torch.isfinite(errors).all()), "a denoising error is not finite"
    assert bool((errors >= 0).all()), "a denoising error is negative: it is a square"
    _check_reach(errors.sum(), leaves, "the denoising error")
    told = errors.detach()
    with torch.no_grad():
        again = measure(params, clean, noise, time, conditioning)
        # With gradients and without, a network may take other kernels, which round differently.
        _check_close(again, told, rtol, "the same call gave another denoising error: something is remembered or drawn")
        company = gaussian_noise([2, 3], clean.shape[1:]).to(device)
        beside = measure(
            params,
            torch.stack([clean[0], company[0]]),
            torch.stack([noise[0], company[1]]),
            time[[0, 0]],
            policy.encode([prompts[0]] * 2),
        )
        alone = measure(params, clean[:1], noise[:1], time[:1], policy.encode(prompts[:1]))
    _check_close(beside[0], told[0], rtol, "a denoising error depends on the samples beside it")
    _check_close(alone[0], told[0], rtol, "a denoising error depends on not being alone")


def _check_identity(policy: Policy, fingerprint: object) -> None:
    again = policy._replace(params={}).fingerprint
    assert isinstance(fingerprint, str), f"the fingerprint must be a text, not {fingerprint!r}"
    assert again == policy.fingerprint == fingerprint, (
        "the fingerprint changes: it must say what is frozen, and only that"
    )
    scale = policy.lora_scale
    assert scale is None or math.isfinite(scale), f"the LoRA scale must be a finite number or None, not {scale!r}"


def _check_reach(total: Tensor, leaves: Params, what: str) -> None:
    assert total.requires_grad, f"no gradient of {what} reaches any leaf"
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    unused = [name for name, gradient in zip(leaves, gradients, strict=True) if gradient is None]
    assert not unused, f"no gradient of {what} reaches {unused[:3]}"
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients), f"a gradient of {what} is not finite"


def _check_close(found: Tensor, wanted: Tensor, rtol: float, problem: str) -> None:
    difference = float((found.float() - wanted.float()).abs().max())
    assert difference <= rtol * float(wanted.float().abs().max()), f"{problem} (by {difference:.1e})"


def _equal(first: Tensor, second: Tensor) -> bool:
    return bool(torch.equal(first, second))

"""Optimizer updates: the gradients of many micro-batches, averaged, clipped and applied."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.batches import Batch, Pairs, choose_pairs, gather_batch, split_pairs
from ddpo_core.config import FitConfig
from ddpo_core.distributed import SINGLE, Processes
from ddpo_core.errors import NonFiniteError
from ddpo_core.losses import kl_penalty
from ddpo_core.sampling import transition_log_prob
from ddpo_core.types import LossFunction, Metrics, Optimizer, Params, Policy, Progress, TrainState, Trajectories


def train_step(
    state: TrainState,
    trajectories: Trajectories,
    advantages: Float[Tensor, " batch"],
    pairs: Pairs,
    *,
    policy: Policy,
    optimizer: Optimizer,
    loss_fn: LossFunction,
    config: FitConfig,
    progress: Progress | None = None,
    processes: Processes = SINGLE,
) -> tuple[TrainState, Metrics]:
    """Make one optimizer update from the mean loss over `pairs`.

    Args:
        state: The state to update; not changed.
        trajectories: What was sampled, on the policy's device.
        advantages: One per trajectory, clipped already.
        pairs: The (sample, step) pairs to train, on the policy's device (`choose_pairs`).
        policy: The policy that was sampled.
        optimizer: The optimizer of the state.
        loss_fn: For instance `ddpo_is_loss`.
        config: Its `micro_batch_size`, `max_grad_norm` and `kl_weight` are used.
        progress: Told after every micro-batch.
        processes: The processes whose gradients are averaged; every one of them brings equally many pairs.

    Returns:
        The new state, and the metrics as scalar tensors on the device: nothing here waits for it.

    Example:
        >>> from ddpo_core import adamw, ddpo_sf_loss, init, sample_trajectories, toy
        >>> policy, optimizer = toy.policy(), adamw(1e-3)
        >>> state = init(policy, optimizer, seed=0)
        >>> sampled = sample_trajectories(policy, state.params, ["left", "right"], num_steps=4, seeds=[0, 1])
        >>> pairs = Pairs(torch.tensor([0, 1]), torch.tensor([0, 2]))
        >>> trained, metrics = train_step(state, sampled, torch.tensor([1.0, -1.0]), pairs, policy=policy,
        ...                               optimizer=optimizer, loss_fn=ddpo_sf_loss, config=FitConfig())
        >>> sorted(metrics)
        ['approx_kl', 'grad_norm', 'loss', 'ratio_mean']
    """
    total = len(pairs.samples)
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in state.params.items()}
    gradients: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in state.params.values()]
    metrics: Metrics = {}
    done = 0
    for part in split_pairs(pairs, config.micro_batch_size):
        batch, share = gather_batch(trajectories, advantages, part), len(part.samples) / total
        loss, logged = _loss(policy, leaves, batch, loss_fn, config.kl_weight)
        partial = torch.autograd.grad(loss * share, list(leaves.values()), materialize_grads=True)
        gradients = [gradient + more for gradient, more in zip(gradients, partial, strict=True)]
        metrics = _add(metrics, {"loss": loss.detach(), **logged}, share)
        done += len(part.samples)
        if progress is not None:
            progress("training", done, total)
    clipped, grad_norm = _clip(processes.average(gradients), config.max_grad_norm)
    params, opt_state = optimizer.update(dict(zip(leaves, clipped, strict=True)), state.opt_state, state.params)
    return replace(state, params=params, opt_state=opt_state), {**metrics, "grad_norm": grad_norm}


def choose_updates(
    steps: Sequence[int], owned: Sequence[int], *, seed: int, epoch: int, config: FitConfig
) -> tuple[Pairs, ...]:
    """Choose the pairs of every update of an epoch; samples are independent, so updates take them in order.

    Args:
        steps: The steps that can be trained.
        owned: The global index of every trajectory of this process.
        seed: The seed of the run.
        epoch: The epoch, from 0.
        config: Its `updates_per_epoch` and `timestep_fraction` are used.

    Example:
        >>> config = FitConfig(samples_per_epoch=4, updates_per_epoch=2)
        >>> [pairs.samples.tolist() for pairs in choose_updates([0], range(4), seed=0, epoch=0, config=config)]
        [[0, 1], [2, 3]]
    """
    share = len(owned) // config.updates_per_epoch
    return tuple(
        choose_pairs(
            range(start, start + share),
            steps,
            fraction=config.timestep_fraction,
            seed=seed,
            epoch=epoch,
            indices=owned[start : start + share],
        )
        for start in range(0, len(owned), share)
    )


def train_updates(
    state: TrainState,
    trajectories: Trajectories,
    advantages: Tensor,
    updates: Sequence[Pairs],
    *,
    policy: Policy,
    optimizer: Optimizer,
    loss_fn: LossFunction,
    config: FitConfig,
    progress: Progress | None = None,
    processes: Processes = SINGLE,
) -> tuple[TrainState, Mapping[str, float]]:
    """Make one update after the other from the pairs of each, and average their metrics on the host.

    The other arguments are those of `train_step`; `advantages` and pairs may be on any device.

    Raises:
        NonFiniteError: If a metric or a parameter is NaN or infinite.
    """
    device = trajectories.latents.device
    on_device = advantages.to(device, non_blocking=True)
    logged = []
    for update, pairs in enumerate(updates):
        state, metrics = train_step(
            state,
            trajectories,
            on_device,
            Pairs(*(index.to(device, non_blocking=True) for index in pairs)),
            policy=policy,
            optimizer=optimizer,
            loss_fn=loss_fn,
            config=config,
            progress=None if progress is None else _offset(progress, update, len(updates)),
            processes=processes,
        )
        logged.append(metrics)
    return state, _check_finite(state, _read(logged, processes))


def _loss(
    policy: Policy, leaves: Params, batch: Batch, loss_fn: LossFunction, kl_weight: float
) -> tuple[Tensor, Metrics]:
    transition = policy.transition(leaves, batch.latents, batch.step, batch.conditioning)
    log_probs = transition_log_prob(transition, batch.next_latents)
    loss, metrics = loss_fn(log_probs, batch.old_log_probs, batch.advantages)
    if kl_weight == 0:
        return loss, metrics
    with torch.no_grad():
        reference = policy.transition(policy.params, batch.latents, batch.step, batch.conditioning)
    kl = kl_penalty(transition.mean, reference.mean, transition.std)
    return loss + kl_weight * kl, {**metrics, "kl": kl.detach()}


def _add(totals: Mapping[str, Tensor], metrics: Mapping[str, Tensor], share: float) -> Metrics:
    return {name: totals.get(name, 0.0) + share * value for name, value in metrics.items()}


def _clip(gradients: Sequence[Tensor], max_norm: float) -> tuple[Sequence[Tensor], Tensor]:
    """Scale gradients down to `max_norm` where they are larger; NaN stays NaN, so that it is noticed."""
    norm = torch.nn.utils.get_total_norm(gradients)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return [gradient * scale for gradient in gradients], norm


def _offset(progress: Progress, update: int, updates: int) -> Progress:
    def report(phase: str, done: int, total: int, /) -> None:
        progress(phase, update * total + done, updates * total)

    return report


def _read(logged: Sequence[Metrics], processes: Processes) -> dict[str, float]:
    """Average metrics over updates and processes, and bring them to the host: the only wait of the phase."""
    names = list(logged[0])
    table = torch.stack([torch.stack([metrics[name].float() for name in names]) for metrics in logged]).mean(0)
    return dict(zip(names, processes.average([table])[0].tolist(), strict=True))


def _check_finite(state: TrainState, metrics: Mapping[str, float]) -> Mapping[str, float]:
    """Stop aloud: NaN weights draw black images, which some rewards like."""
    norm = torch.nn.utils.get_total_norm(list(state.params.values())).item()
    broken = [name for name, value in {**metrics, "parameters": norm}.items() if not math.isfinite(value)]
    if broken:
        raise NonFiniteError(
            f"epoch {state.epoch + 1}: {', '.join(broken)} stopped being finite in training; the state before it is "
            "intact: go on from the last checkpoint with a lower learning rate, or use dtype float32"
        )
    return metrics

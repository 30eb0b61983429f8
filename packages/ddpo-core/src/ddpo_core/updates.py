"""Optimizer updates: the gradients of many micro-batches, averaged, clipped and applied."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo_core.config import FitConfig
from ddpo_core.distributed import SINGLE, Processes
from ddpo_core.errors import NonFiniteError
from ddpo_core.objectives import Minibatch, Objective
from ddpo_core.randomness import shuffled_minibatches
from ddpo_core.rows import map_rows, split_rows
from ddpo_core.types import Metrics, Optimizer, Policy, Progress, Rows, TrainState, Trajectories


def train_step(
    state: TrainState,
    trajectories: Trajectories,
    advantages: Float[Tensor, " batch"],
    rows: Rows,
    *,
    policy: Policy,
    optimizer: Optimizer,
    objective: Objective,
    micro_batch_size: int,
    max_grad_norm: float,
    progress: Progress | None = None,
    processes: Processes = SINGLE,
) -> tuple[TrainState, Metrics]:
    """Make one optimizer update from the mean loss over `rows`.

    Args:
        state: The state to update; not changed.
        trajectories: What was sampled, on the policy's device.
        advantages: One per trajectory, as `objective.weigh` gives them.
        rows: What to train, on the policy's device, as `objective.choose` gives it: `Pairs` of (sample, step) for a
            policy gradient, `Draws` for regression.
        policy: The policy that was sampled.
        optimizer: The optimizer of the state.
        objective: For instance `ddpo_is()`.
        micro_batch_size: Rows in one forward and backward pass.
        max_grad_norm: A gradient of a larger norm is scaled down to it.
        progress: Told after every micro-batch.
        processes: The processes whose gradients are averaged, all with equal weight.

    Returns:
        The new state, and the metrics as scalar tensors on the device: nothing here waits for it.

    Example:
        >>> from ddpo_core import Pairs, adamw, ddpo_sf, init, sample_trajectories, toy
        >>> policy, optimizer = toy.policy(), adamw(1e-3)
        >>> state = init(policy, optimizer, seed=0)
        >>> sampled = sample_trajectories(policy, state.params, ["left", "right"], num_steps=4, seeds=[0, 1])
        >>> pairs = Pairs(torch.tensor([0, 1]), torch.tensor([0, 2]))
        >>> trained, metrics = train_step(state, sampled, torch.tensor([1.0, -1.0]), pairs, policy=policy,
        ...                               optimizer=optimizer, objective=ddpo_sf(), micro_batch_size=8,
        ...                               max_grad_norm=1.0)
        >>> sorted(metrics)
        ['approx_kl', 'grad_norm', 'loss', 'ratio_mean']
    """
    total = len(rows[0])
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in state.params.items()}
    gradients: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in state.params.values()]
    metrics: Metrics = {}
    done = 0
    for part in split_rows(rows, micro_batch_size):
        share = len(part[0]) / total
        loss, logged = objective.loss(policy, leaves, trajectories, advantages, part)
        partial = torch.autograd.grad(loss * share, list(leaves.values()), materialize_grads=True)
        gradients = [gradient + more for gradient, more in zip(gradients, partial, strict=True)]
        metrics = _add(metrics, {"loss": loss.detach(), **logged}, share)
        done += len(part[0])
        if progress is not None:
            progress("training", done, total)
    clipped, grad_norm = _clip(processes.average(gradients), max_grad_norm)
    params, opt_state = optimizer.update(dict(zip(leaves, clipped, strict=True)), state.opt_state, state.params)
    return replace(state, params=params, opt_state=opt_state), {**metrics, "grad_norm": grad_norm}


def choose_updates(
    objective: Objective,
    policy: Policy,
    trajectories: Trajectories,
    advantages: Float[Tensor, " batch"],
    *,
    seed: int,
    epoch: int,
    config: FitConfig,
    processes: Processes = SINGLE,
) -> Iterator[Rows]:
    """Choose the rows of every update of an epoch, one after the other.

    A prompt's samples stand side by side, so every pass mixes them (`shuffled_minibatches`).

    Args:
        objective: What is trained.
        policy: The policy that was sampled.
        trajectories: What was sampled.
        advantages: One per trajectory, on the CPU.
        seed: The seed of the run.
        epoch: The epoch, from 0.
        config: Its `samples_per_epoch`, `updates_per_epoch` and `passes_per_epoch` are used.
        processes: The processes that share every update.

    Example:
        >>> from ddpo_core import ddpo_is, sample_trajectories, toy
        >>> policy = toy.policy()
        >>> sampled = sample_trajectories(policy, policy.params, ["left"] * 4, num_steps=2, seeds=range(4))
        >>> updates = choose_updates(ddpo_is(), policy, sampled, torch.ones(4), seed=0, epoch=0,
        ...                          config=FitConfig(num_steps=2, samples_per_epoch=4, updates_per_epoch=2))
        >>> sorted(sample for pairs in updates for sample in pairs.samples.tolist())
        [0, 1, 2, 3]
    """
    for pass_index in range(config.passes_per_epoch):
        minibatches = shuffled_minibatches(
            config.samples_per_epoch, config.updates_per_epoch, seed=seed, epoch=epoch, pass_index=pass_index
        )
        rows = {index: row for row, index in enumerate(processes.owned(minibatches))}
        for indices in processes.share(minibatches).tolist():
            minibatch = Minibatch([rows[index] for index in indices], indices, seed, epoch, pass_index)
            yield objective.choose(policy, trajectories, advantages, minibatch)


def train_updates(
    state: TrainState,
    trajectories: Trajectories,
    advantages: Tensor,
    updates: Iterable[Rows],
    *,
    policy: Policy,
    optimizer: Optimizer,
    objective: Objective,
    config: FitConfig,
    progress: Progress | None = None,
    processes: Processes = SINGLE,
) -> tuple[TrainState, Mapping[str, float]]:
    """Make one update after the other from the rows of each, and average their metrics on the host.

    The other arguments are those of `train_step`; `advantages` and rows may be on any device.

    Raises:
        NonFiniteError: If a metric or a parameter is NaN or infinite.
    """
    device = trajectories.latents.device
    on_device = advantages.to(device, non_blocking=True)
    total = config.updates_per_epoch * config.passes_per_epoch
    logged = []
    for update, rows in enumerate(updates):
        state, metrics = train_step(
            state,
            trajectories,
            on_device,
            map_rows(lambda tensor: tensor.to(device, non_blocking=True), rows),
            policy=policy,
            optimizer=optimizer,
            objective=objective,
            micro_batch_size=config.micro_batch_size,
            max_grad_norm=config.max_grad_norm,
            progress=None if progress is None else _offset(progress, update, total),
            processes=processes,
        )
        logged.append(metrics)
    return state, _check_finite(state, _read(logged, processes))


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

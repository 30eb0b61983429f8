"""The training loop as pure functions, on one page: a state goes in, a new state and what happened come out.

An epoch draws prompts, rolls out, scores, weighs, and makes one train step of each minibatch. Everything that it calls
is public, for loops of your own.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpo_core.advantages import share_without_spread
from ddpo_core.config import FitConfig
from ddpo_core.constraints import Constraints, Weighed, measure, weigh_constraints
from ddpo_core.distributed import SINGLE, Processes
from ddpo_core.errors import DDPOError, NonFiniteError
from ddpo_core.objectives import Minibatch, Objective
from ddpo_core.prompts import PromptSet, as_prompt_set, pick_prompts
from ddpo_core.random import sample_seeds, shuffled_minibatches
from ddpo_core.sampling import (
    Rollout,
    draw_prompts,
    encode_once,
    map_rows,
    roll_out,
    split_rows,
    stochastic_steps,
    to_device,
)
from ddpo_core.types import (
    EpochInfo,
    Kept,
    Metrics,
    Optimizer,
    Policy,
    Progress,
    RewardFunction,
    Rows,
    TrainState,
    Trajectories,
)


def init(policy: Policy, optimizer: Optimizer, *, seed: int) -> TrainState:
    """Make the state before the first epoch.

    Args:
        policy: The policy to train; its `params` are where training starts.
        optimizer: The optimizer that `fit` will use.
        seed: The seed of the run, at least 0.

    Raises:
        ValueError: If `seed` is negative, or a trainable leaf is not float32 (half-precision masters lose updates).

    Example:
        >>> from ddpo_core import adamw, toy
        >>> init(toy.policy(), adamw(1e-3), seed=0).epoch
        0
    """
    if seed < 0:
        raise ValueError(f"seed={seed!r}: want at least 0")
    halves = [f"{name} ({leaf.dtype})" for name, leaf in policy.params.items() if leaf.dtype != torch.float32]
    if halves:
        raise ValueError(f"trainable leaves must be float32, whatever the compute dtype; got {', '.join(halves[:3])}")
    params = {name: leaf.detach().clone() for name, leaf in policy.params.items()}
    return TrainState(params, optimizer.init(params), {}, seed)


def fit(
    state: TrainState,
    *,
    policy: Policy,
    optimizer: Optimizer,
    reward_fn: RewardFunction,
    prompts: PromptSet | Sequence[str],
    objective: Objective,
    config: FitConfig,
    constraints: Constraints | None = None,
    progress: Progress | None = None,
    processes: Processes = SINGLE,
) -> Iterator[tuple[TrainState, EpochInfo]]:
    """Train without end: every item is the state after one more epoch, and what happened in it.

    The caller's loop logs, saves and stops; `itertools.islice` bounds it. Nothing is remembered between epochs but
    the state (and encoded prompts), so going on from a saved state gives the same numbers.

    Args:
        state: Where to go on from: `init(...)`, or what `load_checkpoint` returned.
        policy: The policy; what is sampled is what is trained.
        optimizer: As given to `init`.
        reward_fn: `(images, prompts, metadata) -> (scores, info)`.
        prompts: What to draw prompts from.
        objective: What training does with scored samples, for instance `ddpo_is(clip_range=1e-4)` or `rwr()`.
        config: How an epoch is sampled and trained.
        constraints: What must not fall while the reward rises.
        progress: Called as `(phase, done, total)` within an epoch.
        processes: The processes that share the work.

    Raises:
        DDPOError: If the objective or the configuration does not fit the policy or the processes.
        NonFiniteError: If images, loss, gradients or parameters stop being finite; the last state given out is intact.
        ScoreError: If the reward does not return one finite score per image.

    Example:
        >>> from itertools import islice
        >>> from ddpo_core import FitConfig, adamw, ddpo_is, toy
        >>> policy, optimizer = toy.policy(), adamw(1e-3)
        >>> epochs = fit(init(policy, optimizer, seed=0), policy=policy, optimizer=optimizer, reward_fn=toy.reward,
        ...              prompts=["right"], objective=ddpo_is(), config=FitConfig(num_steps=4))
        >>> [info.epoch for _, info in islice(epochs, 2)]
        [1, 2]

    Source: Black et al. 2023, algorithm 1 in the appendix; ddpo-pytorch, `train.py`.
    """
    remembering = policy._replace(encode=encode_once(policy.encode))
    while True:
        state, info = train_epoch(
            state,
            policy=remembering,
            optimizer=optimizer,
            reward_fn=reward_fn,
            prompts=prompts,
            objective=objective,
            config=config,
            constraints=constraints,
            progress=progress,
            processes=processes,
        )
        yield state, info


def train_epoch(
    state: TrainState,
    *,
    policy: Policy,
    optimizer: Optimizer,
    reward_fn: RewardFunction,
    prompts: PromptSet | Sequence[str],
    objective: Objective,
    config: FitConfig,
    constraints: Constraints | None = None,
    progress: Progress | None = None,
    processes: Processes = SINGLE,
) -> tuple[TrainState, EpochInfo]:
    """Sample, score and update once; arguments and errors are those of `fit`."""
    _check(policy, objective, config, processes)
    samples, updates, passes = config.samples_per_epoch, config.updates_per_epoch, config.passes_per_epoch
    owned = _owned(samples, updates, state, processes)
    # Of the whole epoch, of all processes; consecutive samples share a prompt where they form a group.
    groups = [index // config.samples_per_prompt for index in range(samples)]
    drawn = draw_prompts(as_prompt_set(prompts), seed=state.seed, epoch=state.epoch, indices=groups)
    seeds = sample_seeds(state.seed, state.epoch, owned[processes.rank])
    rollout = roll_out(
        policy,
        state.params,
        reward_fn,
        pick_prompts(drawn, owned[processes.rank]),
        seeds=seeds,
        num_steps=config.num_steps,
        batch_size=config.sample_batch_size,
        reward_workers=config.reward_workers,
        steps=None if constraints else _kept_steps(policy, objective, config, state.epoch),
        progress=progress,
    )
    scores = _in_global_order(processes.gather(rollout.scores), owned)
    began = time.perf_counter()
    weighed = _weigh(state, constraints, rollout, seeds, scores, owned, processes)
    remembered, of_all = objective.weigh(state.objective_state, drawn.prompts, weighed.scores)
    advantages, trajectories = of_all[list(owned[processes.rank])], rollout.trajectories
    start, cpu_start = time.perf_counter(), time.process_time()
    device, trained = trajectories.latents.device, state
    on_device = to_device(advantages, device)
    logged: list[Metrics] = []
    for minibatch in minibatches(
        samples, updates, passes=passes, seed=state.seed, epoch=state.epoch, processes=processes
    ):
        rows = objective.choose(policy, trajectories, advantages, minibatch)
        trained, metrics = train_step(
            trained,
            trajectories,
            on_device,
            map_rows(partial(to_device, device=device), rows),
            policy=policy,
            optimizer=optimizer,
            objective=objective,
            micro_batch_size=config.micro_batch_size,
            max_grad_norm=config.max_grad_norm,
            progress=None if progress is None else _offset(progress, len(logged), updates * passes),
            processes=processes,
        )
        logged.append(metrics)
    told = _read(trained, logged, trajectories.stochastic, processes)
    seconds = {"seconds_constraints": start - began} if constraints else {}
    seconds |= {
        "seconds_training": time.perf_counter() - start,
        "seconds_training_cpu": time.process_time() - cpu_start,
    }
    told = {**told, **seconds}
    spreadless = share_without_spread(drawn.prompts, scores)
    told |= {} if spreadless is None else {"prompts_without_spread": spreadless}
    after = replace(
        trained,
        objective_state=remembered,
        constraint_state=weighed.state,
        epoch=state.epoch + 1,
        queries=state.queries + samples,
    )
    return after, _describe(after, rollout, owned[processes.rank], scores, advantages, weighed.kept, told)


def minibatches(
    samples: int, updates: int, *, passes: int = 1, seed: int, epoch: int, processes: Processes = SINGLE
) -> Iterator[Minibatch]:
    """Deal the samples of an epoch into minibatches, mixed anew in every pass, and give this process its part of each.

    A prompt's samples stand side by side, so that without mixing an update would see few prompts. A process owns the
    same samples in every pass, sampled in ascending order of their index, and an equal part of every minibatch.

    Args:
        samples: How many samples an epoch has, over all processes.
        updates: How many updates a pass makes of them.
        passes: How often the samples are trained on.
        seed: The seed of the run.
        epoch: The epoch, from 0.
        processes: The processes that share every update.

    Example:
        >>> first, second = minibatches(4, 2, seed=0, epoch=0)
        >>> sorted([*first.samples, *second.samples])
        [0, 1, 2, 3]
    """
    for pass_index in range(passes):
        dealt = shuffled_minibatches(samples, updates, seed=seed, epoch=epoch, pass_index=pass_index)
        own = _columns(dealt, processes.rank, processes.size)
        places = {index: place for place, index in enumerate(sorted(own.flatten().tolist()))}
        for indices in own.tolist():
            yield Minibatch([places[index] for index in indices], indices, seed, epoch, pass_index)


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
        The new state, and the metrics as tensors on the device: nothing here waits for it.

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
        ['approx_kl', 'grad_norm', 'log_prob_change', 'loss', 'ratio_mean']
    """
    total = len(rows[0])
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in state.params.items()}
    gradients = [torch.zeros_like(leaf) for leaf in state.params.values()]
    metrics: Metrics = {}
    done = 0
    for part in split_rows(rows, micro_batch_size):
        share = len(part[0]) / total
        loss, logged = objective.loss(policy, leaves, trajectories, advantages, part)
        more = torch.autograd.grad(loss * share, list(leaves.values()), materialize_grads=True)
        torch._foreach_add_(gradients, more)
        metrics = _add(metrics, {"loss": loss.detach(), **logged}, share)
        done += len(part[0])
        if progress is not None:
            progress("training", done, total)
    clipped, grad_norm = _clip(processes.average(gradients), max_grad_norm)
    params, opt_state = optimizer.update(dict(zip(leaves, clipped, strict=True)), state.opt_state, state.params)
    return replace(state, params=params, opt_state=opt_state), {**metrics, "grad_norm": grad_norm}


def _check(policy: Policy, objective: Objective, config: FitConfig, processes: Processes) -> None:
    objective.check(policy, config)
    shares = config.updates_per_epoch * processes.size
    if config.samples_per_epoch % shares:
        raise DDPOError(
            f"samples_per_epoch={config.samples_per_epoch} cannot be shared by {config.updates_per_epoch} updates on "
            f"{processes.size} processes: want a multiple of {shares}"
        )


def _kept_steps(policy: Policy, objective: Objective, config: FitConfig, epoch: int) -> range:
    """Give what is sampled of an epoch to be trained; what constraints measure may need all."""
    steps = objective.steps(stochastic_steps(policy.timesteps(config.num_steps)), epoch)
    return range(min(steps), max(steps) + 1) if steps else range(0)


def _columns(dealt: Int[np.ndarray, "updates columns"], rank: int, size: int) -> Int[np.ndarray, "updates own"]:
    return np.split(dealt, size, axis=1)[rank]


def _owned(samples: int, updates: int, state: TrainState, processes: Processes) -> Sequence[Sequence[int]]:
    """List the global indices that each process samples, ascending."""
    dealt = shuffled_minibatches(samples, updates, seed=state.seed, epoch=state.epoch)
    return [sorted(_columns(dealt, rank, processes.size).flatten().tolist()) for rank in range(processes.size)]


def _in_global_order(gathered: Float[Tensor, "processes own"], owned: Sequence[Sequence[int]]) -> Tensor:
    return gathered.flatten()[torch.tensor(owned).flatten().argsort()]


def _weigh(
    state: TrainState,
    constraints: Constraints | None,
    rollout: Rollout,
    seeds: Sequence[int],
    scores: Tensor,
    owned: Sequence[Sequence[int]],
    processes: Processes,
) -> Weighed:
    """Measure what is kept in the samples of all processes, and weigh it against the reward."""
    if constraints is None:
        return Weighed(state.constraint_state, scores, {})
    own = measure(constraints.measures, rollout, seeds)
    signals = {name: _in_global_order(processes.gather(signal), owned) for name, signal in own.items()}
    return weigh_constraints(state.constraint_state, constraints, scores, signals)


def _add(totals: Mapping[str, Tensor], metrics: Mapping[str, Tensor], share: float) -> Metrics:
    return {name: totals.get(name, 0.0) + share * value for name, value in metrics.items()}


def _clip(gradients: Sequence[Tensor], max_norm: float) -> tuple[Sequence[Tensor], Tensor]:
    """Scale gradients down to `max_norm` where they are larger; NaN stays NaN, so that it is noticed."""
    norm = torch.nn.utils.get_total_norm(gradients)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return torch._foreach_mul(list(gradients), scale), norm


def _offset(progress: Progress, update: int, updates: int) -> Progress:
    return lambda phase, done, total: progress(phase, update * total + done, updates * total)


def _read(
    state: TrainState, logged: Sequence[Metrics], stochastic: Sequence[int], processes: Processes
) -> Mapping[str, float]:
    """Average metrics over updates and processes and bring them to the host, the only wait of training.

    Stops aloud where they or the parameters are not finite: NaN weights draw black images, which some rewards like.
    """
    table = torch.stack(
        [torch.cat([metrics[name].float().reshape(-1) for name in logged[0]]) for metrics in logged]
    ).mean(0)
    numbers = iter(processes.average([table])[0].tolist())
    metrics: dict[str, float] = {}
    for name, value in logged[0].items():
        told = list(islice(numbers, value.numel()))
        metrics |= {name: told[0]} if value.ndim == 0 else {f"{name}/{step}": told[step] for step in stochastic}
    norm = torch.nn.utils.get_total_norm(list(state.params.values())).item()
    broken = [name for name, value in {**metrics, "parameters": norm}.items() if not math.isfinite(value)]
    if broken:
        raise NonFiniteError(
            f"epoch {state.epoch + 1}: {', '.join(broken)} stopped being finite in training; the state before it is "
            "intact: go on from the last checkpoint with a lower learning rate, or use dtype float32"
        )
    return metrics


def _describe(
    state: TrainState,
    rollout: Rollout,
    indices: Sequence[int],
    scores: Tensor,
    advantages: Tensor,
    kept: Mapping[str, Kept],
    metrics: Mapping[str, float],
) -> EpochInfo:
    exact = scores.double()
    return EpochInfo(
        state.epoch,
        state.queries,
        rollout.prompts.prompts,
        rollout.prompts.metadata,
        rollout.images,
        rollout.trajectories.latents[:, -1].cpu(),
        rollout.scores,
        advantages,
        rollout.info,
        {
            "reward_mean": exact.mean().item(),
            "reward_std": exact.std(correction=0).item(),
            "reward_min": exact.min().item(),
            "reward_max": exact.max().item(),
            **metrics,
            "seconds_sampling": rollout.seconds_sampling,
            "seconds_reward": rollout.seconds_reward,
        },
        tuple(indices),
        kept,
    )

"""One epoch: sample, score, update."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from ddpo_core.config import FitConfig
from ddpo_core.distributed import SINGLE, Processes
from ddpo_core.errors import DDPOError
from ddpo_core.objectives import Objective
from ddpo_core.prompts import PromptSet, as_prompt_set, pick_prompts
from ddpo_core.randomness import sample_seeds, shuffled_minibatches
from ddpo_core.rollout import Rollout, draw_prompts, roll_out
from ddpo_core.types import (
    EpochInfo,
    Optimizer,
    Policy,
    Progress,
    RewardFunction,
    TrainState,
)
from ddpo_core.updates import choose_updates, train_updates


def train_epoch(
    state: TrainState,
    *,
    policy: Policy,
    optimizer: Optimizer,
    reward_fn: RewardFunction,
    prompts: PromptSet | Sequence[str],
    objective: Objective,
    config: FitConfig,
    progress: Progress | None = None,
    processes: Processes = SINGLE,
) -> tuple[TrainState, EpochInfo]:
    """Sample, score and update once; arguments and errors are those of `fit`."""
    objective.check(policy, config)
    _check_shares(config, processes)
    minibatches = shuffled_minibatches(
        config.samples_per_epoch, config.updates_per_epoch, seed=state.seed, epoch=state.epoch
    )
    owned = processes.owned(minibatches)
    drawn = _draw_all(as_prompt_set(prompts), state, config)
    rollout = roll_out(
        policy,
        state.params,
        reward_fn,
        pick_prompts(drawn, owned),
        seeds=sample_seeds(state.seed, state.epoch, owned),
        num_steps=config.num_steps,
        batch_size=config.sample_batch_size,
        reward_workers=config.reward_workers,
        progress=progress,
    )
    scores = processes.collect(rollout.scores, minibatches)
    remembered, advantages = objective.weigh(state.objective_state, drawn.prompts, scores)
    own_advantages = advantages[list(owned)]
    start = time.perf_counter()
    trained, metrics = train_updates(
        state,
        rollout.trajectories,
        own_advantages,
        choose_updates(
            objective,
            policy,
            rollout.trajectories,
            own_advantages,
            seed=state.seed,
            epoch=state.epoch,
            config=config,
            processes=processes,
        ),
        policy=policy,
        optimizer=optimizer,
        objective=objective,
        config=config,
        progress=progress,
        processes=processes,
    )
    seconds = {
        "seconds_sampling": rollout.seconds_sampling,
        "seconds_reward": rollout.seconds_reward,
        "seconds_training": time.perf_counter() - start,
    }
    after = replace(
        trained, objective_state=remembered, epoch=state.epoch + 1, queries=state.queries + config.samples_per_epoch
    )
    return after, _describe(after, rollout, owned, own_advantages, {**_summarise(scores), **metrics, **seconds})


def _draw_all(prompts: PromptSet, state: TrainState, config: FitConfig) -> PromptSet:
    """Draw the prompts of the whole epoch, of all processes; consecutive samples share one where they form a group."""
    groups = [index // config.samples_per_prompt for index in range(config.samples_per_epoch)]
    return draw_prompts(prompts, seed=state.seed, epoch=state.epoch, indices=groups)


def _check_shares(config: FitConfig, processes: Processes) -> None:
    shares = config.updates_per_epoch * processes.size
    if config.samples_per_epoch % shares:
        raise DDPOError(
            f"samples_per_epoch={config.samples_per_epoch} cannot be shared by {config.updates_per_epoch} updates on "
            f"{processes.size} processes: want a multiple of {shares}"
        )


def _summarise(scores: Float[Tensor, " batch"]) -> dict[str, float]:
    exact = scores.double()
    summary = (exact.mean(), exact.std(correction=0), exact.min(), exact.max())
    names = ("reward_mean", "reward_std", "reward_min", "reward_max")
    return {name: value.item() for name, value in zip(names, summary, strict=True)}


def _describe(
    state: TrainState, rollout: Rollout, owned: Sequence[int], advantages: Tensor, metrics: Mapping[str, float]
) -> EpochInfo:
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
        metrics,
        tuple(owned),
    )

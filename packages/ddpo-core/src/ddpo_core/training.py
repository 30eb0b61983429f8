"""The training loop as pure functions: a state goes in, a new state and what happened come out."""

from collections.abc import Iterator, Sequence

import torch

from ddpo_core.config import FitConfig
from ddpo_core.distributed import SINGLE, Processes
from ddpo_core.epoch import train_epoch
from ddpo_core.objectives import Objective
from ddpo_core.prompts import PromptSet
from ddpo_core.rollout import encode_once
from ddpo_core.types import (
    EpochInfo,
    Optimizer,
    Policy,
    Progress,
    RewardFunction,
    TrainState,
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
            progress=progress,
            processes=processes,
        )
        yield state, info

"""Monitors watch a run for its reward being gamed: they go around `fit`, see every epoch, and change nothing.

    for state, info, history, verdict in watch(fit(...), monitors=[image_monitor], held_out=judge):
        if verdict.status == "hacked":
            break

`history` is plain data. Saved beside a checkpoint and handed in again with the state, a resumed run is judged as if it
had never stopped.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ddpo_core.assessing import Observation, Rule, Verdict, assess
from ddpo_core.errors import DDPOError
from ddpo_core.evaluation import evaluate
from ddpo_core.prompts import PromptSet
from ddpo_core.sampling import sample_trajectories
from ddpo_core.scoring import score_images
from ddpo_core.signals import image_statistics, initial_kl, prompt_diversity
from ddpo_core.types import EpochInfo, Policy, RewardFunction, TrainState

Monitor: TypeAlias = Callable[[TrainState, EpochInfo], Mapping[str, float | None]]
"""`(state after the epoch, what happened in it) -> signals by name`; None where there was nothing to measure."""


class Watched(NamedTuple):
    """One epoch of a watched run; the first two are what `fit` gave."""

    state: TrainState
    info: EpochInfo
    history: tuple[Observation, ...]
    verdict: Verdict


def watch(
    epochs: Iterable[tuple[TrainState, EpochInfo]],
    *,
    monitors: Sequence[Monitor],
    held_out: Monitor | None = None,
    rule: Rule = assess,
    history: Sequence[Observation] = (),
) -> Iterator[Watched]:
    """Watch the epochs of a run as they come.

    Args:
        epochs: What `fit` gives.
        monitors: What is measured of every epoch.
        held_out: Rewards that are not optimised, for instance from `held_out_monitor`.
        rule: The judge: `assess`, or `functools.partial(assess, thresholds=...)`.
        history: What was seen in earlier epochs of the run. Observations of epochs that come again are dropped, so
            the history of a run that is rolled back may be longer than its state.

    Raises:
        DDPOError: If a signal is not finite, or two monitors have one name for theirs.

    Example:
        >>> from itertools import islice
        >>> from ddpo_core import FitConfig, adamw, ddpo_is_loss, fit, init, toy
        >>> policy, optimizer = toy.policy(), adamw(1e-3)
        >>> epochs = fit(init(policy, optimizer, seed=0), policy=policy, optimizer=optimizer, reward_fn=toy.reward,
        ...              prompts=["right"], loss_fn=ddpo_is_loss, config=FitConfig(num_steps=4))
        >>> judge = held_out_monitor(policy, {"judge": toy.reward}, ["left"], num_steps=4, seeds=[0])
        >>> watched = watch(epochs, monitors=[diversity_monitor], held_out=every(2, judge))
        >>> for state, info, history, verdict in islice(watched, 2):
        ...     print(info.epoch, verdict.status, list(history[-1].signals), list(history[-1].held_out))
        1 ok ['diversity'] []
        2 ok ['diversity'] ['judge']
    """
    seen = tuple(history)
    for state, info in epochs:
        observation = Observation(
            info.epoch,
            info.metrics["reward_mean"],
            {} if held_out is None else _measured_only(_observe([held_out], state, info)),
            _observe(monitors, state, info),
        )
        seen = (*(earlier for earlier in seen if earlier.epoch < info.epoch), observation)
        yield Watched(state, info, seen, rule(seen))


def image_monitor(state: TrainState, info: EpochInfo) -> dict[str, float | None]:
    """Mean of each of `image_statistics` over the epoch's samples of this process."""
    return {name: values.double().mean().item() for name, values in image_statistics(info.images).items()}


def diversity_monitor(state: TrainState, info: EpochInfo) -> dict[str, float | None]:
    """`prompt_diversity` of the epoch's samples of this process; None where no prompt has two."""
    return {"diversity": prompt_diversity(info.images, info.prompts)}


def kl_monitor(policy: Policy, prompts: Sequence[str], *, num_steps: int, seeds: Sequence[int]) -> Monitor:
    """Measure `initial_kl` on trajectories of these prompts and seeds, sampled at once after every epoch: give few."""

    def measure(state: TrainState, info: EpochInfo) -> dict[str, float | None]:
        sampled = sample_trajectories(policy, state.params, prompts, num_steps=num_steps, seeds=seeds)
        return {"kl": initial_kl(policy, state.params, sampled)}

    return measure


def held_out_monitor(
    policy: Policy,
    rewards: Mapping[str, RewardFunction],
    prompts: PromptSet | Sequence[str],
    *,
    num_steps: int,
    seeds: Sequence[int],
    batch_size: int = 8,
) -> Monitor:
    """Measure the mean of rewards that are not optimised, on the same prompts and seeds after every epoch."""

    def score_all(
        images: Tensor, texts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, dict[str, list[float]]]:
        scored = {name: score_images(reward, images, texts, metadata)[0] for name, reward in rewards.items()}
        return torch.zeros(len(texts)), {name: scores.tolist() for name, scores in scored.items()}

    def measure(state: TrainState, info: EpochInfo) -> dict[str, float | None]:
        drawn = evaluate(
            policy, state.params, score_all, prompts, num_steps=num_steps, seeds=seeds, batch_size=batch_size
        )
        return {name: fmean(drawn.info[name]) for name in rewards}

    return measure


def every(epochs: int, monitor: Monitor) -> Monitor:
    """Ask a costly monitor in every so many epochs only; it measures nothing in the others."""

    def measure(state: TrainState, info: EpochInfo) -> Mapping[str, float | None]:
        return monitor(state, info) if info.epoch % epochs == 0 else {}

    return measure


def _observe(monitors: Sequence[Monitor], state: TrainState, info: EpochInfo) -> dict[str, float | None]:
    signals: dict[str, float | None] = {}
    for monitor in monitors:
        for name, value in monitor(state, info).items():
            if name in signals:
                raise DDPOError(f"two monitors measure {name!r}: give one of them another name for it")
            if value is not None and not math.isfinite(value):
                raise DDPOError(
                    f"a monitor measured {name}={value} in epoch {info.epoch}; want a finite number or None"
                )
            signals[name] = value
    return signals


def _measured_only(signals: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in signals.items() if value is not None}

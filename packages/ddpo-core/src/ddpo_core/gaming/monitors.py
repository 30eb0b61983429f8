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

from ddpo_core.distributed import SINGLE, Processes
from ddpo_core.errors import DDPOError
from ddpo_core.evaluation import evaluate
from ddpo_core.gaming.measures import (
    EVIDENCE,
    FAMILIARITY,
    draw_comparisons,
    image_statistics,
    initial_kl,
    initial_view,
    prompt_diversity,
)
from ddpo_core.gaming.rule import Observation, Rule, Verdict, assess
from ddpo_core.prompts import PromptSet
from ddpo_core.rewards import score_images
from ddpo_core.sampling import encode_once, sample_trajectories
from ddpo_core.types import EpochInfo, Policy, RewardFunction, TrainState


class Mean(NamedTuple):
    """A mean over samples, with its standard error."""

    value: float
    error: float


Monitor: TypeAlias = Callable[[TrainState, EpochInfo, Processes], Mapping[str, float | Mean | None]]
"""`(state after the epoch, what happened in it, processes) -> signals by name`; None where there is nothing to measure.

`EpochInfo` holds the samples of one process. A monitor that reads them measures its own and joins what all processes
have (`Processes.concatenate`), so that a signal does not depend on how many there are; all processes ask it."""


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
    processes: Processes = SINGLE,
) -> Iterator[Watched]:
    """Watch the epochs of a run as they come.

    Args:
        epochs: What `fit` gives.
        monitors: What is measured of every epoch.
        held_out: Rewards that are not optimised, for instance from `held_out_monitor`.
        rule: The judge: `assess`, or `functools.partial(assess, thresholds=...)`.
        history: What was seen in earlier epochs of the run. Observations of epochs that come again are dropped, so
            the history of a run that is rolled back may be longer than its state.
        processes: As given to `fit`; all of them have to watch, and all see the same.

    Raises:
        DDPOError: If a signal is not finite, or two monitors have one name for theirs.

    Example:
        >>> from itertools import islice
        >>> from ddpo_core import FitConfig, adamw, ddpo_is, diversity_monitor, every, fit, held_out_monitor
        >>> from ddpo_core import init, toy
        >>> policy, optimizer = toy.policy(), adamw(1e-3)
        >>> epochs = fit(init(policy, optimizer, seed=0), policy=policy, optimizer=optimizer, reward_fn=toy.reward,
        ...              prompts=["right"], objective=ddpo_is(), config=FitConfig(num_steps=4))
        >>> judge = held_out_monitor(policy, {"judge": toy.reward}, ["left"], num_steps=4, seeds=[0])
        >>> watched = watch(epochs, monitors=[diversity_monitor], held_out=every(2, judge))
        >>> for state, info, history, verdict in islice(watched, 2):
        ...     print(info.epoch, verdict.status, list(history[-1].signals), list(history[-1].held_out))
        1 ok ['diversity'] []
        2 ok ['diversity'] ['judge']
    """
    seen = tuple(history)
    for state, info in epochs:
        seen = remember(seen, observe(state, info, monitors=monitors, held_out=held_out, processes=processes))
        yield Watched(state, info, seen, rule(seen))


def observe(
    state: TrainState,
    info: EpochInfo,
    *,
    monitors: Sequence[Monitor],
    held_out: Monitor | None = None,
    processes: Processes = SINGLE,
) -> Observation:
    """Measure one epoch: what `watch` does after each, for loops that need it at a moment of their own.

    Raises:
        DDPOError: If a signal is not finite, or two monitors have one name for theirs.
    """
    judged = _measure([] if held_out is None else [held_out], state, info, processes)
    signals = _measure(monitors, state, info, processes)
    return Observation(
        info.epoch,
        info.metrics["reward_mean"],
        {name: number for name, value in judged.items() if (number := _number(value)) is not None},
        {name: _number(value) for name, value in signals.items()},
        {name: value.error for name, value in {**signals, **judged}.items() if isinstance(value, Mean)},
    )


def remember(history: Sequence[Observation], observation: Observation) -> tuple[Observation, ...]:
    """Add an observation to those of earlier epochs; what was seen of its own epoch or later ones is dropped.

    Example:
        >>> seen = [Observation(epoch, 0.0, {}, {}) for epoch in (1, 2, 3)]
        >>> [observation.epoch for observation in remember(seen, Observation(2, 1.0, {}, {}))]
        [1, 2]
    """
    return (*(earlier for earlier in history if earlier.epoch < observation.epoch), observation)


def image_monitor(state: TrainState, info: EpochInfo, processes: Processes = SINGLE) -> dict[str, float | Mean | None]:
    """Mean of each of `image_statistics` over the samples of the epoch."""
    own = image_statistics(info.images)
    columns = processes.concatenate(torch.stack(list(own.values()), dim=1)).double()
    return dict(zip(own, columns.mean(0).tolist(), strict=True))


def diversity_monitor(
    state: TrainState, info: EpochInfo, processes: Processes = SINGLE
) -> dict[str, float | Mean | None]:
    """`prompt_diversity` of the samples of the epoch; None where no prompt has two."""
    return {"diversity": prompt_diversity(info.images, info.prompts, processes=processes)}


def kl_monitor(policy: Policy, prompts: Sequence[str], *, num_steps: int, seeds: Sequence[int]) -> Monitor:
    """Measure `initial_kl` on trajectories of these prompts and seeds, sampled at once after every epoch: give few.

    Every process samples all of them.
    """

    def measure(state: TrainState, info: EpochInfo, processes: Processes = SINGLE) -> dict[str, float | Mean | None]:
        sampled = sample_trajectories(policy, state.params, prompts, num_steps=num_steps, seeds=seeds)
        return {"kl": initial_kl(policy, state.params, sampled)}

    return measure


def initial_view_monitor(policy: Policy, *, num_samples: int = 32, batch_size: int = 8) -> Monitor:
    """Measure the `initial_view` of the first samples of every epoch: held-out judges that every policy brings.

    - `prompt_evidence`: the mean margin of the half of them with the lower margins. Which pictures are clear changes
      in honest training too; where prompts are given up, it is these that show it.
    - `familiarity`: its mean.

    Each sample is compared with another prompt of the epoch (`draw_comparisons`), with other noise in every epoch;
    nothing is measured where all have one prompt.
    """
    remembering = policy._replace(encode=encode_once(policy.encode))

    def measure(state: TrainState, info: EpochInfo, processes: Processes = SINGLE) -> dict[str, float | Mean | None]:
        drawn = list(zip(info.indices, info.prompts, strict=True))
        everyones = sorted((index, prompt) for part in processes.gather_json(drawn) for index, prompt in part)
        unique = list(dict.fromkeys(prompt for _, prompt in everyones))
        if len(unique) == 1:
            return {EVIDENCE: None, FAMILIARITY: None}
        first = [place for place, (index, _) in enumerate(drawn) if index < num_samples]
        seen = [torch.zeros(0, 2)]
        for start in range(0, len(first), batch_size):
            places = first[start : start + batch_size]
            indices, prompts = zip(*(drawn[place] for place in places), strict=True)
            seeds, others = draw_comparisons(prompts, unique, seeds=[info.queries + index for index in indices])
            view = initial_view(remembering, info.latents[places], prompts, others, seeds=seeds)
            seen.append(torch.stack([view.margin, view.familiarity], dim=1))
        margin, familiarity = processes.concatenate(torch.cat(seen)).unbind(1)
        return {EVIDENCE: _mean_of_lower_half(margin), FAMILIARITY: _mean(familiarity)}

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
    """Measure the mean of rewards that are not optimised, on the same prompts and seeds after every epoch.

    Every process draws all of them.
    """

    def score_all(
        images: Tensor, texts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, dict[str, list[float]]]:
        scored = {name: score_images(reward, images, texts, metadata)[0] for name, reward in rewards.items()}
        return torch.zeros(len(texts)), {name: scores.tolist() for name, scores in scored.items()}

    def measure(state: TrainState, info: EpochInfo, processes: Processes = SINGLE) -> dict[str, float | Mean | None]:
        drawn = evaluate(
            policy, state.params, score_all, prompts, num_steps=num_steps, seeds=seeds, batch_size=batch_size
        )
        return {name: fmean(drawn.info[name]) for name in rewards}

    return measure


def every(epochs: int, monitor: Monitor) -> Monitor:
    """Ask a costly monitor in every so many epochs only; it measures nothing in the others."""

    def measure(state: TrainState, info: EpochInfo, processes: Processes = SINGLE) -> Mapping[str, float | Mean | None]:
        return monitor(state, info, processes) if info.epoch % epochs == 0 else {}

    return measure


def _measure(
    monitors: Sequence[Monitor], state: TrainState, info: EpochInfo, processes: Processes
) -> dict[str, float | Mean | None]:
    measured: dict[str, float | Mean | None] = {}
    for monitor in monitors:
        for name, value in monitor(state, info, processes).items():
            if name in measured:
                raise DDPOError(f"two monitors measure {name!r}: give one of them another name for it")
            number = _number(value)
            if number is not None and not math.isfinite(number):
                raise DDPOError(
                    f"a monitor measured {name}={number} in epoch {info.epoch}; want a finite number or None"
                )
            measured[name] = value
    return measured


def _number(value: float | Mean | None) -> float | None:
    return value.value if isinstance(value, Mean) else value


def _mean(values: Tensor) -> Mean:
    exact = values.double()
    return Mean(exact.mean().item(), (exact.std() / len(exact) ** 0.5).item() if len(exact) > 1 else 0.0)


def _mean_of_lower_half(values: Tensor) -> Mean:
    """Of what is below the median m, `2 mean(min(v, m)) - m`: all values have a part in its error, not half of them."""
    exact = values.double()
    median = exact.quantile(0.5)
    bounded = _mean(exact.minimum(median))
    return Mean(2 * bounded.value - median.item(), 2 * bounded.error)

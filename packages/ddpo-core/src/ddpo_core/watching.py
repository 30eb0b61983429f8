"""Monitors watch a run for its reward being gamed: they go around `fit`, see every epoch, and change nothing.

    for state, info, history, verdict in watch(fit(...), monitors=[image_monitor], held_out=judge):
        if verdict.status == "hacked":
            break

`history` is plain data. Saved beside a checkpoint and handed in again with the state, a resumed run is judged as if it
had never stopped.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ddpo_core.assessing import Observation, Rule, Verdict, assess
from ddpo_core.errors import DDPOError
from ddpo_core.monitors import Mean, Monitor
from ddpo_core.types import EpochInfo, TrainState


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
        >>> from ddpo_core import FitConfig, adamw, ddpo_is_loss, diversity_monitor, every, fit, held_out_monitor
        >>> from ddpo_core import init, toy
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
        seen = remember(seen, observe(state, info, monitors=monitors, held_out=held_out))
        yield Watched(state, info, seen, rule(seen))


def observe(
    state: TrainState, info: EpochInfo, *, monitors: Sequence[Monitor], held_out: Monitor | None = None
) -> Observation:
    """Measure one epoch: what `watch` does after each, for loops that need it at a moment of their own.

    Raises:
        DDPOError: If a signal is not finite, or two monitors have one name for theirs.
    """
    judged = _measure([] if held_out is None else [held_out], state, info)
    signals = _measure(monitors, state, info)
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


def _measure(monitors: Sequence[Monitor], state: TrainState, info: EpochInfo) -> dict[str, float | Mean | None]:
    measured: dict[str, float | Mean | None] = {}
    for monitor in monitors:
        for name, value in monitor(state, info).items():
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

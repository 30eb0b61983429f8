"""Watching a run for its reward being gamed: what is measured of every epoch, and how metrics.jsonl tells it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from ddpo_cli.config import RunConfig
from ddpo_cli.setup import Setup
from ddpo_core import (
    EpochInfo,
    Monitor,
    Observation,
    Processes,
    TrainState,
    Verdict,
    diversity_monitor,
    every,
    image_monitor,
    initial_view_monitor,
    kl_monitor,
    observe,
)
from ddpo_core.runs.compare import fixed_prompts
from ddpo_core.runs.log import read_metrics

Observer: TypeAlias = Callable[[TrainState, EpochInfo], Observation]

KL_SAMPLES = 2
TEXT_SAMPLES = 8


def observer(setup: Setup, processes: Processes) -> Observer:
    """Return what looks at the samples of an epoch: all that is measured but the held-out rewards.

    Every process has to look, each at its own samples.
    """
    config = setup.config
    view = initial_view_monitor(
        setup.policy, num_samples=config.evidence_samples, batch_size=config.fit.sample_batch_size
    )
    held_out = view if config.evidence_samples else None
    return partial(observe, monitors=_monitors(setup), held_out=held_out, processes=processes)


def text_monitor() -> Monitor:
    """Measure the share of the first samples of an epoch that writing covers, and how much of the prompt it spells.

    Raises:
        ValueError: the extra `ddpo-rewards[ocr]` is not installed.
    """
    from ddpo_rewards.models.ocr import load_reader, read_text, text_area
    from ddpo_rewards.text_guard import prompt_overlap

    reader = load_reader()

    def measure(state: TrainState, info: EpochInfo, processes: Processes) -> dict[str, float | None]:
        first = [place for place, index in enumerate(info.indices) if index < TEXT_SAMPLES]
        images, prompts = info.images[first], [info.prompts[place] for place in first]
        height, width = images.shape[2:]
        readings = read_text(images, reader=reader)
        areas = [text_area(reading.boxes, height=height, width=width) for reading in readings]
        overlaps = [prompt_overlap(reading.text, prompt) for reading, prompt in zip(readings, prompts, strict=True)]
        parts = processes.gather_json([areas, overlaps])
        everyones = ([value for part in parts for value in part[column]] for column in (0, 1))
        return dict(zip(("text_area", "text_overlap"), map(fmean, everyones), strict=True))

    return measure


def is_halting(verdict: Verdict, config: RunConfig) -> bool:
    """Whether a run ends with this verdict."""
    return verdict.status == "hacked" and config.on_hack != "warn"


def shared(said: bool, processes: Processes) -> bool:
    """Return what the writing process says; each process has to ask."""
    if processes.size == 1:
        return said
    import torch

    return bool(processes.gather(torch.tensor([said]))[0].item())


def as_row(observation: Observation, verdict: Verdict) -> dict[str, Any]:
    """Return what metrics.jsonl says of an epoch that was watched.

    >>> as_row(Observation(1, -2.0, {"judge": 0.5}, {"saturation": 0.25}), Verdict("ok", "as before"))
    {'held_out': {'judge': 0.5}, 'signals': {'saturation': 0.25}, 'verdict': 'ok', 'reason': 'as before'}
    """
    tables = {"held_out": observation.held_out, "signals": observation.signals, "errors": observation.errors}
    seen = {name: dict(table) for name, table in tables.items() if table}
    return {**seen, "verdict": verdict.status, "reason": verdict.reason}


def read_history(run: Path) -> tuple[Observation, ...]:
    """Return what was seen of a run so far: all that the rule needs to go on as if it had never stopped."""
    return tuple(
        Observation(
            row["epoch"], row["reward_mean"], *(row.get(name, {}) for name in ("held_out", "signals", "errors"))
        )
        for row in read_metrics(run)
    )


def _monitors(setup: Setup) -> tuple[Monitor, ...]:
    config = setup.config
    few = fixed_prompts(setup.prompts, KL_SAMPLES).prompts
    divergence = kl_monitor(setup.policy, few, num_steps=config.fit.num_steps, seeds=range(len(few)))
    # Sampling and two replays in small batches: a tenth of a short epoch, so not in all of them.
    always = (image_monitor, diversity_monitor, every(config.sample_every, divergence))
    return (*always, text_monitor()) if config.watch_text else always

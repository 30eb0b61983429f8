"""Monitors: what is measured of every epoch of a run, to see whether its reward is being gamed."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ddpo_core.evaluation import evaluate
from ddpo_core.initial import initial_kl, initial_view
from ddpo_core.prompts import PromptSet
from ddpo_core.rollout import encode_once
from ddpo_core.sampling import sample_trajectories
from ddpo_core.scoring import score_images
from ddpo_core.signals import image_statistics, prompt_diversity
from ddpo_core.types import EpochInfo, Policy, RewardFunction, TrainState

EVIDENCE, FAMILIARITY = "prompt_evidence", "familiarity"


class Mean(NamedTuple):
    """A mean over samples, with its standard error."""

    value: float
    error: float


Monitor: TypeAlias = Callable[[TrainState, EpochInfo], Mapping[str, float | Mean | None]]
"""`(state after the epoch, what happened in it) -> signals by name`; None where there was nothing to measure."""


def image_monitor(state: TrainState, info: EpochInfo) -> dict[str, float | Mean | None]:
    """Mean of each of `image_statistics` over the epoch's samples of this process."""
    return {name: values.double().mean().item() for name, values in image_statistics(info.images).items()}


def diversity_monitor(state: TrainState, info: EpochInfo) -> dict[str, float | Mean | None]:
    """`prompt_diversity` of the epoch's samples of this process; None where no prompt has two."""
    return {"diversity": prompt_diversity(info.images, info.prompts)}


def kl_monitor(policy: Policy, prompts: Sequence[str], *, num_steps: int, seeds: Sequence[int]) -> Monitor:
    """Measure `initial_kl` on trajectories of these prompts and seeds, sampled at once after every epoch: give few."""

    def measure(state: TrainState, info: EpochInfo) -> dict[str, float | Mean | None]:
        sampled = sample_trajectories(policy, state.params, prompts, num_steps=num_steps, seeds=seeds)
        return {"kl": initial_kl(policy, state.params, sampled)}

    return measure


def initial_view_monitor(policy: Policy, *, num_samples: int = 32, batch_size: int = 8) -> Monitor:
    """Measure the `initial_view` of the first samples of every epoch: held-out judges that every policy brings.

    Each sample is compared with the next other prompt of the epoch; nothing is measured where all have one prompt.
    """
    remembering = policy._replace(encode=encode_once(policy.encode))

    def measure(state: TrainState, info: EpochInfo) -> dict[str, float | Mean | None]:
        unique = list(dict.fromkeys(info.prompts))
        if len(unique) == 1:
            return {EVIDENCE: None, FAMILIARITY: None}
        following = dict(zip(unique, (*unique[1:], unique[0]), strict=True))
        parts = []
        for place in range(0, min(num_samples, len(info.prompts)), batch_size):
            part = slice(place, min(place + batch_size, num_samples))
            prompts = info.prompts[part]
            others = [following[prompt] for prompt in prompts]
            parts.append(initial_view(remembering, info.latents[part], prompts, others, seeds=info.indices[part]))
        evidence, familiarity = (torch.cat(column) for column in zip(*parts, strict=True))
        return {EVIDENCE: _mean(evidence), FAMILIARITY: _mean(familiarity)}

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

    def measure(state: TrainState, info: EpochInfo) -> dict[str, float | Mean | None]:
        drawn = evaluate(
            policy, state.params, score_all, prompts, num_steps=num_steps, seeds=seeds, batch_size=batch_size
        )
        return {name: fmean(drawn.info[name]) for name in rewards}

    return measure


def every(epochs: int, monitor: Monitor) -> Monitor:
    """Ask a costly monitor in every so many epochs only; it measures nothing in the others."""

    def measure(state: TrainState, info: EpochInfo) -> Mapping[str, float | Mean | None]:
        return monitor(state, info) if info.epoch % epochs == 0 else {}

    return measure


def _mean(values: Tensor) -> Mean:
    exact = values.double()
    return Mean(exact.mean().item(), (exact.std() / len(exact) ** 0.5).item() if len(exact) > 1 else 0.0)

"""Weighted sums of rewards, plain or with each part standardised by running statistics."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from ddpo_rewards.errors import RewardError
from ddpo_rewards.images import count_images
from ddpo_rewards.references import Reference, number_text, parse_reference
from ddpo_rewards.registry import Registry, load_registry
from ddpo_rewards.reward import Metadata, Reward, RewardResult
from ddpo_rewards.specs import RewardSpec

Part: TypeAlias = str | Reward | tuple[float, Reward]


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a sum."""

    label: str
    weight: float
    reward: Reward


@dataclass(frozen=True, slots=True)
class RunningStatistics:
    """Count, mean and sum of squared deviations of the scores seen so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation; 0 before anything was seen."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def combine(*parts: Part, registry: Registry | None = None) -> Reward:
    """Sum rewards: `score = sum_i weight_i * score_i`.

    A part is a reference with an optional weight (`"0.5*aesthetic"`), a reward, or `(weight, reward)`. `info` holds
    each part's own score under its label, and the part's info under `label.key`.

    Raises:
        RewardError: no parts, or the same part twice.

    Example:
        >>> reward = combine("2*jpeg_incompressibility", "jpeg_compressibility")
        >>> scores, info = reward([np.zeros((8, 8, 3), np.uint8)])
        >>> bool(scores[0] == info["jpeg_incompressibility"][0])  # 2 s - s
        True
    """
    if not parts:
        raise RewardError("there is nothing to combine; give one reward or more")
    loaded = registry or load_registry()
    terms = _labelled([_term(part, loaded) for part in parts])
    return Reward(_spec(terms), _Sum(terms))


def combine_standardised(*parts: Part, registry: Registry | None = None) -> Reward:
    """Sum rewards in units of their own spread, so that kilobytes do not outvote aesthetics: see `standardise`.

    `info` holds each part's standardised score under its label, and its own score under `label.raw`.

    Raises:
        RewardError: no parts, or the same part twice.
    """
    loaded = registry or load_registry()
    terms = _labelled([_term(part, loaded) for part in parts])
    return combine(*[(term.weight, standardise(term.reward, label=term.label)) for term in terms], registry=loaded)


def standardise(reward: Reward, *, label: str = "") -> Reward:
    """Standardise a reward: `(score - mean) / std` over every score seen so far, the current batch included.

    The statistics are what this reward learns: `Reward.state()` gives them and `Reward.load_state()` takes them back,
    for exact resumption. Scores that never varied become 0. Scores of different batches are on slightly different
    scales, and every process of a distributed run keeps its own statistics.
    """
    spec = RewardSpec(
        name=label or reward.spec.name,
        factory="ddpo_rewards.combining:standardise",
        summary=f"{reward.spec.name}, standardised by running statistics.",
        needs=reward.spec.needs,
        takes="any",
        unit="standard deviations",
    )
    return Reward(spec, _Standardised(reward))


def update_statistics(statistics: RunningStatistics, scores: Float[np.ndarray, " batch"]) -> RunningStatistics:
    """Add a batch to running statistics (Chan, Golub and LeVeque 1979, the batched form of Welford's method).

    Example:
        >>> update_statistics(RunningStatistics(), np.array([1.0, 3.0]))
        RunningStatistics(count=2, mean=2.0, squares=2.0)
    """
    values = scores.astype(np.float64)
    batch_mean = float(values.mean())
    total = statistics.count + len(values)
    delta = batch_mean - statistics.mean
    squares = float(((values - batch_mean) ** 2).sum()) + delta**2 * statistics.count * len(values) / total
    return RunningStatistics(total, statistics.mean + delta * len(values) / total, statistics.squares + squares)


class _Sum:
    """The score function of a sum: immutable, but for what its parts keep."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms = tuple(terms)

    @property
    def batch_size(self) -> int:
        return max(term.reward.batch_size for term in self._terms)

    @property
    def reads_files(self) -> bool:
        return any(getattr(term.reward.score_function, "reads_files", False) for term in self._terms)

    def __call__(self, images: Any, prompts: Sequence[str] | None, metadata: Metadata | None, /) -> RewardResult:
        results = [term.reward(images, prompts, metadata) for term in self._terms]
        info: dict[str, list[Any]] = {}
        total = np.zeros(count_images(images))
        for term, result in zip(self._terms, results, strict=True):
            total += term.weight * result.scores.astype(np.float64)
            info[term.label] = result.scores.tolist()
            info |= {f"{term.label}.{key}": values for key, values in result.info.items()}
        return RewardResult(total.astype(np.float32), info)

    def differentiable(self, images: Any, prompts: Sequence[str] | None, metadata: Metadata | None, /) -> Any:
        return sum(term.weight * term.reward.differentiable(images, prompts, metadata) for term in self._terms)

    def state(self) -> dict[str, Any]:
        return {term.label: state for term in self._terms if (state := term.reward.state())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for term in self._terms:
            term.reward.load_state(state.get(term.label, {}))


class _Standardised:
    """The one score function that changes as it is called."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self._statistics = RunningStatistics()

    def __call__(self, images: Any, prompts: Sequence[str] | None, metadata: Metadata | None, /) -> RewardResult:
        scores, info = self._reward(images, prompts, metadata)
        self._statistics = update_statistics(self._statistics, scores)
        std = self._statistics.std
        # Rounding alone leaves a spread of about 1e-7 of the mean: dividing by it would make noise of a constant.
        is_constant = std <= 1e-6 * abs(self._statistics.mean)
        deviations = scores.astype(np.float64) - self._statistics.mean
        standardised = np.zeros(len(scores)) if is_constant else deviations / std
        return RewardResult(standardised.astype(np.float32), {"raw": scores.tolist(), **info})

    def state(self) -> dict[str, Any]:
        statistics = self._statistics
        return {"statistics": [statistics.count, statistics.mean, statistics.squares], "reward": self._reward.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if not state:
            return
        count, mean, squares = state["statistics"]
        self._statistics = RunningStatistics(int(count), float(mean), float(squares))
        self._reward.load_state(state["reward"])


def _term(part: Part, registry: Registry) -> Term:
    if isinstance(part, Reward):
        return Term(_label(part), 1.0, part)
    if isinstance(part, tuple):
        weight, reward = part
        return Term(_label(reward), float(weight), reward)
    parsed = parse_reference(part)
    unweighted = Reference(parsed.ref, options=parsed.options)
    return Term(parsed.ref, parsed.weight, registry.get_reward(str(unweighted)))


def _label(reward: Reward) -> str:
    return reward.spec.name


def _labelled(terms: Sequence[Term]) -> list[Term]:
    """Two parts of one name are told apart by their options; without a difference they are a mistake."""
    counts = Counter(term.label for term in terms)
    long = [
        str(Reference(term.label, options={k: str(v) for k, v in term.reward.options.items()}))
        if counts[term.label] > 1
        else term.label
        for term in terms
    ]
    for label, count in Counter(long).items():
        if count > 1:
            raise RewardError(f"reward {label!r} is combined {count} times; give it once, with the sum of the weights")
    return [Term(label, term.weight, term.reward) for label, term in zip(long, terms, strict=True)]


def _spec(terms: Sequence[Term]) -> RewardSpec:
    return RewardSpec(
        name=" + ".join(
            term.label if term.weight == 1 else f"{number_text(term.weight)}*{term.label}" for term in terms
        ),
        factory="ddpo_rewards.combining:combine",
        summary="A weighted sum of rewards.",
        needs=frozenset().union(*(term.reward.spec.needs for term in terms)),
        takes="any",
    )

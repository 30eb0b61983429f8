"""Run suites of probes on a reward: data in, a report out."""

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata as distributions
from pathlib import Path
from typing import Any

import numpy as np

from ddpo_rewards.errors import RewardError
from ddpo_rewards.images import count_images
from ddpo_rewards.probes.fonts import rendering_versions
from ddpo_rewards.probes.loading import get_probe
from ddpo_rewards.probes.pictures import builtin_set
from ddpo_rewards.probes.runner import Progress, Scored, digest, score_arms
from ddpo_rewards.probes.statistics import DRAWS
from ddpo_rewards.probes.types import Arm, BaseSet, Probe, ProbeReport, SuiteReport, Trial, worst
from ddpo_rewards.registry import Registry, load_registry
from ddpo_rewards.reward import Metadata, Reward, check_companions
from ddpo_rewards.specs import Weight
from ddpo_rewards.weights import read_records, record_key, tree_sha256

SUITES = ("typo", "stress")
LEAST_PICTURES = 8


def probe(
    reward: Reward,
    images: Any = None,
    prompts: Sequence[str] | None = None,
    metadata: Metadata | None = None,
    *,
    suites: Sequence[str] = SUITES,
    source: str = "pictures of the caller",
    seed: int = 0,
    draws: int = DRAWS,
    batch_size: int = 16,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> ProbeReport:
    """Find out whether a reward can be gamed: score pictures, changed in many ways, and judge what moves the score.

    Args:
        reward: what is tested; it is called about a hundred times per picture.
        images: as in `Reward.__call__`; paths are read batch by batch. None is the built-in set of 64 drawn shapes.
        prompts: what each picture was meant to show.
        metadata: one mapping per prompt, where the reward needs them.
        suites: references `name[?option=value&...]` of registered probes; see `typo.typo` and `stress.stress`.
        source: where the pictures come from, for the report.
        seed: decides every random number.
        draws: of the bootstrap that every interval comes from; fewer than 2,000 could not tell one cell of fifty from
            chance.
        batch_size: pictures in memory at once, and per call of the reward.
        registry: where the suites are looked up; None loads the plugins.
        progress: called with (pictures scored, pictures to score).

    Raises:
        RewardError: fewer than 8 pictures, one that cannot be read, no such suite, or a reward that breaks its
            contract.

    Example:
        >>> from ddpo_rewards import get_reward
        >>> from ddpo_rewards.probes.pictures import builtin_set
        >>> bases = builtin_set(8, size=32)
        >>> report = probe(get_reward("jpeg_incompressibility"), bases.images, bases.prompts, suites=["stress"])
        >>> report.verdict, [outcome.test for outcome in report.suites[0].findings.outcomes][:2]
        (<Verdict.susceptible: 'susceptible'>, ['constant', 'noise'])
    """
    if images is None and (prompts is not None or metadata is not None):
        raise RewardError("got prompts without images; the built-in pictures have their own: pass images too")
    bases = (
        builtin_set(seed=seed)
        if images is None
        else BaseSet(images=images, prompts=prompts, metadata=metadata, source=source)
    )
    _check(reward, bases, suites, seed=seed, draws=draws, batch_size=batch_size)
    loaded = registry or load_registry()
    probes = {ref: get_probe(ref, loaded) for ref in suites}
    plans = {ref: tuple(one.plan(bases, seed)) for ref, one in probes.items()}
    base_sha256 = digest(bases, batch_size=batch_size)
    arms = [arm for plan in plans.values() for arm in plan]
    scored = score_arms(reward, bases, arms, batch_size=batch_size, progress=progress)
    reports = tuple(_assess(probes, plans, scored, bases, draws=draws, seed=seed))
    outcomes = [outcome for report in reports for outcome in report.findings.outcomes]
    return ProbeReport(
        verdict=worst([outcome.verdict for outcome in outcomes]),
        reward=_facts(reward),
        bases=bases,
        base_sha256=base_sha256,
        clean=scored.clean,
        suites=reports,
        seed=seed,
        draws=draws,
        versions=_versions(),
    )


def _check(reward: Reward, bases: BaseSet, suites: Sequence[str], *, seed: int, draws: int, batch_size: int) -> None:
    """Refuse before anything is read or scored."""
    count = count_images(bases.images)
    if count < LEAST_PICTURES:
        raise RewardError(f"got {count} pictures; a verdict needs {LEAST_PICTURES} or more, 64 for a narrow interval")
    if isinstance(suites, str) or not suites or len(set(suites)) != len(suites):
        raise RewardError(f"suites is {suites!r}; want a list of one name or more, each once")
    for name, value, least in (("seed", seed, 0), ("draws", draws, DRAWS), ("batch_size", batch_size, 1)):
        if value < least:
            raise RewardError(f"{name}={value!r} is too small; want {least} or more")
    check_companions(reward.spec, count, bases.prompts, bases.metadata)


def _assess(
    probes: Mapping[str, Probe],
    plans: Mapping[str, tuple[Arm, ...]],
    scored: Scored,
    bases: BaseSet,
    *,
    draws: int,
    seed: int,
) -> list[SuiteReport]:
    reports = []
    rest = iter(scored.arms)
    for ref, plan in plans.items():
        scores = {arm.key: next(rest) for arm in plan}
        trial = Trial(bases=bases, clean=scored.clean, scores=scores, draws=draws, seed=seed)
        findings = probes[ref].assess(trial)
        name = ref.partition("?")[0]
        reports.append(
            SuiteReport(suite=name, options=probes[ref].options, arms=plan, scores=scores, findings=findings)
        )
    return reports


def _facts(reward: Reward) -> dict[str, Any]:
    """Which reward this was, as exactly as can be said."""
    spec = reward.spec
    return {
        "id": spec.name,
        "distribution": spec.distribution or None,
        "version": _version(spec.distribution),
        "source_sha256": None if spec.distribution else _source_sha256(spec.factory),
        "options": dict(reward.options),
        "unit": spec.unit,
        "weights": [_pin(weight) for weight in spec.weights],
    }


def _source_sha256(factory: Any) -> str | None:
    """The bytes of the module that a reward `module:attr` came from, which has no version of its own."""
    module = sys.modules.get(factory.partition(":")[0]) if isinstance(factory, str) else None
    file = getattr(module, "__file__", None)
    return tree_sha256(Path(file)) if file else None


def _version(distribution: str) -> str | None:
    try:
        return distributions.version(distribution) if distribution else None
    except distributions.PackageNotFoundError:
        return None


def _pin(weight: Weight) -> dict[str, str | None]:
    """What these weights were pinned by, or recorded as on this machine."""
    record = read_records().get(record_key(weight), {})
    return {
        "source": weight.source,
        "filename": weight.filename,
        "revision": weight.revision or record.get("revision"),
        "sha256": weight.sha256 or record.get("sha256"),
    }


def _versions() -> dict[str, str]:
    return {
        "ddpo-rewards": distributions.version("ddpo-rewards"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **rendering_versions(),
    }

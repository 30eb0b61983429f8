"""Probe a reward: score every arm of every picture, batch by batch, and let each suite judge the scores."""

import difflib
import hashlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata as distributions
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ddpo_rewards.compute import map_in_threads
from ddpo_rewards.errors import RewardError
from ddpo_rewards.images import count_images
from ddpo_rewards.probes.core import (
    Arm,
    BaseSet,
    Probe,
    ProbeReport,
    Scores,
    SuiteReport,
    Trial,
    pick,
    read_images,
    together,
    worst,
)
from ddpo_rewards.probes.lettering import rendering_versions
from ddpo_rewards.probes.pictures import builtin_set
from ddpo_rewards.probes.statistics import DRAWS, resample
from ddpo_rewards.references import import_attribute, parse_reference, typed_options
from ddpo_rewards.registry import Registry, load_registry
from ddpo_rewards.reward import Metadata, Reward, check_companions
from ddpo_rewards.specs import ProbeSpec, Weight
from ddpo_rewards.weights import EMBEDDED, embedded_path, read_records, record_key, tree_sha256

SUITES = ("typo", "stress")
LEAST_PICTURES = 8
Progress = Callable[[int, int], None]  # (pictures scored, pictures to score)


class Scored(NamedTuple):
    """Scores of the unchanged pictures, and of each arm in the order of the arms."""

    clean: Scores
    arms: tuple[Scores, ...]


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
        clusters=int(resample(bases.prompts, len(scored.clean)).clusters.max()) + 1,
        suites=reports,
        seed=seed,
        draws=draws,
        versions=_versions(),
    )


def get_probe(ref: str, registry: Registry) -> Probe:
    """Build the suite that `ref` names: `name` or `dist/name`, with `?option=value&...` typed by its factory.

    Raises:
        RewardError: no such suite, options that it does not take, or a factory that fails.

    Example:
        >>> from ddpo_rewards import load_registry
        >>> get_probe("stress?max_gain=0.5", load_registry()).options["max_gain"]
        0.5
    """
    parsed = parse_reference(ref)
    if parsed.weight != 1.0:
        raise RewardError(f"suite {ref!r} has a weight; only rewards have one: say {parsed.ref!r}")
    spec = _find(parsed.ref, registry)
    try:
        factory = import_attribute(spec.factory) if isinstance(spec.factory, str) else spec.factory
        options = typed_options(factory, parsed.options, reward=spec.name)
        probe = factory(**options)
    except RewardError as error:
        raise RewardError(str(error).replace("reward ", "suite ", 1)) from error
    except Exception as error:
        raise RewardError(f"suite {spec.name!r} cannot be built: {type(error).__name__}: {error}") from error
    return _checked(probe, spec.name)


def score_arms(
    reward: Reward, bases: BaseSet, arms: Sequence[Arm], *, batch_size: int, progress: Progress | None = None
) -> Scored:
    """Score the unchanged pictures and every arm; `batch_size` changes no picture.

    Raises:
        RewardError: a picture that cannot be read, or whatever is wrong with the reward.
    """
    count = count_images(bases.images)
    everything = (Arm(cell="", name="clean", change=_unchanged), *arms)
    table = np.empty((len(everything), count), np.float64)
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        images = read_images(bases, rows)
        for number, arm in enumerate(everything):
            table[number, rows.start : rows.stop] = _score_arm(reward, bases, arm, images, rows)
            if progress is not None:
                progress(start * len(everything) + (number + 1) * len(rows), count * len(everything))
    return Scored(table[0], tuple(table[1:]))


def digest(bases: BaseSet, *, batch_size: int) -> str:
    """The sha256 of every picture's size, pixels and prompt: which base set a report is about.

    Raises:
        RewardError: a picture that cannot be read; found out before anything is scored.
    """
    total = hashlib.sha256()
    count = count_images(bases.images)
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        for row, image in zip(rows, read_images(bases, rows), strict=True):
            prompt = "" if bases.prompts is None else bases.prompts[row]
            total.update(f"{image.size} {len(prompt)} {prompt}".encode())
            total.update(image.tobytes())
    return total.hexdigest()


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
        reports.append(SuiteReport(suite=ref, options=probes[ref].options, arms=plan, scores=scores, findings=findings))
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
        "weights": [_pin(_used(weight, reward.options)) for weight in spec.weights],
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


def _used(weight: Weight, options: Mapping[str, Any]) -> Weight:
    """These weights, or what an option put in their place: a file, a folder, a repository of the hub, a server."""
    given = [option for option in weight.replaced_by if options.get(option) is not None]
    if weight.embedded and options.get(given[0] if given else "model") == EMBEDDED:
        return Weight(source=EMBEDDED, filename=weight.embedded, sha256=tree_sha256(embedded_path(weight)))
    if not given or weight.source == f"hf://{options[given[0]]}":
        return weight
    place = str(options[given[0]])
    if Path(place).exists():
        return Weight(source=place, sha256=tree_sha256(Path(place)))
    revision = options.get("revision" if given[0] == "model" else f"{given[0]}_revision")
    return Weight(source=place if "://" in place else f"hf://{place}", revision=revision)


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


def _find(name: str, registry: Registry) -> ProbeSpec:
    listed = registry.list_probes()
    full = {f"{spec.distribution}/{spec.name}": spec for spec in listed.values()}
    if name in listed or name in full:
        return listed.get(name) or full[name]
    several = [key for key, spec in full.items() if spec.name == name]
    if several:
        raise RewardError(f"suite {name!r} is registered by several plugins; say {' or '.join(several)}")
    near = difflib.get_close_matches(name, listed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    failed = "".join(f" Plugin {failure.plugin} failed: {failure.error}." for failure in registry.failures)
    raise RewardError(f"suite {name!r} is not installed; {hint}Installed: {', '.join(listed)}.{failed}")


def _checked(probe: Any, name: str) -> Probe:
    if not isinstance(probe, Probe):
        raise RewardError(f"suite {name!r} built {probe!r}; want a ddpo_rewards.probes.Probe")
    return probe


def _score_arm(reward: Reward, bases: BaseSet, arm: Arm, images: Sequence[Image.Image], rows: range) -> Scores:
    changed = map_in_threads(lambda i: arm.change(images[i], rows[i]), range(len(rows)))
    sources = [row if arm.prompt_rows is None else arm.prompt_rows[row] for row in rows]
    return (arm.score or together)(reward, changed, pick(bases.prompts, sources), pick(bases.metadata, sources))


def _unchanged(image: Image.Image, _: int) -> Image.Image:
    return image

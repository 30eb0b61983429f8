"""From the name of a suite to the probe that a plugin, or this package, registered under it."""

import difflib
from typing import Any

from ddpo_rewards.errors import RewardError
from ddpo_rewards.probes.types import Probe
from ddpo_rewards.references import import_attribute, parse_reference, typed_options
from ddpo_rewards.registry import Registry
from ddpo_rewards.specs import ProbeSpec


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

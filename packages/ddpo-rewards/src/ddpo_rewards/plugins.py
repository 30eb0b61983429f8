"""The hooks of the plugin group `ddpo_rewards`, and how plugins are found and loaded.

The built-in rewards come through the same hooks. Plugins are loaded one by one, so that a broken one is listed with its
error and breaks nothing else.
"""

import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from ddpo_rewards.errors import RewardError
from ddpo_rewards.specs import ProbeSpec, RewardSpec

if TYPE_CHECKING:
    from ddpo_rewards.reward import Reward

BUILTIN_DISTRIBUTION = "ddpo-rewards"
EVERYTHING = "*"
PROJECT = "ddpo_rewards"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
_S = TypeVar("_S", RewardSpec, ProbeSpec)


@hookspec
def register_rewards(register: Callable[[RewardSpec], None]) -> None:
    """Call `register(RewardSpec(...))` once per reward; import nothing heavy here, name the factory as a string."""


@hookspec
def register_probes(register: Callable[[ProbeSpec], None]) -> None:
    """Call `register(ProbeSpec(...))` once per probe."""


@hookspec(firstresult=True)
def resolve_reward(ref: str, options: Mapping[str, Any]) -> "Reward | Callable[..., Any] | None":
    """Turn a `scheme://...` reference into a reward or a score function, or return None where it is not yours."""


@dataclass(frozen=True, slots=True)
class PluginFailure:
    """A plugin that could not be loaded, and why, in one line."""

    plugin: str  # "distribution:entry-point"
    error: str


@dataclass(frozen=True, slots=True)
class Plugins:
    """What loading found: the pluggy manager, everything registered, and the failures."""

    manager: pluggy.PluginManager
    rewards: tuple[RewardSpec, ...]
    probes: tuple[ProbeSpec, ...]
    names: tuple[str, ...]
    failures: tuple[PluginFailure, ...]


def load_plugins(*, disabled: Collection[str] = (), strict: bool = False) -> Plugins:
    """Load the built-in rewards and every installed plugin of the entry-point group `ddpo_rewards`.

    `disabled` names distributions, entry points or `distribution:entry-point`; `*` disables every plugin but the
    built-in ones. The environment adds to both: `DDPO_REWARDS_DISABLE` (comma-separated) and `DDPO_REWARDS_STRICT`
    (any value but `0` or empty).

    Raises:
        RewardError: with strictness, at the first plugin that fails.
    """
    off = {*disabled, *_listed(os.environ.get("DDPO_REWARDS_DISABLE", ""))}
    strict = strict or os.environ.get("DDPO_REWARDS_STRICT", "") not in {"", "0"}
    found = sorted(entry_points(group=PROJECT), key=lambda entry: (_name(entry) != "builtin", _name(entry)))
    return load_entry_points([entry for entry in found if not _is_disabled(entry, off)], strict=strict)


def load_entry_points(entries: Iterable[EntryPoint], *, strict: bool = False) -> Plugins:
    """Load these entry points and no others, in this order."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(sys.modules[__name__])
    rewards: list[RewardSpec] = []
    probes: list[ProbeSpec] = []
    names: list[str] = []
    failures: list[PluginFailure] = []
    for entry in entries:
        name = _name(entry)
        try:
            new_rewards, new_probes = _load_one(manager, entry, name)
        # A plugin is a stranger's code: whatever it raises (SystemExit too) must not take the others along.
        except (Exception, SystemExit) as error:
            if manager.has_plugin(name):
                manager.unregister(name=name)
            failure = PluginFailure(name, _one_line(error))
            if strict:
                raise RewardError(f"plugin {name!r} does not load: {failure.error}") from error
            failures.append(failure)
            continue
        names.append(name)
        rewards += new_rewards
        probes += new_probes
    return Plugins(manager, tuple(rewards), tuple(probes), tuple(names), tuple(failures))


def distribution_of(entry: EntryPoint) -> str:
    """The normalised name of the distribution that declares an entry point."""
    return _normalised(entry.dist.name) if entry.dist is not None else "unknown"


def _load_one(manager: pluggy.PluginManager, entry: EntryPoint, name: str) -> tuple[list[RewardSpec], list[ProbeSpec]]:
    plugin = entry.load()
    if manager.has_plugin(name) or manager.is_registered(plugin):
        raise RewardError(f"{entry.value!r} is registered twice; declare it once")
    manager.register(plugin, name=name)
    manager.check_pending()  # a misspelt hook is otherwise ignored in silence
    others = [other for other in manager.get_plugins() if other is not plugin]
    hooks = [manager.subset_hook_caller(hook, others) for hook in ("register_rewards", "register_probes")]
    rewards: list[RewardSpec] = []
    probes: list[ProbeSpec] = []
    hooks[0](register=_collector(rewards, RewardSpec, distribution_of(entry)))
    hooks[1](register=_collector(probes, ProbeSpec, distribution_of(entry)))
    return rewards, probes


def _collector(into: list[_S], kind: type[_S], distribution: str) -> Callable[[Any], None]:
    def register(spec: Any) -> None:
        if not isinstance(spec, kind):
            raise RewardError(f"register() was given {spec!r}; want a {kind.__name__}")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", spec.name):
            raise RewardError(f"the name {spec.name!r} is not letters, digits, '_', '-' or '.'")
        if any(spec.name == other.name for other in into):
            raise RewardError(f"registers the name {spec.name!r} twice; rename one")
        into.append(replace(spec, distribution=distribution))

    return register


def _name(entry: EntryPoint) -> str:
    distribution = distribution_of(entry)
    is_builtin = distribution == BUILTIN_DISTRIBUTION and entry.name == "builtin"
    return "builtin" if is_builtin else f"{distribution}:{entry.name}"


def _is_disabled(entry: EntryPoint, disabled: Collection[str]) -> bool:
    if _name(entry) == "builtin":
        return False
    off = {_normalised(name) for name in disabled}
    names = {distribution_of(entry), _normalised(entry.name), _normalised(_name(entry))}
    return EVERYTHING in disabled or bool(names & off)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())

"""From a reference to a reward: names, `module:attr`, and schemes that plugins resolve."""

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ddpo_rewards.errors import RewardError
from ddpo_rewards.plugins import BUILTIN_DISTRIBUTION, PluginFailure, Plugins, load_plugins
from ddpo_rewards.references import import_attribute, parse_reference, typed_options
from ddpo_rewards.specs import ProbeSpec, RewardSpec

if TYPE_CHECKING:
    from ddpo_rewards.reward import Reward

_CALL = "()"


@dataclass(frozen=True, slots=True)
class Registry:
    """The rewards of one loading of the plugins; nothing is kept between loadings."""

    plugins: Plugins

    @property
    def failures(self) -> tuple[PluginFailure, ...]:
        """Plugins that could not be loaded, with their errors."""
        return self.plugins.failures

    def list_rewards(self) -> dict[str, RewardSpec]:
        """Every reward under the name that `get_reward` takes: bare, or `dist/name` where two plugins share one."""
        counts = Counter(spec.name for spec in self.plugins.rewards)
        return {_listed_name(spec, counts): spec for spec in self.plugins.rewards}

    def list_probes(self) -> dict[str, ProbeSpec]:
        """Every probe, named as in `list_rewards`."""
        counts = Counter(spec.name for spec in self.plugins.probes)
        return {_listed_name(spec, counts): spec for spec in self.plugins.probes}

    def get_reward(self, ref: str, /, **options: Any) -> "Reward":
        """Build the reward that `ref` names; see the module function of the same name."""
        parsed = parse_reference(ref)
        if parsed.weight != 1.0:
            raise RewardError(f"reward {ref!r} has a weight; weighted rewards are built by combine({ref!r}, ...)")
        merged = {**parsed.options, **options}
        if "://" in parsed.ref:
            return self._resolve_scheme(parsed.ref, merged)
        if ":" in parsed.ref:
            return _from_module(parsed.ref, merged)
        return _build(self.find_spec(parsed.ref), merged)

    def find_spec(self, name: str) -> RewardSpec:
        """The description of a registered reward, by `name` or `dist/name`."""
        matches = [spec for spec in self.plugins.rewards if name in (spec.name, f"{spec.distribution}/{spec.name}")]
        builtin = [spec for spec in matches if spec.distribution == BUILTIN_DISTRIBUTION]
        if builtin or len(matches) == 1:
            return (builtin or matches)[0]
        if matches:
            full = " and ".join(repr(f"{spec.distribution}/{spec.name}") for spec in matches)
            raise RewardError(f"reward {name!r} is registered by several plugins; say {full}")
        raise RewardError(_unknown(name, self))

    def _resolve_scheme(self, ref: str, options: Mapping[str, Any]) -> "Reward":
        from ddpo_rewards.reward import Reward

        try:
            found = self.plugins.manager.hook.resolve_reward(ref=ref, options=options)
        except RewardError:
            raise
        except Exception as error:
            raise RewardError(f"reward {ref!r} cannot be resolved: {type(error).__name__}: {error}") from error
        if found is None:
            scheme = ref.split("://")[0]
            raise RewardError(
                f"reward {ref!r}: no installed plugin resolves {scheme!r} addresses; install one that does"
            )
        return found if isinstance(found, Reward) else _wrap(ref, found, {})


def load_registry(*, disabled: Collection[str] = (), strict: bool = False) -> Registry:
    """Load the plugins afresh; `disabled=["*"]` leaves the built-in rewards only (see `plugins.load_plugins`)."""
    return Registry(load_plugins(disabled=disabled, strict=strict))


def list_rewards() -> dict[str, RewardSpec]:
    """Describe every installed reward, importing none of them.

    Example:
        >>> list_rewards()["jpeg_compressibility"].unit
        'kB'
    """
    return load_registry().list_rewards()


def get_reward(ref: str, /, **options: Any) -> "Reward":
    """Build the reward that `ref` names, with options as strings (typed by its signature) or as values.

    `ref` is `name`, `dist/name`, `module:attr` (a score function), `module:make()` (a factory of one), or
    `scheme://...` where a plugin resolves it; `?option=value&...` may follow.

    Raises:
        RewardError: no such reward (with the nearest names), or options that it does not take.

    Example:
        >>> get_reward("jpeg_incompressibility?quality=80").options
        {'quality': 80}
        >>> get_reward("jpeg_compresibility")
        Traceback (most recent call last):
        ...
        ddpo_rewards.errors.RewardError: reward 'jpeg_compresibility' is not installed; did you mean ...
    """
    return load_registry().get_reward(ref, **options)


def _listed_name(spec: RewardSpec | ProbeSpec, counts: Mapping[str, int]) -> str:
    is_clear = counts[spec.name] == 1 or spec.distribution == BUILTIN_DISTRIBUTION
    return spec.name if is_clear else f"{spec.distribution}/{spec.name}"


def _build(spec: RewardSpec, options: Mapping[str, Any]) -> "Reward":
    from ddpo_rewards.reward import Reward, adapt

    factory = _import_factory(spec)
    typed = typed_options(factory, options, reward=spec.name)
    return Reward(spec, adapt(_make(factory, typed, spec.name), spec.name), typed)


def _import_factory(spec: RewardSpec) -> Callable[..., Any]:
    try:
        factory = import_attribute(spec.factory) if isinstance(spec.factory, str) else spec.factory
    except RewardError as error:
        extras = f"; pip install '{spec.distribution}[{','.join(spec.extras)}]'" if spec.extras else ""
        raise RewardError(f"reward {spec.name!r} cannot be loaded: {error}{extras}") from error
    if not callable(factory):
        raise RewardError(f"reward {spec.name!r} has the factory {factory!r}; want something to call")
    return factory


def _from_module(ref: str, options: Mapping[str, Any]) -> "Reward":
    """`module:attr` is the score function itself, `module:make()` the factory of one."""
    from ddpo_rewards.reward import Reward

    target = import_attribute(ref.removesuffix(_CALL))
    if ref.endswith(_CALL):
        if not callable(target):
            raise RewardError(f"reward {ref!r} is {target!r}, which cannot be called; say {ref[:-2]!r}")
        typed = typed_options(target, options, reward=ref)
        return _wrap(ref, _make(target, typed, ref), typed)
    if isinstance(target, Reward):
        return target
    if isinstance(target, type):
        raise RewardError(f"reward {ref!r} is a class; say {ref + _CALL!r} to score with an instance of it")
    if not callable(target):
        raise RewardError(f"reward {ref!r} is {target!r}; want a function of images[, prompts[, metadata]]")
    typed = typed_options(target, options, reward=ref, keyword_only=True)
    return _wrap(ref, partial(target, **typed) if typed else target, typed)


def _make(factory: Callable[..., Any], options: Mapping[str, Any], name: str) -> Any:
    try:
        return factory(**options)
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"reward {name!r} cannot be built: {type(error).__name__}: {error}") from error


def _wrap(ref: str, function: Any, options: Mapping[str, Any]) -> "Reward":
    from ddpo_rewards.reward import Reward, adapt, needed_data

    if isinstance(function, Reward):
        return function
    score_function = adapt(function, ref)
    return Reward(RewardSpec(name=ref, factory=ref, needs=needed_data(function, ref)), score_function, options)


def _unknown(name: str, registry: Registry) -> str:
    installed = sorted(registry.list_rewards())
    near = difflib.get_close_matches(name, installed, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    failed = "".join(f" Plugin {failure.plugin} failed: {failure.error}." for failure in registry.failures)
    return (
        f"reward {name!r} is not installed; {hint}Installed: {', '.join(installed)}; or name module:function.{failed}"
    )

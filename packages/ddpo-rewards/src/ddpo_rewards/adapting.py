"""Make any callable of `images[, prompts[, metadata]]` a score function, whatever it returns."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ddpo_rewards.types import RewardError, ScoreFunction

_DATA = ("images", "prompts", "metadata")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _Adapted:
    """A callable behind the three-argument call; whatever else it offers (`state`, `differentiable`) shows through."""

    def __init__(self, function: Callable[..., Any], names: Sequence[str], options: Mapping[str, Any]) -> None:
        self._function, self._names, self._options = function, names, options

    def __call__(self, images: Any, prompts: Any, metadata: Any, /) -> Any:
        data = {"images": images, "prompts": prompts, "metadata": metadata}
        if set(self._names) <= set(_DATA):
            # By name: among rewards in the wild the order (images, prompts) and its reverse both exist.
            return self._function(**{name: data[name] for name in self._names}, **self._options)
        return self._function(*[data[name] for name in _DATA[: len(self._names)]], **self._options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._function, name)


def adapt(function: Any, reward: str, options: Mapping[str, Any] | None = None) -> ScoreFunction:
    """Inspect a callable once and return it behind the one call that `Reward` makes; options are bound to it.

    Raises:
        RewardError: not callable, or of a signature other than `f(images[, prompts[, metadata]])`.

    Example:
        >>> def score(prompts, images): return [len(prompt) for prompt in prompts]
        >>> adapt(score, "toy")(None, ["a", "bcd"], None)
        [1, 3]
    """
    if not callable(function):
        raise RewardError(f"reward {reward!r} is {function!r}; want a function of images[, prompts[, metadata]]")
    return _Adapted(function, _data_names(function, reward), options or {})


def _data_names(function: Callable[..., Any], reward: str) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return _DATA[:1]
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return tuple(f"*{name}" for name in _DATA)
    positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
    required = [p.name for p in positional if p.default is inspect.Parameter.empty]
    by_name = tuple(p.name for p in positional if p.name in _DATA and p.kind is not inspect.Parameter.POSITIONAL_ONLY)
    if "images" in by_name and set(required) <= set(by_name):
        return by_name
    taken = positional[:3]
    if "images" in [p.name for p in positional[1:]]:  # f(texts, images): what comes first can only be guessed
        got = ", ".join(p.name for p in positional)
        raise RewardError(f"reward {reward!r} takes ({got}); name its parameters images, prompts and metadata")
    if not taken or len(required) > 3:
        got = ", ".join(p.name for p in positional)
        hint = "; a factory is named with (): module:make()" if not taken else ""
        raise RewardError(f"reward {reward!r} takes ({got}); want a function of images[, prompts[, metadata]]{hint}")
    return tuple(f"*{p.name}" for p in taken if p.name in required or p.name in _DATA) or (f"*{taken[0].name}",)

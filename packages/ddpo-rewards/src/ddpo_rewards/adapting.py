"""Make any callable of `images[, prompts[, metadata]]` a score function, whatever it returns."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ddpo_rewards.options import DATA
from ddpo_rewards.types import RewardError, ScoreFunction

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _Adapted:
    """A callable behind the three-argument call; whatever else it offers (`state`, `differentiable`) shows through."""

    def __init__(self, function: Callable[..., Any], names: Sequence[str]) -> None:
        self._function, self._names = function, names

    def __call__(self, images: Any, prompts: Any, metadata: Any, /) -> Any:
        data = {"images": images, "prompts": prompts, "metadata": metadata}
        if set(self._names) <= set(DATA):
            # By name: among rewards in the wild the order (images, prompts) and its reverse both exist.
            return self._function(**{name: data[name] for name in self._names})
        return self._function(*[data[name] for name in DATA[: len(self._names)]])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._function, name)


def adapt(function: Any, reward: str) -> ScoreFunction:
    """Inspect a callable once and return it behind the one call that `Reward` makes.

    Raises:
        RewardError: not callable, or of a signature other than `f(images[, prompts[, metadata]])`.

    Example:
        >>> def score(prompts, images): return [len(prompt) for prompt in prompts]
        >>> adapt(score, "toy")(None, ["a", "bcd"], None)
        [1, 3]
    """
    if not callable(function):
        raise RewardError(f"reward {reward!r} is {function!r}; want a function of images[, prompts[, metadata]]")
    return _Adapted(function, _data_names(function, reward))


def _data_names(function: Callable[..., Any], reward: str) -> tuple[str, ...]:
    """The arguments to give: real names where they are known, `*name` where they go by position."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return ("*images",)
    by_name = tuple(p.name for p in parameters if p.name in DATA and p.kind in _NAMED)
    positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
    required = [p.name for p in positional if p.default is inspect.Parameter.empty]
    if "images" in by_name and set(required) <= set(by_name):
        return by_name
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return tuple(f"*{name}" for name in DATA)
    got = ", ".join(p.name for p in positional)
    if "images" in [p.name for p in positional[1:]]:  # f(texts, images): what comes first can only be guessed
        raise RewardError(f"reward {reward!r} takes ({got}); name its parameters images, prompts and metadata")
    if not positional or len(required) > len(DATA):
        hint = "" if positional else "; a factory is named with (): module:make()"
        raise RewardError(f"reward {reward!r} takes ({got}); want a function of images[, prompts[, metadata]]{hint}")
    return tuple(f"*{name}" for name in required) or (f"*{positional[0].name}",)

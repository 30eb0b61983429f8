"""Options from a query string, typed by the signature of the function that takes them."""

import builtins
import difflib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ddpo_rewards.types import RewardError

DATA = ("images", "prompts", "metadata")
_KEYWORDS = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def typed_options(
    function: Callable[..., Any], options: Mapping[str, Any], *, reward: str, keyword_only: bool = False
) -> dict[str, Any]:
    """Check options against a signature and convert strings to the annotated types.

    A parameter without annotation takes the type of its default. With `keyword_only` the function is a score function:
    what may be called by position, and `images`, `prompts` and `metadata` in any place, are data and no options.

    Raises:
        RewardError: an option the function does not take, a value of another type, or a required option missing.

    Example:
        >>> def make(*, quality: int = 95, sign=1.0): ...
        >>> typed_options(make, {"quality": "80", "sign": "-1"}, reward="jpeg")
        {'quality': 80, 'sign': -1.0}
    """
    kinds = _KEYWORDS[:1] if keyword_only else _KEYWORDS
    parameters, takes_any = _parameters(function, kinds)
    if keyword_only:
        parameters = {name: parameter for name, parameter in parameters.items() if name not in DATA}
    for name in options:
        if name not in parameters and not takes_any:
            raise RewardError(_unknown(name, parameters, reward))
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in options]
    if missing:
        raise RewardError(f"reward {reward!r} needs the option {missing[0]!r}: say {reward}?{missing[0]}=...")
    return {
        name: _convert(value, parameters[name], reward) if name in parameters else value
        for name, value in options.items()
    }


def _parameters(function: Callable[..., Any], kinds: tuple[Any, ...]) -> tuple[dict[str, inspect.Parameter], bool]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # some functions written in C have no signature
        return {}, True
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    return {p.name: p.replace(annotation=_evaluated(p, function)) for p in parameters if p.kind in kinds}, takes_any


def _evaluated(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    """One annotation at a time: another one may name what is imported for type checkers only."""
    names = vars(sys.modules.get(getattr(function, "__module__", ""), builtins))
    annotation = parameter.annotation
    while isinstance(annotation, str):  # a quoted annotation in a module of postponed ones is a text twice
        try:
            annotation = eval(annotation, dict(names))
        except Exception:  # whatever the text is, it is no type that a string could be converted to
            return inspect.Parameter.empty
    return annotation


def _convert(value: Any, parameter: inspect.Parameter, reward: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    annotation = _annotation(parameter)
    try:
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
        except PydanticUserError:  # dataclasses and models bring their own configuration
            adapter = TypeAdapter(annotation)
        return adapter.validate_python(value)
    except ValidationError as error:
        wanted = getattr(annotation, "__name__", None) or str(annotation)
        why = error.errors()[0]["msg"]
        raise RewardError(
            f"reward {reward!r}: option {parameter.name}={value!r} is not of type {wanted}: {why}"
        ) from error


def _annotation(parameter: inspect.Parameter) -> Any:
    if parameter.annotation is not inspect.Parameter.empty:
        return parameter.annotation
    has_plain_default = isinstance(parameter.default, bool | int | float | str)
    return type(parameter.default) if has_plain_default else Any


def _unknown(name: str, parameters: Mapping[str, inspect.Parameter], reward: str) -> str:
    near = difflib.get_close_matches(name, parameters, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    takes = f"it takes {', '.join(parameters)}" if parameters else "it takes none"
    return f"reward {reward!r} has no option {name!r}; {hint}{takes}"

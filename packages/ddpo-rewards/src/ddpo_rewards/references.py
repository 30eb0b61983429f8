"""What a reference says: `[WEIGHT*]REF[?option=value&...]`, `module:attribute`, and the types of its options."""

import builtins
import difflib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote_plus

from ddpo_rewards.errors import RewardError

DATA = ("images", "prompts", "metadata")
_KEYWORDS = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reward reference; option values are still strings (the factory's signature types them)."""

    ref: str
    weight: float = 1.0
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The reference as one would type it."""
        query = "&".join(f"{name}={quote_plus(str(value), safe=':/')}" for name, value in self.options.items())
        weight = "" if self.weight == 1.0 else f"{number_text(self.weight)}*"
        return f"{weight}{self.ref}{'?' if query else ''}{query}"


def parse_reference(text: str) -> Reference:
    """Parse `[WEIGHT*]REF[?option=value&...]`.

    Values are percent-decoded and `+` is a space, as in a web address: write `&` in a value as `%26`.

    Raises:
        RewardError: an empty reference or one with blanks, a weight that is no finite number, or an option without `=`.

    Example:
        >>> parse_reference("0.5*llava_vqa?endpoint=http://localhost:8000/v1&timeout=30")
        Reference(ref='llava_vqa', weight=0.5, options={'endpoint': 'http://localhost:8000/v1', 'timeout': '30'})
        >>> str(parse_reference("-2*my_plugin:score"))
        '-2*my_plugin:score'
    """
    head, _, query = text.strip().partition("?")
    weight, star, ref = head.rpartition("*")
    ref = ref.strip()
    if not ref:
        raise RewardError(f"reward {text!r} names no reward; want [WEIGHT*]REF[?option=value&...]")
    if any(character.isspace() or not character.isprintable() for character in ref):
        raise RewardError(f"reward {text!r} has a blank in its name {ref!r}; want one name, module:attr or address")
    return Reference(ref, _parse_weight(weight, text) if star else 1.0, _parse_options(query, text))


def number_text(value: float) -> str:
    """The shortest text that reads back as the same number.

    Example:
        >>> number_text(2.0), number_text(0.1)
        ('2', '0.1')
    """
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def import_attribute(ref: str) -> Any:
    """Import what `module:attr` (or `module:object.attr`) names. This runs the module's code.

    Raises:
        RewardError: the module cannot be found or raises while it is imported, or has no such attribute.

    Example:
        >>> import_attribute("math:sqrt")(9.0)
        3.0
    """
    module_name, _, path = ref.partition(":")
    if not module_name or not path:
        raise RewardError(f"reward {ref!r} is not of the form module:attribute")
    value = _import_module(module_name, ref)
    for attribute in path.split("."):
        if not hasattr(value, attribute):
            public = [name for name in dir(value) if not name.startswith("_")]
            raise RewardError(f"reward {ref!r}: {module_name!r} has no {attribute!r}; it has {', '.join(public[:12])}")
        value = getattr(value, attribute)
    return value


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
            raise RewardError(_unknown_option(name, parameters, reward))
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in options]
    if missing:
        raise RewardError(f"reward {reward!r} needs the option {missing[0]!r}: say {reward}?{missing[0]}=...")
    return {
        name: _convert(value, parameters[name], reward) if name in parameters else value
        for name, value in options.items()
    }


def _parse_weight(weight: str, text: str) -> float:
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RewardError(f"reward {text!r} has the weight {weight.strip()!r}; want a finite number before the '*'")
    return value


def _parse_options(query: str, text: str) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        raise RewardError(f"reward {text!r} has unreadable options {query!r}; want option=value&...") from error
    options = dict(pairs)
    if len(options) != len(pairs):
        raise RewardError(f"reward {text!r} gives an option twice; give each option once")
    return options


def _import_module(name: str, ref: str) -> Any:
    importlib.invalidate_caches()  # a module written a moment ago is found too
    try:
        return importlib.import_module(name)
    # SystemExit too: a script without a __main__ guard must not end the caller's process in silence.
    except (Exception, SystemExit) as error:
        is_itself = isinstance(error, ModuleNotFoundError) and error.name == name
        why = _not_found(name) if is_itself else f"importing {name!r} raised {type(error).__name__}: {error}"
        raise RewardError(f"reward {ref!r}: {why}") from error


def _not_found(name: str) -> str:
    lies_here = Path(f"{name.split('.')[0]}.py").exists() and str(Path.cwd()) not in sys.path
    hint = "it lies in the current folder: set PYTHONPATH=." if lies_here else "install it or set PYTHONPATH"
    return f"there is no module {name!r} on the import path; {hint}"


def _parameters(function: Callable[..., Any], kinds: tuple[Any, ...]) -> tuple[dict[str, inspect.Parameter], bool]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # some functions written in C have no signature
        return {}, True
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    return {p.name: p.replace(annotation=_evaluated(p, function)) for p in parameters if p.kind in kinds}, takes_any


def _evaluated(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    """One annotation at a time: another one may name what is imported for type checkers only."""
    written = function.func if isinstance(function, partial) else function
    names = vars(sys.modules.get(getattr(written, "__module__", ""), builtins))
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


def _unknown_option(name: str, parameters: Mapping[str, inspect.Parameter], reward: str) -> str:
    near = difflib.get_close_matches(name, parameters, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    takes = f"it takes {', '.join(parameters)}" if parameters else "it takes none"
    return f"reward {reward!r} has no option {name!r}; {hint}{takes}"

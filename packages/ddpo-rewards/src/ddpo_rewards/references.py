"""The grammar `[WEIGHT*]REF[?option=value&...]` by which a shell, a TOML file or Python names a reward."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote_plus

from ddpo_rewards.types import RewardError


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

"""The options of `ddpo train` that the configuration has: made from its fields, so that none stands twice.

A flag is a key of `RunConfig` under its own name; `SHOWN` says which keys have one, and `--set` reaches all.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from inspect import Parameter, Signature
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.markup import escape
from typer.main import get_command

from ddpo_cli import completion
from ddpo_cli.errors import CLIError, did_you_mean
from ddpo_core.runs.config import OBJECTIVES, RunConfig
from ddpo_core.runs.defaults import FOR_ALGORITHM, FOR_MODEL, FOR_TRAINABLE

SHOWN: Mapping[str, Sequence[str]] = {
    "What to train": ("model", "reward", "prompts"),
    "How to train": (
        "objective.name", "epochs", "fit.num_steps", "fit.samples_per_epoch", "fit.updates_per_epoch",
        "objective.timestep_fraction", "learning_rate", "ema_decay", "trainable", "lora", "lora_rank", "lora_alpha",
        "guidance_scale", "seed", "device", "dtype", "gradient_checkpointing", "compile",
    ),
    "Is the reward being gamed?": ("keep", "held_out", "on_hack", "watch_text"),
    "The run": ("keep_last", "tracker"),
}  # fmt: skip
"""The keys that have a flag, by the panel of the help that shows it."""

SPELT = {"objective.name": ("--algorithm",), "held_out": ("--holdout", "--held-out")}
METAVARS = {
    "reward": "REF", "held_out": "REF", "keep": "REF[>=LEVEL]", "on_hack": "WHAT", "trainable": "PART",
    "compile": "WHEN",
}  # fmt: skip

COMPLETED = {
    "model": completion.models,
    "reward": completion.rewards,
    "held_out": completion.rewards,
    "keep": completion.kept,
    "prompts": completion.prompt_sets,
}


class Key(NamedTuple):
    """A key of the configuration."""

    path: str
    """With its tables before it: `fit.num_steps`."""
    field: FieldInfo

    @property
    def types(self) -> tuple[Any, ...]:
        """What a value may be, None aside."""
        wanted = self.field.annotation
        parts = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
        return tuple(part for part in parts if part is not NoneType)

    @property
    def is_list(self) -> bool:
        """Whether the flag may be repeated."""
        return get_origin(self.types[0]) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are allowed, where only some are."""
        if self.path == "objective.name":
            return tuple(OBJECTIVES)
        inner = get_args(self.types[0])[0] if self.is_list else self.types[0]
        return get_args(inner) if get_origin(inner) is Literal else ()


@cache
def keys() -> Mapping[str, Key]:
    """Return every key of the configuration by its path.

    >>> keys()["fit.num_steps"].field.default
    50
    """
    found: dict[str, Key] = {}
    for key in _keys_of(RunConfig, ""):
        found.setdefault(key.path, key)  # of a key that several objectives have, the first: the default's
    return found


@cache
def options() -> tuple[Any, ...]:
    """Return the flags of the configuration, as what parses them."""
    flags = [_flag(keys()[path], panel) for panel, paths in SHOWN.items() for path in paths]

    def holder(**given: Any) -> None:
        """Own the flags until they are taken."""

    holder.__signature__ = Signature(flags)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(holder)
    return tuple(option for option in get_command(app).params if option.name != "help")


def as_table(flags: Mapping[str, Any], settings: Sequence[str] = ()) -> dict[str, Any]:
    """Return what flags and `--set KEY=VALUE` say, in the tables of the configuration; `--set` has the last word.

    >>> as_table({"epochs": None, "fit__num_steps": "5"}, ["fit.max_grad_norm=2", "reward=[a, b]"])
    {'fit': {'num_steps': '5', 'max_grad_norm': '2'}, 'reward': ['a', 'b']}

    Raises:
        CLIError: a key of `--set` is none, or a value is missing.
    """
    said = {name.replace("__", "."): value for name, value in flags.items() if value not in (None, [], ())}
    whole: dict[str, Any] = {}
    for path, value in {**said, **dict(_parsed(setting) for setting in settings)}.items():
        *tables, name = path.split(".")
        place = whole
        for table in tables:
            place = place.setdefault(table, {})
        place[name] = value
    return whole


def _parsed(setting: str) -> tuple[str, str | list[str]]:
    path, equals, value = (part.strip() for part in setting.partition("="))
    if not equals:
        raise CLIError(f"--set {setting!r} has no value; want KEY=VALUE, such as --set fit.num_steps=10")
    key = keys().get(path)
    if key is None:
        inside = [known for known in keys() if known.rpartition(".")[2] == path]
        hint = f"; did you mean {inside[0]!r}?" if inside else did_you_mean(path, list(keys()))
        raise CLIError(f"--set {setting!r}: {path!r} is not an option{hint or '; config.toml of any run has them all'}")
    if key.is_list and value.startswith("[") and value.endswith("]"):
        return path, [part.strip().strip("\"'") for part in value[1:-1].split(",") if part.strip()]
    return path, value


def _keys_of(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        key = Key(f"{prefix}{name}", field)
        tables = [part for part in key.types if isinstance(part, type) and issubclass(part, BaseModel)]
        if not tables:
            yield key
        for table in tables:  # of several, each has some keys that the others lack
            yield from _keys_of(table, f"{key.path}.")


def _flag(key: Key, panel: str) -> Parameter:
    """Return a parameter that typer makes an option of; all but switches is text, which the configuration reads."""
    is_switch = key.types == (bool,)
    name = key.path.rpartition(".")[2].replace("_", "-")
    option = typer.Option(
        *SPELT.get(key.path, (f"--{name}/--no-{name}" if is_switch else f"--{name}",)),
        metavar=None if is_switch else _metavar(key),
        help=_help(key),
        show_default=False,
        rich_help_panel=panel,
        autocompletion=(lambda: list(key.choices)) if key.choices else COMPLETED.get(key.path),
    )
    kind = bool if is_switch else list[str] if key.is_list else str
    return Parameter(
        key.path.replace(".", "__"), Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _metavar(key: Key) -> str:
    return METAVARS.get(key.path) or {int: "N", float: "X"}.get(key.types[0], key.path.rpartition(".")[2].upper())


def _help(key: Key) -> str:
    """What a key is, and its defaults: that of most models, and of those that have their own."""
    description = (key.field.description or "").strip()
    if description.split(" ", 1)[0].replace("-", "").isalpha():  # a name such as builtin:emoji is written as it is
        description = description[:1].upper() + description[1:]
    choices = f" ({', '.join(key.choices[:-1])} or {key.choices[-1]})" if key.choices else ""
    unsaid = choices if any(choice not in description for choice in key.choices) else ""
    text = f"{description}{unsaid}.{' Repeat for several.' if key.is_list else ''}"
    general = key.field.get_default(call_default_factory=True)
    defaults = [] if general in (None, (), PydanticUndefined) else [_shown(general)]
    whole = {f"--trainable {part}": table for part, table in FOR_TRAINABLE.items()}
    for whose, table in {**FOR_MODEL, **FOR_ALGORITHM, **whole}.items():
        value = _within(table, key.path)
        if value is not None and value != general:
            defaults.append(f"{whose}: {_shown(value)}")
    listed = escape(f"[default: {'; '.join(defaults)}]")
    return f"{escape(text)} [dim]{listed}[/dim]" if defaults else escape(text)


def _shown(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def _within(table: Mapping[str, Any], path: str) -> Any:
    """Return what `table` says of a key, None where it says nothing."""
    value: Any = table
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value

"""From defaults, a preset, a file and flags to one configuration: each overrides those before it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpo_cli.config import (
    BUILTIN_MODEL,
    FOR_ALGORITHM,
    FOR_MODEL,
    FOR_MODEL_AND_ALGORITHM,
    FOR_TRAINABLE,
    OBJECTIVES,
    ObjectiveOptions,
    RunConfig,
)
from ddpo_cli.config_file import VERSIONS, read_toml
from ddpo_cli.errors import CLIError
from ddpo_cli.presets import read_preset
from ddpo_core import FitConfig, parse_config


def resolve(file: Path | None, flags: Mapping[str, Any], *, preset: str | None = None) -> RunConfig:
    """Return the defaults for the model, overridden by `preset`, by `file`, and by `flags` that say something.

    Flags are flat: those of `FitConfig` go under `fit`, those of objectives under `objective`. None and an empty list
    say nothing. A file or flags that choose an algorithm, or what is trained, override the preset with the defaults of
    their choice.

    Raises:
        ValueError: a value is out of range, a key or the preset is unknown, or `file` is no TOML.
    """
    given = nest({key: value for key, value in flags.items() if value is not None and value != []})
    task = read_preset(preset) if preset is not None else {}
    stored = read_toml(file) if file else {}
    stored.pop(VERSIONS, None)
    model = ({"model": BUILTIN_MODEL} | task | stored | given)["model"]
    try:
        first = _brought_along(model, _algorithm(task), task.get("trainable"))
        then = _brought_along(model, _algorithm(given) or _algorithm(stored), (stored | given).get("trainable"))
        config = validate(_known(FOR_MODEL, model), *first, task, *then, stored, given)
    except ValueError as error:
        raise CLIError(f"{file}: {error}" if file else str(error)) from None
    if config.trainable == "unet" and "lora_rank" in given:
        raise CLIError(f"--lora-rank {config.lora_rank} is of a LoRA, and --trainable unet has none; leave out one")
    return config


def read_run_config(run: Path) -> RunConfig:
    """Return the configuration that `run` was started with.

    Raises:
        ValueError: its config.toml is missing or was made unreadable.
    """
    stored = read_toml(run / "config.toml")
    stored.pop(VERSIONS, None)
    try:
        return validate(stored)
    except ValueError as error:
        raise CLIError(f"{run / 'config.toml'}: {error}") from None


def validate(*layers: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `layers` give, each overriding those before it.

    >>> validate({"epochs": 7, "fit": {"num_steps": 3}}, {"fit": {"samples_per_epoch": 8}}).fit.num_steps
    3
    >>> validate({"epoch": 7})
    Traceback (most recent call last):
    ddpo_core.errors.DDPOError: 'epoch' is not an option; did you mean 'epochs'?
    """
    whole: dict[str, Any] = {}
    fit: dict[str, Any] = {}
    objective: dict[str, Any] = {"name": "ddpo-is"}
    for layer in layers:
        whole |= layer
        fit |= _table(layer, "fit")
        objective = _override(objective, _table(layer, "objective"))
    if "algorithm" in whole:
        raise CLIError("'algorithm' is the flag for the name of the objective; write: [objective] name = ...")
    for key in whole:
        if key in FitConfig.model_fields or key in _OBJECTIVE_FIELDS:
            place = "fit" if key in FitConfig.model_fields else "objective"
            raise CLIError(f"{key!r} stands outside its table; write it under [{place}]")
    options = parse_config(_objective_model(objective["name"]), objective)
    return parse_config(RunConfig, {**whole, "fit": parse_config(FitConfig, fit), "objective": options})


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Put the keys of `FitConfig` under `fit`, those of objectives under `objective`; `algorithm` is its name.

    >>> nest({"epochs": 2, "num_steps": 5, "algorithm": "rwr"})
    {'epochs': 2, 'fit': {'num_steps': 5}, 'objective': {'name': 'rwr'}}
    """
    fit = {key: value for key, value in flat.items() if key in FitConfig.model_fields}
    named = {"name" if key == "algorithm" else key: value for key, value in flat.items() if key not in fit}
    objective = {key: value for key, value in named.items() if key in _OBJECTIVE_FIELDS}
    tables = {"fit": fit, "objective": objective}
    rest = {key: value for key, value in named.items() if key not in objective}
    return rest | {name: table for name, table in tables.items() if table}


def differences(stored: RunConfig, wanted: RunConfig, *, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Return what `wanted` says otherwise than `stored`, as `key: stored -> wanted`, `allowed` keys left out.

    >>> config = validate({})
    >>> differences(config, config.model_copy(update={"seed": 1}))
    ['seed: 0 -> 1']
    """
    before, after = _flat(stored), _flat(wanted)
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in {**before, **after}
        if key not in allowed and before.get(key) != after.get(key)
    ]


_OBJECTIVE_FIELDS = frozenset(key for model in OBJECTIVES.values() for key in model.model_fields)


def _table(layer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = layer.get(name, {})
    if not isinstance(table, Mapping):
        raise CLIError(f"{name}={table!r}: want a table, [{name}]")
    return table


def _override(before: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Override an objective's options; one that names another keeps those of before that it has as well."""
    name, baseline = (table.get(key, before.get(key)) for key in ("name", "baseline"))
    kept = dict(before)
    if name != before["name"]:
        kept = {key: value for key, value in kept.items() if key in _objective_model(name).model_fields}
    if baseline != before.get("baseline"):
        kept = {key: value for key, value in kept.items() if key not in ("buffer_size", "min_count")}
    for key in table:
        owners = [other for other, model in OBJECTIVES.items() if key in model.model_fields]
        if owners and name not in owners:
            raise CLIError(
                f"{key!r} is an option of {' and '.join(owners)}, and the objective is {name!r}; leave it out"
            )
    return {**kept, **table}


def _objective_model(name: object) -> type[ObjectiveOptions]:
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise CLIError(f"objective.name={name!r}: want one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def _algorithm(said: Mapping[str, Any]) -> object:
    return _table(said, "objective").get("name")


def _brought_along(model: object, algorithm: object, trainable: object) -> tuple[Mapping[str, Any], ...]:
    """Return the defaults that the choice of an algorithm, or of what is trained, brings along for `model`."""
    return (
        {} if algorithm is None else {"objective": {"name": algorithm}},
        _known(FOR_ALGORITHM, algorithm),
        _known(FOR_MODEL_AND_ALGORITHM, (model, algorithm)),
        _known(FOR_TRAINABLE, trainable),
    )


def _known(defaults: Mapping[Any, Mapping[str, Any]], name: object) -> Mapping[str, Any]:
    try:
        return defaults.get(name, {})
    except TypeError:  # a file may say anything, also what cannot be looked up; it is refused later
        return {}


def _flat(config: RunConfig) -> dict[str, Any]:
    table = config.model_dump()
    fit, objective = table.pop("fit"), table.pop("objective")
    return {**table, **{f"objective.{key}": value for key, value in objective.items()}, **fit}

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
    RunConfig,
)
from ddpo_cli.config_file import VERSIONS, read_toml
from ddpo_cli.errors import CLIError
from ddpo_cli.presets import read_preset
from ddpo_core import FitConfig, parse_config


def resolve(file: Path | None, flags: Mapping[str, Any], *, preset: str | None = None) -> RunConfig:
    """Return the defaults for the model, overridden by `preset`, by `file`, and by `flags` that say something.

    Flags are flat: those that belong to `FitConfig` are put under `fit`. None and an empty list say nothing. A file or
    flags that choose an algorithm, or what is trained, override the preset with the defaults of their choice.

    Raises:
        ValueError: a value is out of range, a key or the preset is unknown, or `file` is no TOML.
    """
    given = nest({key: value for key, value in flags.items() if value is not None and value != []})
    task = read_preset(preset) if preset is not None else {}
    stored = read_toml(file) if file else {}
    stored.pop(VERSIONS, None)
    model = ({"model": BUILTIN_MODEL} | task | stored | given)["model"]
    layers = (*_brought_along(task, model), task, *_brought_along(stored | given, model), stored, given)
    try:
        config = validate(_known(FOR_MODEL, model), *layers)
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
    for layer in layers:
        whole |= layer
        part = layer.get("fit", {})
        if not isinstance(part, Mapping):
            raise CLIError(f"fit={part!r}: want a table, [fit]")
        fit |= part
    misplaced = [key for key in whole if key in FitConfig.model_fields]
    if misplaced:
        raise CLIError(f"{misplaced[0]!r} stands outside its table; write it under [fit]")
    return parse_config(RunConfig, {**whole, "fit": parse_config(FitConfig, fit)})


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Put the keys of `FitConfig` under `fit`.

    >>> nest({"epochs": 2, "num_steps": 5})
    {'epochs': 2, 'fit': {'num_steps': 5}}
    """
    fit = {key: value for key, value in flat.items() if key in FitConfig.model_fields}
    return {key: value for key, value in flat.items() if key not in fit} | ({"fit": fit} if fit else {})


def differences(stored: RunConfig, wanted: RunConfig, *, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Return what `wanted` says otherwise than `stored`, as `key: stored -> wanted`, `allowed` keys left out.

    >>> config = validate({})
    >>> differences(config, config.model_copy(update={"seed": 1}))
    ['seed: 0 -> 1']
    """
    before, after = _flat(stored), _flat(wanted)
    return [
        f"{key}: {before[key]!r} -> {after[key]!r}"
        for key in before
        if key not in allowed and before[key] != after[key]
    ]


def _brought_along(said: Mapping[str, Any], model: object) -> tuple[Mapping[str, Any], ...]:
    """Return the defaults of what `said` chooses, for `model`."""
    algorithm = said.get("algorithm")
    return (
        _known(FOR_ALGORITHM, algorithm),
        _known(FOR_MODEL_AND_ALGORITHM, (model, algorithm)),
        _known(FOR_TRAINABLE, said.get("trainable")),
    )


def _known(defaults: Mapping[Any, Mapping[str, Any]], name: object) -> Mapping[str, Any]:
    try:
        return defaults.get(name, {})
    except TypeError:  # a file may say anything, also what cannot be looked up; it is refused later
        return {}


def _flat(config: RunConfig) -> dict[str, Any]:
    table = config.model_dump()
    return {**{key: value for key, value in table.items() if key != "fit"}, **table["fit"]}

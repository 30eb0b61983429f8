"""The defaults of a run by model, algorithm and what is trained, and how what was chosen overrides them.

config = run_config({"reward": "my reward", "epochs": 8, "fit": {"num_steps": 4}})
"""

from collections.abc import Mapping
from typing import Any

from ddpo_core.runs.config import (
    BUILTIN_MODEL,
    INITIAL_VIEW,
    OBJECTIVE_FIELDS,
    OF_A_LORA,
    REPLACES,
    VERSIONS,
    RunConfig,
    objective_model,
    subtable,
    validate,
)

FOR_MODEL: Mapping[str, Mapping[str, Any]] = {
    BUILTIN_MODEL: {
        "epochs": 50,
        "learning_rate": 1.1e-3,
        "learning_rate_half_life": 30.0,
        "lora_rank": 8,
        "guidance_scale": 1.0,
        "keep": INITIAL_VIEW,
        "objective": {
            "baseline": "run",
            "timestep_weighting": "noise",
            "timestep_window": 2,
            "timestep_window_epochs": 0,
        },
        "fit": {
            "num_steps": 5,
            "updates_per_epoch": 8,
            "sample_batch_size": 32,
            "micro_batch_size": 32,
        },
    }
}
"""What differs from `RunConfig`'s defaults for a model whose best settings were measured (benchmarks/RESULTS.md)."""

FOR_ALGORITHM: Mapping[str, Mapping[str, Any]] = {
    "ddpo-sf": {"fit": {"updates_per_epoch": 1}},
    "rwr": {"fit": {"passes_per_epoch": 5}},
    "sparse-rwr": {"fit": {"passes_per_epoch": 50, "samples_per_prompt": 16}},
}
"""What differs for another algorithm than DDPO-IS: one update per epoch keeps DDPO-SF on policy; the passes of
regression are those of the reference (jannerm/ddpo, pipeline/run-*.sh)."""

FOR_MODEL_AND_ALGORITHM: Mapping[tuple[str, str], Mapping[str, Any]] = {
    (BUILTIN_MODEL, "ddpo-sf"): {"learning_rate": 3e-3},
    (BUILTIN_MODEL, "rwr"): {
        "learning_rate": 5e-4,
        "learning_rate_half_life": 60.0,
        "objective": {"inverse_temperature": 4.0},
        "fit": {"passes_per_epoch": 1},
    },
    (BUILTIN_MODEL, "sparse-rwr"): {
        "learning_rate": 5e-4,
        "learning_rate_half_life": 60.0,
        "fit": {"passes_per_epoch": 5},
    },
}
"""What differs from both for an algorithm on a model: one update per epoch bears a higher rate; regression needs fewer
passes than the reference makes, and weights that tell rewards of a few tenths of a kilobyte apart."""

FOR_TRAINABLE: Mapping[str, Mapping[str, Any]] = {"unet": {"learning_rate": 1e-5}}
"""What differs where all weights of the UNet are trained (jannerm/ddpo, pipeline/policy_gradient.py)."""


def run_config(
    given: Mapping[str, Any], *, stored: Mapping[str, Any] | None = None, preset: Mapping[str, Any] | None = None
) -> RunConfig:
    """Return the defaults for the model, overridden by `preset`, by `stored`, and by what is `given`.

    What chooses an algorithm, or what is trained, brings the defaults of its choice along; where `stored` or `given`
    do, they override the preset's. A file that a run has written (it has the table `versions`) is whole, so that
    it does not say what was chosen and what was a default: where `given` chooses another model, algorithm or trainable
    than such a file, the file counts where it differs from the defaults of its own choices, and nowhere else. A file
    written by hand keeps its word: an option in it that `given` leaves no use for is an error. Of a preset, and of a
    file that is whole, such options are left out; `left_out` names them.

    Args:
        given: What was chosen, in the tables of the configuration.
        stored: A configuration file as `read_toml` returns it.
        preset: The configuration of a task.

    Raises:
        DDPOError: A value is out of range, a key is unknown or in the wrong table, or an option does nothing.

    Example:
        >>> run_config({"epochs": 8}).fit.num_steps, run_config({"model": "someone/model"}).fit.num_steps
        (5, 50)
    """
    task, file = preset or {}, dict(stored or {})
    is_whole = file.pop(VERSIONS, None) is not None
    if is_whole and _choices(file, given) != _choices(file):
        file = _beyond_its_defaults(file)
    if not is_whole:  # both are somebody's word: neither drops what the other says
        tables = {name: {**subtable(file, name), **subtable(given, name)} for name in ("fit", "objective")}
        file, given = {}, {**file, **given, **tables}
    model = {"model": BUILTIN_MODEL, **task, **file, **given}["model"]
    algorithm, trainable = _algorithm(given) or _algorithm(file), {**file, **given}.get("trainable")
    if is_whole and _algorithm(given):
        file = {**file, "objective": _shared_options(subtable(file, "objective"), algorithm)}
    brought = _brought_along(model, algorithm, trainable)
    layers = (*_brought_along(model, _algorithm(task), task.get("trainable")), task, *brought, file, given)
    return validate(_known(FOR_MODEL, model), *layers)


def left_out(config: RunConfig, said: Mapping[str, Any]) -> list[str]:
    """Return the options in `said` that `config` has no use for, such as those of another algorithm.

    Example:
        >>> preset = {"objective": {"clip_range": 1e-3, "timestep_fraction": 0.5}}
        >>> left_out(run_config({"objective": {"name": "rwr"}}, preset=preset), preset)
        ['clip_range']
    """
    replaced = (*OF_A_LORA, *(name for names in REPLACES.values() for name in names))
    return [
        *(key for key in said if key in replaced and getattr(config, key) is None),
        *(key for key in subtable(said, "objective") if getattr(config.objective, key, None) is None),
    ]


def beyond_defaults(config: RunConfig) -> dict[str, Any]:
    """Return what was chosen otherwise than the defaults of the model, the algorithm and what is trained say.

    Example:
        >>> beyond_defaults(run_config({"epochs": 8, "fit": {"num_steps": 4}}))
        {'epochs': 8, 'fit': {'num_steps': 4}}
    """
    table = config.model_dump(mode="json", exclude_none=True)
    usual = {"model": BUILTIN_MODEL, "trainable": "lora", "objective": {"name": "ddpo-is"}}
    chosen = {key: value for key, value in _beyond_its_defaults(table).items() if usual.get(key) != value}
    if chosen.get("objective", {}).get("name") == "ddpo-is":
        chosen["objective"] = {key: value for key, value in chosen["objective"].items() if key != "name"}
    return chosen


def _shared_options(table: Mapping[str, Any], name: object) -> dict[str, Any]:
    """Return the options in `table` but those that objectives have and `name` has not, under that name."""
    others = OBJECTIVE_FIELDS - objective_model(name).model_fields.keys()
    return {**{key: value for key, value in table.items() if key not in others}, "name": name}


def _algorithm(said: Mapping[str, Any]) -> object:
    return subtable(said, "objective").get("name")


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


def _choices(*layers: Mapping[str, Any]) -> tuple[object, object, object]:
    """What decides the defaults: the model, the algorithm, what is trained."""
    said = {key: value for layer in layers for key, value in layer.items()}
    algorithms = [name for layer in layers if (name := _algorithm(layer)) is not None]
    return said.get("model", BUILTIN_MODEL), algorithms[-1:] or ["ddpo-is"], said.get("trainable", "lora")


def _beyond_its_defaults(file: Mapping[str, Any]) -> dict[str, Any]:
    """What a whole file says otherwise than the defaults of its own choices; these choices themselves stay."""
    chosen = {key: file[key] for key in ("model", "trainable") if key in file}
    defaults = run_config({**chosen, "objective": {"name": _algorithm(file)}}).model_dump(mode="json")
    kept: dict[str, Any] = {}
    for key, value in file.items():
        usual = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(usual, Mapping):
            value = {name: part for name, part in value.items() if name == "name" or usual.get(name) != part}
            usual = {}
        if value != usual or key in chosen:
            kept[key] = value
    return kept

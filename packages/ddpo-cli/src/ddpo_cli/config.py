"""The configuration of a run: one validated model, TOML in and out, flags override the file."""

import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from ddpo_cli.errors import CLIError
from ddpo_cli.presets import read_preset
from ddpo_core import FitConfig, parse_config

BUILTIN_MODEL = "builtin:emoji"
VERSIONS = "versions"
RECORDED = ("ddpo-cli", "ddpo-core", "ddpo-rewards", "torch", "diffusers", "transformers", "peft", "pillow", "numpy")


class RunConfig(BaseModel):
    """Everything that decides a run. The defaults are the paper's, for Stable Diffusion; `FOR_MODEL` has others."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    model: str = Field(BUILTIN_MODEL, description="builtin:emoji, a diffusers folder, or a hub id")
    reward: tuple[str, ...] = Field(
        ("jpeg_compressibility",), min_length=1, description="[WEIGHT*]REF[?option=value&...], summed"
    )
    algorithm: Literal["ddpo-is", "ddpo-sf", "rwr", "rwr-sparse"] = Field(
        "ddpo-is", description="how scored samples become updates"
    )
    prompts: str = Field("simple_animals", description="a prompt set or file:PATH")
    epochs: PositiveInt = Field(100, description="rounds of sample, score, update")
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random number")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's step size")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decay, relative to the learning rate")
    trainable: Literal["lora", "unet"] = Field(
        "lora", description="what is trained: adapters on every attention projection, or all weights of the UNet"
    )
    lora_rank: PositiveInt = Field(4, description="rank of the trained LoRA")
    lora_alpha: float | None = Field(
        None, gt=0, description="the LoRA's update is scaled by lora_alpha / lora_rank; left out: by 1"
    )
    guidance_scale: float = Field(5.0, ge=1, description="classifier-free guidance; 1 is none")
    eta: float = Field(1.0, gt=0, le=1, description="noise of the DDIM sampler; 0 would leave nothing to train")
    clip_range: float = Field(1e-4, gt=0, description="how far a probability ratio may move an update")
    rwr_inverse_temperature: float = Field(0.2, ge=0, description="rwr: the reward times this is exponentiated")
    rwr_fraction: float = Field(0.1, gt=0, le=1, description="rwr-sparse: share of a prompt's samples that is imitated")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps; left out: the best there is")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="compute dtype of the frozen networks; left out: by the device"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in backward: far less memory, a third more time"
    )
    compile: bool = Field(False, description="compile the UNet: faster after a minute or more")
    eval_samples: PositiveInt = Field(64, description="images of the evaluation before and after")
    grid_samples: PositiveInt = Field(16, description="how many of them the grids in samples/ show")
    sample_every: PositiveInt = Field(5, description="epochs between two grids")
    checkpoint_every: PositiveInt = Field(5, description="epochs between two checkpoints")
    keep_last: PositiveInt = Field(3, description="how many of the newest checkpoints are kept")
    held_out: tuple[str, ...] = Field(
        (), description="rewards, summed, that are measured and never optimised; the best checkpoint by them is kept"
    )
    tracker: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="what else shows curves, pictures and histograms"
    )
    fit: FitConfig = Field(default_factory=lambda: parse_config(FitConfig, {}))

    @model_validator(mode="after")
    def _ddpo_sf_stays_on_policy(self) -> "RunConfig":
        updates = self.fit.updates_per_epoch * self.fit.passes_per_epoch
        if self.algorithm == "ddpo-sf" and updates > 1:
            raise ValueError(
                f"algorithm='ddpo-sf' got {updates} updates per epoch, but only the first is on policy: want "
                "updates_per_epoch=1 and passes_per_epoch=1, or algorithm='ddpo-is'"
            )
        return self

    @model_validator(mode="after")
    def _alpha_needs_a_lora(self) -> "RunConfig":
        if self.trainable == "unet" and self.lora_alpha is not None:
            raise ValueError(
                f"lora_alpha={self.lora_alpha!r} scales a LoRA, and trainable='unet' has none: leave it out, or want "
                "trainable='lora'"
            )
        return self

    @field_validator("reward", "held_out", "tracker", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


FOR_MODEL: Mapping[str, Mapping[str, Any]] = {
    BUILTIN_MODEL: {
        "epochs": 50,
        "learning_rate": 2e-3,
        "lora_rank": 8,
        "guidance_scale": 1.0,
        "clip_range": 2e-3,
        "fit": {
            "num_steps": 10,
            "updates_per_epoch": 8,
            "sample_batch_size": 32,
            "micro_batch_size": 32,
            "timestep_fraction": 0.5,
            "advantage_baseline": "epoch",
        },
    }
}
"""What differs from `RunConfig`'s defaults for a model whose best settings were measured (benchmarks/RESULTS.md)."""

FOR_ALGORITHM: Mapping[str, Mapping[str, Any]] = {
    "ddpo-sf": {"fit": {"updates_per_epoch": 1}},
    "rwr": {"fit": {"passes_per_epoch": 5}},
    "rwr-sparse": {"fit": {"passes_per_epoch": 50, "samples_per_prompt": 16}},
}
"""What differs for another algorithm than DDPO-IS: one update per epoch keeps DDPO-SF on policy; the passes of
regression are those of the reference (jannerm/ddpo, pipeline/run-*.sh)."""

FOR_TRAINABLE: Mapping[str, Mapping[str, Any]] = {"unet": {"learning_rate": 1e-5}}
"""What differs where all weights of the UNet are trained (jannerm/ddpo, pipeline/policy_gradient.py)."""


def resolve(file: Path | None, flags: Mapping[str, Any], *, preset: str | None = None) -> RunConfig:
    """Return the defaults for the model, overridden by `preset`, by `file`, and by `flags` that say something.

    Flags are flat: those that belong to `FitConfig` are put under `fit`. None and an empty list say nothing. A layer
    that chooses an algorithm, or what is trained, overrides those before it with the defaults of its choice.

    Raises:
        ValueError: a value is out of range, a key or the preset is unknown, or `file` is no TOML.
    """
    given = nest({key: value for key, value in flags.items() if value is not None and value != []})
    task = read_preset(preset) if preset is not None else {}
    stored = read_toml(file) if file else {}
    stored.pop(VERSIONS, None)
    model = ({"model": BUILTIN_MODEL} | task | stored | given)["model"]
    layers = [part for said in (task, stored, given) for part in (*_brought_along(said), said)]
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


def read_toml(file: Path) -> dict[str, Any]:
    """Return the table in `file`.

    Raises:
        CLIError: `file` is missing or no TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CLIError(f"there is no configuration file {str(file)!r}; check the path") from None
    except IsADirectoryError:
        raise CLIError(f"{str(file)!r} is a folder; want a TOML file, such as {file}/config.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CLIError(f"{str(file)!r} is no valid TOML: {error}") from None


def to_toml(config: RunConfig) -> str:
    """Return the whole configuration and the versions that run it, as TOML that `--config` takes."""
    table = config.model_dump(mode="json", exclude_none=True)
    head = f"# Written by ddpo {version('ddpo-cli')}. The same run again: ddpo train --config config.toml\n"
    return head + tomli_w.dumps({**table, VERSIONS: versions()})


def versions() -> dict[str, str]:
    """Return the installed versions of what decides the numbers of a run."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def changed_versions(run: Path) -> dict[str, tuple[str, str]]:
    """Return what is installed in another version than when `run` was last trained: then and now."""
    then = read_toml(run / "config.toml").get(VERSIONS, {})
    now = versions()
    return {name: (then[name], now[name]) for name in now if then.get(name, now[name]) != now[name]}


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


def _brought_along(said: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the defaults of what `said` chooses."""
    return _known(FOR_ALGORITHM, said.get("algorithm")), _known(FOR_TRAINABLE, said.get("trainable"))


def _known(defaults: Mapping[str, Mapping[str, Any]], name: object) -> Mapping[str, Any]:
    return defaults.get(name, {}) if isinstance(name, str) else {}


def _flat(config: RunConfig) -> dict[str, Any]:
    table = config.model_dump()
    return {**{key: value for key, value in table.items() if key != "fit"}, **table["fit"]}

"""The configuration of a run: one validated model, and the file config.toml that holds it.

What is not chosen comes from `defaults`.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from ddpo_core.config import FitConfig, parse_config
from ddpo_core.errors import DDPOError
from ddpo_core.runs.folder import CONFIG, HEAD, START

BUILTIN_MODEL = "builtin:emoji"
VERSIONS = "versions"
RECORDED = ("ddpo-cli", "ddpo-core", "ddpo-rewards", "torch", "diffusers", "transformers", "peft", "pillow", "numpy")


INITIAL_VIEW = ("prompt_margin", "familiarity")
"""What the initial policy sees in samples (`initial_view_measure`): kept with any model, and without another."""

NEGATIVE_KL = "negative_kl"
"""How near samples are to the initial policy's (`negative_kl_measure`): likewise."""

_JUDGED = 32

_WANTED = "want REF, REF>=NUMBER or REF>=PERCENT%, such as clip_score>=97%"

_NAME = "how scored samples become updates"


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: str


class _GradientOptions(_Options):
    baseline: Literal["prompt", "epoch", "run", "group"] = Field(
        "prompt",
        description="what rewards are compared with: the history of their prompt, the epoch, what their prompt is "
        "expected to bring in the epoch in units of the run's spread, or their prompt in the epoch",
    )
    buffer_size: PositiveInt | None = Field(
        None, description="baselines prompt and run: rewards remembered per prompt; left out: 32 and 16"
    )
    min_count: PositiveInt | None = Field(
        None,
        description="baseline prompt: rewards of a prompt needed before its own statistics are used; left out: 16",
    )
    advantage_clip: float = Field(5.0, gt=0, description="advantages are clipped to plus or minus this")
    kl_weight: float = Field(0.0, ge=0, description="weight of the KL divergence to the initial policy")
    timestep_fraction: float = Field(
        1.0, gt=0, le=1, description="fraction of the steps that is trained, drawn anew for each sample"
    )
    timestep_window: int = Field(
        0, ge=0, description="train only this many consecutive steps at a time, first the noisiest; 0 trains all"
    )
    timestep_window_epochs: int = Field(
        1, ge=0, description="epochs until the window moves on by one step; 0: it stays on the noisiest"
    )
    timestep_weighting: Literal["equal", "noise"] = Field(
        "equal",
        description="how much each step counts: all alike as in the paper, or so that each brings as much noise to the "
        "gradient, of which the last steps bring nearly all otherwise",
    )

    @model_validator(mode="after")
    def _no_option_is_idle(self) -> "_GradientOptions":
        if self.buffer_size is not None and self.baseline not in ("prompt", "run"):
            raise ValueError(
                f"buffer_size={self.buffer_size} does nothing with baseline={self.baseline!r}: leave it out"
            )
        if self.min_count is not None and self.baseline != "prompt":
            raise ValueError(f"min_count={self.min_count} does nothing with baseline={self.baseline!r}: leave it out")
        if self.baseline == "prompt" and (self.min_count or 16) > (self.buffer_size or 32):
            raise ValueError(
                f"min_count={self.min_count or 16} can never be reached with buffer_size={self.buffer_size or 32}: "
                "lower the one or raise the other"
            )
        if self.timestep_window_epochs != 1 and not self.timestep_window:
            raise ValueError(
                f"timestep_window_epochs={self.timestep_window_epochs} does nothing without a timestep_window: leave "
                "it out"
            )
        return self


class DDPOISOptions(_GradientOptions):
    """DDPO with importance sampling: several clipped updates per epoch."""

    name: Literal["ddpo-is"] = Field("ddpo-is", description=_NAME)
    clip_range: float = Field(1e-4, gt=0, description="how far a probability ratio may move an update")


class DDPOSFOptions(_GradientOptions):
    """DDPO with the score function: one update per epoch."""

    name: Literal["ddpo-sf"] = Field("ddpo-sf", description=_NAME)


class RWROptions(_Options):
    """Regression on samples weighted by their reward."""

    name: Literal["rwr"] = Field("rwr", description=_NAME)
    inverse_temperature: float = Field(0.2, ge=0, description="the reward times this is exponentiated")
    timestep_fraction: float = Field(1.0, gt=0, le=1, description="draws per sample, as a fraction of num_steps")


class SparseRWROptions(_Options):
    """Regression on the best samples of each prompt."""

    name: Literal["sparse-rwr"] = Field("sparse-rwr", description=_NAME)
    fraction: float = Field(0.1, gt=0, le=1, description="share of a prompt's samples that is imitated")
    timestep_fraction: float = Field(1.0, gt=0, le=1, description="draws per sample, as a fraction of num_steps")


ObjectiveOptions = DDPOISOptions | DDPOSFOptions | RWROptions | SparseRWROptions
OBJECTIVES: Mapping[str, type[ObjectiveOptions]] = {
    "ddpo-is": DDPOISOptions,
    "ddpo-sf": DDPOSFOptions,
    "rwr": RWROptions,
    "sparse-rwr": SparseRWROptions,
}


class RunConfig(BaseModel):
    """Everything that decides a run. The defaults are the paper's, for Stable Diffusion; `FOR_MODEL` has others."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    model: str = Field(BUILTIN_MODEL, description="builtin:emoji, a diffusers folder, or a hub id")
    reward: tuple[str, ...] = Field(
        ("jpeg_compressibility",), min_length=1, description="[WEIGHT*]REF[?option=value&...], summed"
    )
    prompts: str = Field("simple_animals", description="a prompt set or file:PATH")
    epochs: PositiveInt = Field(100, description="rounds of sample, score, update")
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random number")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's step size")
    learning_rate_half_life: float | None = Field(
        None, gt=0, description="epochs after which the learning rate has halved; left out, or inf: it stays"
    )
    learning_rate_cosine: PositiveInt | None = Field(
        None, description="epochs over which the learning rate falls to 0, along half a cosine; left out: it does not"
    )
    learning_rate_warmup: PositiveInt | None = Field(
        None, description="epochs over which the learning rate rises first; left out: it starts as it is"
    )
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decay, relative to the learning rate")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of a moving average of what is trained that every update keeps, such as 0.99; the average "
        "is the model that is evaluated, drawn and exported, while training goes on without; left out: there is none",
    )
    trainable: Literal["lora", "unet"] = Field(
        "lora", description="what is trained: adapters on every attention projection, or all weights of the UNet"
    )
    lora: str | None = Field(
        None, description="start from this saved LoRA, a folder or file, with its rank and scale; left out: a fresh one"
    )
    lora_rank: PositiveInt | None = Field(None, description="rank of a fresh LoRA; left out: 4")
    lora_alpha: float | None = Field(
        None, gt=0, description="a fresh LoRA's update is scaled by lora_alpha / lora_rank; left out: by 1"
    )
    guidance_scale: float = Field(5.0, ge=1, description="classifier-free guidance; 1 is none")
    negative_prompt: str | None = Field(None, description="what guidance steers away from; left out: the model's own")
    height: PositiveInt | None = Field(None, description="of the images, in pixels; left out: the model's own")
    width: PositiveInt | None = Field(None, description="likewise")
    variant: str | None = Field(None, description="of the model's files, such as fp16")
    revision: str | None = Field(None, description="branch, tag or commit of a model of the hub")
    eta: float = Field(1.0, gt=0, le=1, description="noise of the DDIM sampler; 0 would leave nothing to train")
    device: str | None = Field(
        None, description="cpu, cuda, cuda:1, mps; left out: CUDA where there is one, else the CPU"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None,
        description="compute dtype of the frozen networks; left out: bfloat16 on CUDA and on CPUs with AMX, else "
        "float32",
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in backward: far less memory, a third more time"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="compile the UNet, which takes a minute or more before it is faster: on, off, or auto: on a GPU "
        "where the run is long enough for it and a trial is faster",
    )
    eval_samples: PositiveInt = Field(64, description="images of the evaluation before and after")
    grid_samples: PositiveInt = Field(16, description="how many of them the grids in samples/ show")
    sample_every: PositiveInt = Field(5, description="epochs between two grids")
    checkpoint_every: PositiveInt = Field(5, description="epochs between two checkpoints")
    keep_last: PositiveInt = Field(3, description="how many of the newest checkpoints are kept")
    held_out: tuple[str, ...] = Field(
        (),
        description="rewards that are measured on fixed prompts and seeds after every epoch and never optimised; the "
        "best checkpoint by their sum is kept",
    )
    keep: tuple[str, ...] = Field(
        (),
        description="what must not fall while the reward rises, by learned multipliers: REF, REF>=NUMBER or "
        "REF>=PERCENT% of what it is before training, for any reward, for prompt_margin (how much better the initial "
        "model cleans a sample when told its prompt), for familiarity (how well it cleans it) and for negative_kl "
        "(minus the KL divergence from it, such as negative_kl>=-0.001); none: nothing",
    )
    on_hack: Literal["warn", "stop", "rollback"] = Field(
        "warn",
        description="what is done when the reward is being gamed: say so, stop, or stop and take the run back to its "
        "best checkpoint by what is not optimised",
    )
    evidence_samples: int | None = Field(
        None,
        ge=0,
        description="samples of every epoch in which the initial model looks for the prompt, as a judge; 0: none; left "
        "out: 32, and none where what it sees is kept, since a judge is not optimised",
    )
    watch_text: bool = Field(
        False, description="look for writing in samples of every epoch (OCR: the extra ddpo-rewards[ocr])"
    )
    tracker: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="what else shows curves, pictures and histograms"
    )
    objective: Annotated[
        ObjectiveOptions, Field(discriminator="name", default_factory=lambda: parse_config(DDPOISOptions, {}))
    ]
    fit: FitConfig = Field(default_factory=lambda: parse_config(FitConfig, {}))

    @property
    def judged_samples(self) -> int:
        """In how many samples of an epoch the initial model looks for the prompt."""
        if self.evidence_samples is not None:
            return self.evidence_samples
        return 0 if {parse_keep(text).reference for text in self.keep} & set(INITIAL_VIEW) else _JUDGED

    @model_validator(mode="after")
    def _ddpo_sf_stays_on_policy(self) -> "RunConfig":
        updates = self.fit.updates_per_epoch * self.fit.passes_per_epoch
        if self.objective.name == "ddpo-sf" and updates > 1:
            raise ValueError(
                f"objective 'ddpo-sf' got {updates} updates per epoch, but only the first is on policy: want "
                "updates_per_epoch=1 and passes_per_epoch=1, or 'ddpo-is'"
            )
        return self

    @model_validator(mode="after")
    def _groups_have_members(self) -> "RunConfig":
        options = self.objective
        if isinstance(options, _GradientOptions) and options.baseline == "group" and self.fit.samples_per_prompt == 1:
            raise ValueError("baseline='group' compares the samples of a prompt: want samples_per_prompt >= 2")
        return self

    @model_validator(mode="after")
    def _options_of_a_lora_have_one(self) -> "RunConfig":
        for name in OF_A_LORA:
            value = getattr(self, name)
            if value is not None and self.trainable == "unet":
                raise ValueError(
                    f"{name}={value!r} is of a LoRA, and trainable='unet' has none: leave it out, or want "
                    "trainable='lora'"
                )
            if value is not None and self.lora is not None and name != "lora":
                raise ValueError(
                    f"{name}={value!r} is for a fresh LoRA, and lora={self.lora!r} brings its own: leave one out"
                )
        return self

    @model_validator(mode="after")
    def _the_learning_rate_has_one_end(self) -> "RunConfig":
        halving, falling = self.learning_rate_half_life, self.learning_rate_cosine
        if halving is not None and falling is not None:
            raise ValueError(
                f"learning_rate_half_life={halving!r} and learning_rate_cosine={falling!r} are two ways for "
                "the learning rate to fall: leave one out"
            )
        end = (self.learning_rate_warmup or 0) + (falling or self.epochs)
        if self.epochs > end:
            raise ValueError(
                f"epochs={self.epochs} go on after epoch {end}, when learning_rate_cosine={falling!r} has taken the "
                f"learning rate to 0: want at most {end}, or a longer learning_rate_cosine"
            )
        return self

    @model_validator(mode="after")
    def _acting_needs_something_held_out(self) -> "RunConfig":
        if self.on_hack != "warn" and not self.held_out and not self.judged_samples:
            raise ValueError(
                f"on_hack={self.on_hack!r} acts when something that is not optimised falls, and nothing is measured: "
                "want held_out (--holdout REF), evidence_samples above 0, keep='none', or on_hack='warn'"
            )
        return self

    @field_validator("keep")
    @classmethod
    def _each_is_kept_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == ("none",):
            return ()
        names = [parse_keep(text).reference for text in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or "none" in names:
            raise ValueError(
                f"keep names {(twice or ['none'])[0]!r} beside another: want each signal once, or none alone"
            )
        return value

    @field_validator("reward", "held_out", "tracker", "keep", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


OBJECTIVE_FIELDS = frozenset(key for model in OBJECTIVES.values() for key in model.model_fields)
"""What any of the objectives has."""

OF_A_LORA = ("lora", "lora_rank", "lora_alpha")
"""What a UNet that is trained whole has no use for."""

REPLACES: Mapping[str, Sequence[str]] = {
    "lora": ("lora_rank", "lora_alpha"),
    "learning_rate_half_life": ("learning_rate_cosine",),
    "learning_rate_cosine": ("learning_rate_half_life",),
}
"""What gives way to a key in the layers before the one that says it: defaults, a preset, the file of a run."""

FREE_TO_CHANGE = frozenset(
    {
        "epochs", "device", "gradient_checkpointing", "compile", "sample_every", "checkpoint_every", "keep_last",
        "held_out", "on_hack", "evidence_samples", "watch_text", "tracker", "reward_workers", "sample_batch_size",
        "micro_batch_size",
    }
)  # fmt: skip
"""What may change when a run is resumed, and leaves it the same run, but for the rounding of other batch sizes."""


class Keep(NamedTuple):
    """A signal, and what it must not fall below."""

    reference: str
    level: float | None
    """None: a little below what it is before training."""
    is_share: bool
    """Whether the level is a share of what the signal is before training."""


def parse_keep(text: str) -> Keep:
    """Take a reference and its level apart.

    Raises:
        DDPOError: If there is no reference, the level is no number, or none that the signal can keep.

    Example:
        >>> parse_keep("clip_score>=97%")
        Keep(reference='clip_score', level=0.97, is_share=True)
    """
    reference, sign, wanted = (part.strip() for part in text.partition(">="))
    number = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(%?)", wanted)
    if not reference or (sign and number is None):
        raise DDPOError(f"{text!r} is no signal with a level: {_WANTED}")
    if reference == NEGATIVE_KL and (number is None or number[2] or float(number[1]) >= 0):
        raise DDPOError(f"{text!r}: {NEGATIVE_KL} is 0 before training: want {NEGATIVE_KL}>=NUMBER below 0, as -0.001")
    if number is None:
        return Keep(reference, None, is_share=False)
    return Keep(reference, float(number[1]) / (100 if number[2] else 1), is_share=bool(number[2]))


def references(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the rewards that are kept: all references but those of the initial policy.

    Example:
        >>> references(["prompt_margin", "clip_score>=97%"])
        ('clip_score',)
    """
    kept = (parse_keep(text).reference for text in texts)
    return tuple(reference for reference in kept if reference not in (*INITIAL_VIEW, NEGATIVE_KL))


def validate(*layers: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `layers` give, each overriding those before it.

    Nothing else is added: `RunConfig`'s own defaults are the paper's.

    Raises:
        DDPOError: A value is out of range, or a key is unknown or in the wrong table.

    Example:
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
        whole |= {**dict.fromkeys(_replaced_by(layer)), **layer}
        fit |= subtable(layer, "fit")
        objective = _override(objective, subtable(layer, "objective"))
    if "algorithm" in whole:
        raise DDPOError("'algorithm' is the flag for the name of the objective; write: [objective] name = ...")
    for key in whole:
        if key in FitConfig.model_fields or key in OBJECTIVE_FIELDS:
            place = "fit" if key in FitConfig.model_fields else "objective"
            raise DDPOError(f"{key!r} stands outside its table; write it under [{place}]")
    options = parse_config(objective_model(objective["name"]), objective)
    return parse_config(RunConfig, {**whole, "fit": parse_config(FitConfig, fit), "objective": options})


def flat_options(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a configuration by their keys, as `--set` takes them.

    Example:
        >>> flat_options({"epochs": 8, "fit": {"num_steps": 4}})
        {'epochs': 8, 'fit.num_steps': 4}
    """
    inner = {name: part for name, part in table.items() if isinstance(part, Mapping)}
    nested = {f"{name}.{key}": value for name, part in inner.items() for key, value in part.items()}
    return {**{key: value for key, value in table.items() if key not in inner}, **nested}


def differences(stored: RunConfig, wanted: RunConfig) -> list[str]:
    """Return what would make another run of `stored`, as `key: stored -> wanted`; what may change is left out.

    Example:
        >>> config = validate({})
        >>> differences(config, config.model_copy(update={"seed": 1, "epochs": 9}))
        ['seed: 0 -> 1']
    """
    before, after = _flat(stored), _flat(wanted)
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in {**before, **after}
        if key not in FREE_TO_CHANGE and before.get(key) != after.get(key)
    ]


def trained_steps(config: RunConfig) -> int:
    """How many steps of each sample are trained in an epoch, where none of them is deterministic.

    Example:
        >>> fit = FitConfig(num_steps=50, passes_per_epoch=2)
        >>> trained_steps(RunConfig(fit=fit, objective={"name": "rwr", "timestep_fraction": 0.5}))
        50
    """
    steps, options = config.fit.num_steps, config.objective
    window = getattr(options, "timestep_window", 0) or steps
    return config.fit.passes_per_epoch * max(1, round(options.timestep_fraction * min(steps, window)))


def label(references: Sequence[str]) -> str:
    """Return a short name for what is scored with: the references without their options.

    Example:
        >>> label(["2*aesthetic?device=cpu", "my_plugin:score"])
        '2*aesthetic+my_plugin:score'
    """
    return "+".join(reference.partition("?")[0] for reference in references)


def to_toml(config: RunConfig, device: str | None = None) -> str:
    """Return the whole configuration and the versions that run it, on which kind of device, as TOML."""
    table = config.model_dump(mode="json", exclude_none=True)
    head = f"{HEAD} {version('ddpo-core')}. The same run again: ddpo train --config config.toml\n"
    return head + tomli_w.dumps({**table, VERSIONS: versions(device)})


def read_toml(file: Path) -> dict[str, Any]:
    """Return the table in `file`.

    Raises:
        DDPOError: `file` is missing or no TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DDPOError(f"there is no configuration file {str(file)!r}; check the path") from None
    except IsADirectoryError:
        raise DDPOError(f"{str(file)!r} is a folder; want a TOML file, such as {file}/{CONFIG}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DDPOError(f"{str(file)!r} is no valid TOML: {error}") from None


def read_run_config(run: Path) -> RunConfig:
    """Return the configuration that `run` was last trained with.

    Raises:
        DDPOError: Its config.toml is missing or was made unreadable.
    """
    stored = read_toml(run / CONFIG)
    stored.pop(VERSIONS, None)
    if (run / START).is_dir():  # which is found where the run is now
        stored["lora"] = str(run / START)
    try:
        return validate(stored)
    except DDPOError as error:
        raise DDPOError(f"{run / CONFIG}: {error}") from None


def versions(device: str | None = None) -> dict[str, str]:
    """Return what decides the numbers of a run beside its configuration: installed versions, the kind of device."""
    found = {} if device is None else {"device": device}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def changed_versions(run: Path, device: str | None = None) -> dict[str, tuple[str, str]]:
    """Return what is another version, or device, than when `run` was last trained: then and now."""
    then = read_toml(run / CONFIG).get(VERSIONS, {})
    now = versions(device)
    return {name: (then[name], now[name]) for name in now if then.get(name, now[name]) != now[name]}


def subtable(layer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table within a layer, empty where there is none.

    Raises:
        DDPOError: It is something else.
    """
    table = layer.get(name, {})
    if not isinstance(table, Mapping):
        raise DDPOError(f"{name}={table!r}: want a table, [{name}]")
    return table


def objective_model(name: object) -> type[ObjectiveOptions]:
    """Return the options that an objective has, by its name.

    Raises:
        DDPOError: There is none of that name.
    """
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise DDPOError(f"objective.name={name!r}: want one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def _override(before: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Override an objective's options; one that names another keeps those of before that it has as well."""
    name, baseline = (table.get(key, before.get(key)) for key in ("name", "baseline"))
    kept = dict(before)
    if name != before["name"]:
        kept = {key: value for key, value in kept.items() if key in objective_model(name).model_fields}
    if baseline != before.get("baseline"):
        kept = {key: value for key, value in kept.items() if key not in ("buffer_size", "min_count")}
    for key in table:
        owners = [other for other, model in OBJECTIVES.items() if key in model.model_fields]
        if owners and name not in owners:
            raise DDPOError(
                f"{key!r} is an option of {' and '.join(owners)}, and the objective is {name!r}; leave it out"
            )
    return {**kept, **table}


def _replaced_by(layer: Mapping[str, Any]) -> list[str]:
    """List what the choices in a layer leave no use for."""
    said = [key for key, value in layer.items() if value is not None]
    whole_unet = OF_A_LORA if layer.get("trainable") == "unet" else ()
    return [*whole_unet, *(name for key in said for name in REPLACES.get(key, ()))]


def _flat(config: RunConfig) -> dict[str, Any]:
    table = config.model_dump()
    fit, objective = table.pop("fit"), table.pop("objective")
    return {**table, **{f"objective.{key}": value for key, value in objective.items()}, **fit}

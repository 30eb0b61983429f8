"""The hyperparameters of a fit, validated once; unknown keys are errors that suggest the right one."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from ddpo_core.errors import DDPOError

Model = TypeVar("Model", bound=BaseModel)


class FitConfig(BaseModel):
    """How an epoch is sampled and trained. The defaults are the paper's, for Stable Diffusion on one device.

    Build it from user input with `parse_config(FitConfig, values)`: mistakes become one readable line.

    Source: ddpo-pytorch, `config/base.py` and `config/dgx.py`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    num_steps: PositiveInt = Field(50, description="denoising steps per sample")
    samples_per_epoch: PositiveInt = Field(64, description="images (reward queries) per epoch, over all processes")
    samples_per_prompt: PositiveInt = Field(
        1, description="images of each prompt that is drawn; divides samples_per_epoch"
    )
    updates_per_epoch: PositiveInt = Field(
        4, description="optimizer updates per pass over the samples of an epoch; divides samples_per_epoch"
    )
    passes_per_epoch: PositiveInt = Field(1, description="how often an epoch's samples are trained on")
    sample_batch_size: PositiveInt = Field(8, description="samples denoised at once")
    reward_workers: int | None = Field(
        None,
        ge=0,
        description="threads that score while the next batch is sampled; 0: none; unset: 1 with a GPU, none without",
    )
    micro_batch_size: PositiveInt = Field(
        8,
        description="(sample, step) pairs or draws in one forward and backward; best equal to sample_batch_size",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients of a larger norm are scaled down to it")

    @model_validator(mode="after")
    def _check_together(self) -> "FitConfig":
        if self.samples_per_epoch % self.updates_per_epoch:
            raise ValueError(
                f"updates_per_epoch={self.updates_per_epoch} does not divide "
                f"samples_per_epoch={self.samples_per_epoch}: want a multiple of {self.updates_per_epoch} samples"
            )
        if self.samples_per_epoch % self.samples_per_prompt:
            raise ValueError(
                f"samples_per_prompt={self.samples_per_prompt} does not divide "
                f"samples_per_epoch={self.samples_per_epoch}: want a multiple of {self.samples_per_prompt} samples"
            )
        return self


def parse_config(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Validate user input against a pydantic model, or say in one line what is wrong with it.

    Raises:
        DDPOError: Naming every bad key with what was got and what was wanted.

    Example:
        >>> parse_config(FitConfig, {"num_steps": 10}).num_steps
        10
        >>> parse_config(FitConfig, {"num_stesp": 10})
        Traceback (most recent call last):
        ddpo_core.errors.DDPOError: 'num_stesp' is not an option; did you mean 'num_steps'?
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise DDPOError("; ".join(_describe(model, problem) for problem in error.errors())) from None


def _describe(model: type[BaseModel], problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{name!r} is not an option; {_suggest(name, list(model.model_fields))}"
    message = problem["msg"].removeprefix("Value error, ")
    got = problem["input"]  # a number may come as text, from a command line
    shown = got if isinstance(got, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", got) else repr(got)
    return f"{name}={shown}: {message[0].lower()}{message[1:]}" if name else message


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the options are {', '.join(known)}"

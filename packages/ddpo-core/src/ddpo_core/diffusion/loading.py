"""Finding a model and the device to run it on, with one clear line where that fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ddpo_core.emoji import pipeline_path
from ddpo_core.errors import DDPOError

_BUILTIN = "builtin:emoji"
# What is not loaded, and what is not asked for.
_LEFT_OUT: dict[Any, dict[str, Any]] = {
    StableDiffusionPipeline: {
        **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder")),
        "requires_safety_checker": False,
    },
    StableDiffusionXLPipeline: {**dict.fromkeys(("feature_extractor", "image_encoder")), "add_watermarker": False},
}


def load_pipeline(model: str) -> DiffusionPipeline:
    """Load the networks of a Stable Diffusion 1.x, 2.x or XL model, float32 on the CPU, without the safety checker.

    Raises:
        DDPOError: If there is no such model, it is damaged, or it is of another kind.
    """
    source = _find(model)
    with quietly():
        try:
            name = DiffusionPipeline.load_config(source).get("_class_name")
            kind = next((kind for kind in _LEFT_OUT if kind.__name__ == name), None)
            if kind is None:
                raise DDPOError(
                    f"model {model!r} is a {name}; want a StableDiffusionPipeline or a StableDiffusionXLPipeline "
                    "(Stable Diffusion 1.x, 2.x or XL)"
                )
            return kind.from_pretrained(source, **_LEFT_OUT[kind])
        except DDPOError:
            raise
        # Damaged files surface as almost anything: JSON, safetensors, tokenizers and torch have their own errors.
        except Exception as error:
            raise DDPOError(f"model {model!r} cannot be loaded: {_first_line(error)}") from error


def choose_device(device: str | torch.device | None) -> torch.device:
    """Check a device, or choose CUDA where there is one.

    Raises:
        DDPOError: If there is no such device here.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    # torch raises AssertionError where it was built without CUDA, RuntimeError for the rest.
    except (RuntimeError, AssertionError) as error:
        raise DDPOError(f"device {str(device)!r} cannot be used: {_first_line(error)}") from None
    return chosen


def choose_dtype(dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Choose bfloat16 on CUDA and float32 elsewhere, unless told.

    Example:
        >>> choose_dtype(None, torch.device("cpu"))
        torch.float32
    """
    if dtype is not None:
        return dtype
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@contextmanager
def quietly() -> Iterator[None]:
    """Keep both libraries' loading bars off the terminal, which belongs to the caller."""
    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def _find(model: str) -> str:
    if model.startswith("builtin:"):
        if model != _BUILTIN:
            raise DDPOError(f"model {model!r} is not built in; want {_BUILTIN!r}, a diffusers folder or a hub id")
        return str(pipeline_path())
    if Path(model).exists() and not (Path(model) / "model_index.json").is_file():
        raise DDPOError(f"model {model!r} is no diffusers folder: want one with a model_index.json")
    looks_like_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if not Path(model).exists() and not looks_like_hub_id:
        raise DDPOError(
            f"model {model!r} does not exist; want {_BUILTIN!r}, a diffusers folder or a hub id (owner/name)"
        )
    return model


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

"""What a run leaves for diffusers: a LoRA, or a whole model."""

import shutil
from pathlib import Path

from ddpo_cli.config import RunConfig
from ddpo_core import Params, save_lora, save_pipeline
from ddpo_core.checkpoint import put_in_place
from ddpo_core.runs.folder import LORA, MODEL


def artefact_path(run: Path, config: RunConfig) -> Path:
    """Where the trained weights lie: `lora/` for `load_lora_weights`, `model/` for `from_pretrained`."""
    return run / (MODEL if config.trainable == "unet" else LORA)


def write_artefact(run: Path, config: RunConfig, params: Params) -> None:
    """Write the trained weights, in the place of those that an earlier end of the run left."""
    target = artefact_path(run, config)
    if config.trainable == "lora":
        save_lora(target, params, scale=1.0 if config.lora_alpha is None else config.lora_alpha / config.lora_rank)
        return
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed here
    put_in_place(save_pipeline(fresh, params, model=config.model), target)

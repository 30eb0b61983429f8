"""Whole models for diffusers, with trained weights in them."""

import os
from pathlib import Path

from safetensors import SafetensorError

from ddpo_core.checkpoint import complete_folder, reason
from ddpo_core.diffusion.loading import load_pipeline, quietly
from ddpo_core.errors import DDPOError
from ddpo_core.types import Params


def save_pipeline(path: str | os.PathLike[str], params: Params, *, model: str) -> Path:
    """Write a whole model with trained weights to a folder that diffusers, and `load_policy`, load.

    The folder appears complete or not at all, and is never written over.

    Args:
        path: The folder, which must not exist.
        params: The leaves of a policy from `load_full_policy`.
        model: The model that it was loaded from: everything but the UNet is taken from there.

    Returns:
        The path of the folder.

    Raises:
        DDPOError: If the folder exists or cannot be written, or `params` are not the weights of this model's UNet.
    """
    target = Path(path)
    if target.exists():
        raise DDPOError(f"{str(target)!r} exists already: want a new folder for the model")
    pipeline = load_pipeline(model)
    wanted = {name: tuple(leaf.shape) for name, leaf in pipeline.unet.named_parameters()}
    if wanted != {name: tuple(leaf.shape) for name, leaf in params.items()}:
        raise DDPOError(
            f"these params are not all weights of the UNet of {model!r}: want those of load_full_policy; "
            "save_lora writes adapters"
        )
    pipeline.unet.load_state_dict(params, strict=False)
    try:
        with complete_folder(target) as aside, quietly():
            pipeline.save_pretrained(aside)
    except (OSError, SafetensorError) as error:
        raise DDPOError(f"the model cannot be written to {str(target)!r}: {reason(error)}") from None
    return target

"""What was trained, for diffusers: a LoRA, or a whole model; each appears complete or not at all."""

import os
from contextlib import suppress
from pathlib import Path

from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from safetensors import SafetensorError

from ddpo_core.checkpoint import complete_folder, flush, reason
from ddpo_core.diffusion.models import load_pipeline, quietly
from ddpo_core.diffusion.network import ADAPTER, LORA_FILE
from ddpo_core.errors import DDPOError
from ddpo_core.types import Params


def save_lora(path: str | os.PathLike[str], params: Params, *, scale: float | None) -> Path:
    """Write a LoRA to the folder `path`, in the file that `pipeline.load_lora_weights(path)` takes.

    `load_policy(..., lora=path)` starts from it, bit for bit. A file that is there is replaced.

    Args:
        path: The folder; made if it is missing.
        params: The leaves of a policy that trains a LoRA.
        scale: The `lora_scale` of that policy, which goes with them.

    Returns:
        The path of the file.

    Raises:
        DDPOError: If `params` are not adapters, or the file cannot be written; what was there before is intact, and
            nothing half-written is left.
    """
    layers = {name.replace(f".{ADAPTER}.", "."): leaf.detach().cpu().contiguous() for name, leaf in params.items()}
    if not layers or not all(".lora_" in name for name in layers) or scale is None:
        raise DDPOError(
            "these params are not LoRA matrices: want those of load_policy(..., trainable='lora'), with the scale "
            "policy.lora_scale; save_pipeline writes whole models"
        )
    target = Path(path) / LORA_FILE
    aside = target.with_name(f".{LORA_FILE}.writing")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        StableDiffusionPipeline.save_lora_weights(
            target.parent,
            unet_lora_layers=layers,
            weight_name=aside.name,
            unet_lora_adapter_metadata=_described(layers, scale),
        )
        flush(aside)
        aside.replace(target)
        flush(target.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            aside.unlink()
        raise DDPOError(f"the adapters cannot be written to {str(target)!r}: {reason(error)}") from None
    return target


def save_pipeline(
    path: str | os.PathLike[str],
    params: Params,
    *,
    model: str,
    variant: str | None = None,
    revision: str | None = None,
) -> Path:
    """Write a whole model with trained weights to a folder that diffusers, and `load_policy`, load.

    A folder that is there is never written over.

    Args:
        path: The folder, which must not exist.
        params: The leaves of a policy that trains the whole UNet.
        model: The model that it was loaded from: everything but the UNet is taken from there.
        variant: As it was loaded; the folder is written without one.
        revision: As it was loaded.

    Returns:
        The path of the folder.

    Raises:
        DDPOError: If the folder exists or cannot be written, or `params` are not the weights of this model's UNet.
    """
    target = Path(path)
    if target.exists():
        raise DDPOError(f"{str(target)!r} exists already: want a new folder for the model")
    pipeline = load_pipeline(model, variant=variant, revision=revision)
    wanted = {name: tuple(leaf.shape) for name, leaf in pipeline.unet.named_parameters()}
    if wanted != {name: tuple(leaf.shape) for name, leaf in params.items()}:
        raise DDPOError(
            f"these params are not all weights of the UNet of {model!r}: want those of "
            "load_policy(..., trainable='unet'); save_lora writes adapters"
        )
    pipeline.unet.load_state_dict(params, strict=False)
    try:
        with complete_folder(target) as aside, quietly():
            pipeline.save_pretrained(aside)
    except (OSError, SafetensorError) as error:
        raise DDPOError(f"the model cannot be written to {str(target)!r}: {reason(error)}") from None
    return target


def save_merged(
    path: str | os.PathLike[str],
    lora: str | os.PathLike[str],
    *,
    model: str,
    variant: str | None = None,
    revision: str | None = None,
) -> Path:
    """Write a whole model whose UNet has a LoRA added to its weights: W + scale * B A, in float32.

    Args:
        path: The folder, which must not exist.
        lora: The folder that `save_lora` wrote.
        model: The model that the LoRA was trained on.
        variant: As it was loaded; the folder is written without one.
        revision: As it was loaded.

    Returns:
        The path of the folder.

    Raises:
        DDPOError: If the folder exists or cannot be written, or the LoRA is of another model.
    """
    target = Path(path)
    if target.exists():
        raise DDPOError(f"{str(target)!r} exists already: want a new folder for the model")
    pipeline = load_pipeline(model, variant=variant, revision=revision)
    try:
        with complete_folder(target) as aside, quietly():
            pipeline.load_lora_weights(str(lora))
            pipeline.fuse_lora(components=["unet"])
            pipeline.unload_lora_weights()
            pipeline.save_pretrained(aside)
    except (OSError, SafetensorError) as error:
        raise DDPOError(f"the model cannot be written to {str(target)!r}: {reason(error)}") from None
    except (RuntimeError, ValueError, KeyError) as error:  # shapes or names that this UNet does not have
        raise DDPOError(f"{str(lora)!r} cannot be added to {model!r}: {reason(error)}") from None
    return target


def _described(layers: Params, scale: float) -> dict[str, object] | None:
    """Describe a scale other than 1; diffusers assumes 1 where nothing is said."""
    if scale == 1:
        return None
    rank = next(len(leaf) for name, leaf in layers.items() if ".lora_A." in name)
    targets = sorted({name.rsplit(".lora_", 1)[0] for name in layers})
    described: dict[str, object] = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=targets).to_dict()
    return described

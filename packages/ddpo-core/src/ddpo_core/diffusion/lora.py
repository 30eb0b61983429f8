"""Low-rank adapters: attached by peft, initialised by seed, trained as plain tensors, exported for diffusers."""

import math
import os
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig

from ddpo_core.errors import DDPOError
from ddpo_core.types import Params

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name under which diffusers' `load_lora_weights` looks for adapters in a folder."""

_ADAPTER = "default"
_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def attach_lora(unet: UNet2DConditionModel, *, rank: int, alpha: float | None = None, seed: int = 0) -> Params:
    """Attach adapters to every attention projection of a UNet, which is changed, and return their initial values.

        y = W x + (alpha / rank) B A x,     A ~ U(-1/sqrt(d), 1/sqrt(d)) for d inputs,     B = 0

    Args:
        unet: A UNet without adapters.
        rank: The rank of the update, at least 1.
        alpha: The scale of the update is `alpha / rank`; None means `rank`, a scale of 1.
        seed: Decides A.

    Returns:
        Float32 leaves on the device of the UNet, whatever its dtype, under the UNet's own parameter names.

    Raises:
        DDPOError: If `rank` is below 1.

    Source: Hu et al. 2022; targets and default scale as in ddpo-pytorch, `train.py`.
    """
    if rank < 1:
        raise DDPOError(f"lora_rank={rank!r}: want at least 1")
    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(_TARGETS))
    # peft draws A from the global generator; whatever it drew is replaced below.
    with torch.random.fork_rng(devices=[]):
        unet.add_adapter(config, adapter_name=_ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    leaves = {name: leaf for name, leaf in unet.named_parameters() if f".lora_A.{_ADAPTER}." in name}
    params: Params = {}
    for name, leaf in leaves.items():
        down = torch.nn.init.kaiming_uniform_(torch.empty(leaf.shape), a=math.sqrt(5), generator=generator)
        up_name = name.replace(".lora_A.", ".lora_B.")
        params[name] = down.to(leaf.device)
        params[up_name] = torch.zeros(unet.get_parameter(up_name).shape, device=leaf.device)
    return params


def save_lora(path: str | os.PathLike[str], params: Params, *, alpha: float | None = None) -> Path:
    """Write adapters to the folder `path` in the file that `pipeline.load_lora_weights(path)` takes.

    The file appears whole or not at all.

    Args:
        path: The folder; made if it is missing.
        params: The leaves of a LoRA policy.
        alpha: As given to `load_policy`; None means the rank.

    Returns:
        The path of the file.

    Raises:
        DDPOError: If `params` are not adapters, or the file cannot be written.
    """
    layers = {name.replace(f".{_ADAPTER}.", "."): leaf.detach().cpu().contiguous() for name, leaf in params.items()}
    if not layers or not all(".lora_" in name for name in layers):
        raise DDPOError("these params are not LoRA matrices: want those of load_policy(..., lora_rank=...)")
    target = Path(path) / LORA_FILE
    aside = f".{LORA_FILE}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        StableDiffusionPipeline.save_lora_weights(
            target.parent,
            unet_lora_layers=layers,
            weight_name=aside,
            unet_lora_adapter_metadata=_metadata(layers, alpha),
        )
        os.replace(target.parent / aside, target)
    except OSError as error:
        raise DDPOError(f"the adapters cannot be written to {str(target)!r}: {error.strerror}") from None
    return target


def _metadata(layers: Params, alpha: float | None) -> dict[str, object] | None:
    """Describe a scale other than 1; diffusers assumes 1 where nothing is said."""
    rank = next(leaf.shape[0] for name, leaf in layers.items() if ".lora_A." in name)
    if alpha is None or alpha == rank:
        return None
    described: dict[str, object] = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(_TARGETS)).to_dict()
    return described

"""A frozen UNet as a function of its trainable leaves: with adapters, in its compute dtype, guided, checkpointed."""

import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ddpo_core.errors import DDPOError
from ddpo_core.sampling import concatenate_rows, map_rows
from ddpo_core.types import Conditioning, Params

Network = Callable[[Params, Tensor, Tensor, Conditioning], Tensor]
"""`(params, latents, time, conditioning) -> output`, guidance included."""

Arguments = Callable[[Conditioning], tuple[Tensor, Mapping[str, Any]]]
"""Conditioning to the UNet's embeddings and its other arguments."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name under which diffusers' `load_lora_weights` looks for adapters in a folder."""

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Every attention projection of a UNet."""

ADAPTER = "default"
"""peft's name for the adapters; part of the names of their leaves."""

_UP = f".lora_B.{ADAPTER}."

# float16 loses gradients below 6e-8, which means over latents, steps and samples soon reach.
_HALF_GRADIENT_SCALE = 2.0**13

_PROGRAMS = 128

# Beyond, the matrix of all pairs of tokens takes more memory than what is saved is worth.
_PLAIN_ATTENTION_TOKENS = 256


def functional_network(
    unet: Any,
    *,
    arguments: Arguments,
    dtype: torch.dtype,
    compile: bool = False,
) -> Network:
    """Make a pure function of a UNet, which has its trainable leaves swapped in for the call.

    Args:
        unet: The network; everything that is not in `params` is frozen.
        arguments: What it is told about the prompts.
        dtype: Its compute dtype, which the float32 leaves are cast to for the call. With float16, gradients are scaled
            up inside the network and down again outside.
        compile: Compile its transformer blocks at the first call, for fixed shapes: they are most of it, and come again
            and again, so that each is compiled once. Half precision is rounded where it is without compiling.
    """
    if compile:
        unet.compile_repeated_blocks(dynamic=False, options={"emulate_precision_casts": True})
    scale = _HALF_GRADIENT_SCALE if dtype == torch.float16 else 1.0

    def run(params: Params, latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        embeddings, others = arguments(conditioning)
        leaves = {name: _scale_gradient(leaf, 1 / scale).to(dtype) for name, leaf in params.items()}
        inputs = (latents.to(dtype), time, embeddings)
        # Every width, batch and way (with gradients, without) is a program of its own; torch would stop at 8.
        with torch._dynamo.config.patch(recompile_limit=_PROGRAMS) if compile else nullcontext():
            # No weights are tied: looking for ties would walk all of the module at every call.
            outputs = functional_call(unet, leaves, inputs, {"return_dict": False, **others}, tie_weights=False)
        return _scale_gradient(outputs[0].float(), scale)

    return run


@torch.no_grad()
def cast_leaves(params: Params, dtype: torch.dtype) -> Params:
    """Cast leaves to the dtype that a network computes in, which it would otherwise do at every call.

    Example:
        >>> cast_leaves({"weight": torch.zeros(1)}, torch.bfloat16)
        {'weight': tensor([0.], dtype=torch.bfloat16)}
    """
    return {name: leaf.to(dtype) for name, leaf in params.items()}


def guided(network: Network, negative: Conditioning, scale: float) -> Network:
    """Steer by classifier-free guidance: both outputs in one call, combined in float32.

    Source: Ho & Salimans 2022, equation 6, with the weight as diffusers counts it.
    """

    def run(params: Params, latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        repeated = map_rows(lambda row: row.expand(len(latents), *row.shape[1:]), negative)
        both = concatenate_rows([repeated, conditioning])
        output = network(params, torch.cat([latents, latents]), torch.cat([time, time]), both)
        unconditional, conditional = output.float().chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return run


def enable_checkpointing(unet: Any) -> None:
    """Recompute activations in backward instead of keeping them: less memory for a third more time.

    diffusers' own way recomputes with what is in the module by then, when `functional_call` has put the old tensors
    back: the gradient is silently and entirely wrong. Here every block is recomputed with what it was called with.
    """
    unet.enable_gradient_checkpointing(gradient_checkpointing_func=_checkpoint_bound)


def use_plain_attention(unet: Any) -> None:
    """Compute attention over few tokens as two products of matrices, for half precision on a CPU.

    PyTorch's fused attention is quicker forwards there, and so much slower backwards that training in bfloat16 takes
    longer than in float32.
    """
    unet.set_attn_processor(_PlainAttention())


def attach_lora(
    unet: Any, *, rank: int, scale: float = 1.0, targets: Sequence[str] = LORA_TARGETS, seed: int = 0
) -> Params:
    """Attach adapters to a UNet, which is changed, and return their initial values.

        y = W x + scale B A x,     A ~ U(-1/sqrt(d), 1/sqrt(d)) for d inputs,     B = 0

    Args:
        unet: A UNet without adapters.
        rank: The rank of the update, at least 1.
        scale: What the update is multiplied with; alpha / rank in other words.
        targets: Which modules have one: their names, or the ends of their names after a dot.
        seed: Decides A.

    Returns:
        Float32 leaves on the device of the UNet, whatever its dtype, under the UNet's own parameter names.

    Raises:
        DDPOError: If a target is no module that can have an adapter.

    Source: Hu et al. 2022; targets and default scale as in ddpo-pytorch, `train.py`.
    """
    modules = [name for name, _ in unet.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise DDPOError(f"lora_targets: the UNet has no module {target!r}; want names such as {LORA_TARGETS}")
    config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=list(targets))
    # peft draws A from the global generator; whatever it drew is replaced below.
    with torch.random.fork_rng(devices=[]):
        try:
            unet.add_adapter(config, adapter_name=ADAPTER)
        except ValueError as error:  # neither a linear layer nor a convolution
            raise DDPOError(f"the UNet cannot be given adapters: {str(error).splitlines()[0]}") from None
    generator = torch.Generator().manual_seed(seed)
    leaves = {name: leaf for name, leaf in unet.named_parameters() if f".lora_A.{ADAPTER}." in name}
    params: Params = {}
    for name, leaf in leaves.items():
        down = nn.init.kaiming_uniform_(torch.empty(leaf.shape), a=math.sqrt(5), generator=generator)
        up_name = name.replace(".lora_A.", ".lora_B.")
        params[name] = down.to(leaf.device)
        params[up_name] = torch.zeros(unet.get_parameter(up_name).shape, device=leaf.device)
    return params


def attach_saved_lora(unet: Any, path: str | os.PathLike[str]) -> tuple[Params, float]:
    """Attach the adapters of a file that `save_lora`, or diffusers' `save_lora_weights`, has written.

    Args:
        unet: A UNet without adapters, which is changed.
        path: The file, or the folder in which it has its usual name.

    Returns:
        The leaves as of `attach_lora`, bit for bit those that were saved, and their scale.

    Raises:
        DDPOError: If there is no such file, it is damaged, or its adapters do not fit this UNet: saying which.
    """
    file = Path(path) / LORA_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise DDPOError(f"the LoRA {str(file)!r} does not exist: want a folder with {LORA_FILE}, or such a file")
    try:
        with safe_open(file, "pt") as opened:
            described = (opened.metadata() or {}).get("lora_adapter_metadata", "{}")
        metadata = {name.removeprefix("unet."): value for name, value in json.loads(described).items()}
        saved = load_file(file)
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise DDPOError(f"the LoRA {str(file)!r} cannot be read: {str(error).splitlines()[0]}") from None
    modules = {name for name, _ in unet.named_modules()}
    keys = {key: re.fullmatch(r"unet\.(.+)\.lora_[AB]\.weight", key) for key in saved}
    _refuse(file, "is no adapter of a UNet", [key for key, match in keys.items() if match is None])
    targets = sorted({match[1] for match in keys.values() if match is not None})
    _refuse(file, "is not in this UNet", [f"unet.{target}" for target in targets if target not in modules])
    ranks = {len(leaf) for key, leaf in saved.items() if ".lora_A." in key}
    others = [name for name in ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora") if metadata.get(name)]
    if len(ranks) != 1 or others:
        more = f" and {', '.join(others)}" if others else ""
        raise DDPOError(f"the LoRA {str(file)!r} has the ranks {sorted(ranks)}{more}: want one rank and one alpha")
    rank = ranks.pop()
    alpha = metadata.get("lora_alpha", rank)
    if not (isinstance(alpha, int | float) and 0 < alpha < math.inf):
        raise DDPOError(f"the LoRA {str(file)!r} has lora_alpha={alpha!r}: want a number above 0")
    scale = alpha / rank
    params = attach_lora(unet, rank=rank, scale=scale, targets=targets)
    places = {name: f"unet.{name.replace(f'.{ADAPTER}.', '.')}" for name in params}
    _refuse(file, "is missing", set(places.values()) - saved.keys())
    shapes = {places[name]: (tuple(saved[places[name]].shape), tuple(leaf.shape)) for name, leaf in params.items()}
    wrong = [f"{place} is {there}, wanted {here}" for place, (there, here) in shapes.items() if there != here]
    _refuse(file, "is of another size", wrong)
    return {name: saved[place].to(params[name]) for name, place in places.items()}, scale


def scale_lora(params: Params, scale: float) -> dict[str, Tensor]:
    """Take only so much of what a LoRA changes: 0 is the base model, 1 the finetuned one.

    Where a reward was optimised too far, less of it can be the better model, without training again.

    Args:
        params: The leaves of a LoRA.
        scale: What its update is multiplied by.

    Raises:
        DDPOError: If these are no leaves of a LoRA.

    Example:
        >>> leaves = {"to_q.lora_A.default.weight": torch.ones(1, 2), "to_q.lora_B.default.weight": torch.ones(2, 1)}
        >>> [leaf.mean().item() for leaf in scale_lora(leaves, 0.5).values()]
        [1.0, 0.5]

    Source: as the scale of `cross_attention_kwargs` in diffusers.
    """
    if not any(_UP in name for name in params):
        raise DDPOError("there is no LoRA to scale: want a model of which a LoRA was trained")
    return {name: scale * leaf if _UP in name else leaf for name, leaf in params.items()}


def _refuse(file: Path, what: str, keys: Collection[str]) -> None:
    if keys:
        first, *others = sorted(keys)
        more = f" (and {len(others)} more)" if others else ""
        raise DDPOError(f"the LoRA {str(file)!r} does not fit: what {what}: {first}{more}")


def _checkpoint_bound(module: nn.Module, *inputs: Any) -> Any:
    leaves: dict[str, Tensor] = dict(module.named_parameters())
    return checkpoint(
        lambda *again: functional_call(module, leaves, again, tie_weights=False),
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a UNet draws
    )


class _PlainAttention(AttnProcessor2_0):  # type: ignore[misc]
    def __call__(self, attn: nn.Module, hidden_states: Tensor, *others: Any, **named: Any) -> Tensor:
        is_small = hidden_states.shape[1] <= _PLAIN_ATTENTION_TOKENS
        with sdpa_kernel(SDPBackend.MATH) if is_small else nullcontext():
            output: Tensor = super().__call__(attn, hidden_states, *others, **named)
        return output


def _scale_gradient(tensor: Tensor, scale: float) -> Tensor:
    scaled: Tensor = tensor if scale == 1 else _ScaledGradient.apply(tensor, scale)
    return scaled


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, scale: float) -> Tensor:
        context.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.scale, None

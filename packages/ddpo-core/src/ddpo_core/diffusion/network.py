"""A frozen UNet as a function of its trainable leaves: in its compute dtype, guided, checkpointed, compiled."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ddpo_core.rows import concatenate_rows, map_rows
from ddpo_core.types import Conditioning, Params

Network = Callable[[Params, Tensor, Tensor, Conditioning], Tensor]
"""`(params, latents, time, conditioning) -> output`, guidance included."""

Arguments = Callable[[Conditioning], tuple[Tensor, Mapping[str, Any]]]
"""Conditioning to the UNet's embeddings and its other arguments."""

# float16 loses gradients below 6e-8, which means over latents, steps and samples soon reach.
_HALF_GRADIENT_SCALE = 2.0**13


def functional_network(
    unet: nn.Module,
    *,
    arguments: Arguments,
    dtype: torch.dtype,
    leaf_dtype: torch.dtype,
    compiler: Callable[[nn.Module], Any] | None = None,
) -> Network:
    """Make a pure function of a UNet, which has its trainable leaves swapped in for the call.

    Args:
        unet: The network; everything that is not in `params` is frozen.
        arguments: What it is told about the prompts.
        dtype: Its compute dtype. With float16, gradients are scaled up inside the network and down again outside.
        leaf_dtype: What the float32 masters are cast to for the call.
        compiler: For instance `torch.compile`.
    """
    module = unet if compiler is None else compiler(unet)
    prefix = "" if compiler is None else "_orig_mod."
    scale = _HALF_GRADIENT_SCALE if dtype == torch.float16 else 1.0

    def run(params: Params, latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        embeddings, others = arguments(conditioning)
        leaves = {prefix + name: _scale_gradient(leaf, 1 / scale).to(leaf_dtype) for name, leaf in params.items()}
        inputs = (latents.to(dtype), time, embeddings)
        output: Tensor = functional_call(module, leaves, inputs, {"return_dict": False, **others})[0]
        return _scale_gradient(output.float(), scale)

    return run


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


def _checkpoint_bound(module: nn.Module, *inputs: Any) -> Any:
    leaves: dict[str, Tensor] = dict(module.named_parameters())
    return checkpoint(lambda *again: functional_call(module, leaves, again), *inputs, use_reentrant=False)


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

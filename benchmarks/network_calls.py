"""What one call of the embedded model's networks takes, by the means that could make it cheaper.

    python benchmarks/network_calls.py [--threads 1] [--repeats 9]

32 samples: a forward, a forward and backward, and decoding, in float32 and bfloat16; with a LoRA of rank 8 beside the
weights (as ddpo computes it), added to the weights once per call, and without one; with PyTorch's fused attention and
as two products; without a LoRA also channels-last, with queries, keys and values of self-attention in one product, and
guidance (twice the rows) in one call or in two. Ways are timed in turn, so that a busy machine disturbs all alike;
prints medians as a table. Memory is asked for in huge pages with `THP_MEM_ALLOC_ENABLE=1` before the command.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.func import functional_call

from ddpo_core.diffusion.models import load_pipeline, stable_diffusion_policy
from ddpo_core.diffusion.network import use_plain_attention

BATCH, RANK = 32, 8
Work = Callable[[], Tensor]


def main() -> None:
    """Measure and print."""
    options = _parse()
    torch.set_num_threads(options.threads)
    seconds: dict[str, list[float]] = {}
    ways = dict(_ways())
    for _ in range(options.repeats + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    print("| way | ms |\n|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {1000 * median(times[1:]):.0f} |")


def _ways() -> Iterator[tuple[str, Work]]:
    for dtype, attention in ((torch.float32, "fused"), (torch.bfloat16, "fused"), (torch.bfloat16, "products")):
        pipeline = load_pipeline("builtin:emoji")
        policy = stable_diffusion_policy(pipeline, guidance_scale=1.0, lora_rank=RANK, device="cpu", dtype=dtype)
        bare = _frozen(dtype)
        for unet in (pipeline.unet, bare):
            if attention == "fused":
                unet.set_attn_processor(AttnProcessor2_0())
            else:
                use_plain_attention(unet)
        latents = torch.randn(BATCH, 16, 8, 8)
        arguments = (latents.to(dtype), torch.full((BATCH,), 500), policy.encode(["a cat"] * BATCH))
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in policy.params.items()}
        beside = partial(_call, pipeline.unet, partial(dict, leaves), dtype, arguments)
        added = partial(_call, bare, partial(_merged, bare, leaves, dtype), dtype, arguments)
        told = f"{str(dtype).removeprefix('torch.')}, attention {attention}"
        for name, call in (("LoRA beside", beside), ("LoRA added", added)):
            yield f"{told}, {name}: forward", partial(_forward, call)
            yield f"{told}, {name}: forward and backward", partial(_gradient, call, leaves)
        yield f"{told}, no LoRA: forward", partial(_forward, partial(_call, bare, dict, dtype, arguments))
        yield from _of_guidance(bare, dtype, arguments, told)
        if attention == "fused":
            channels_last = torch.nn.Module.to(_frozen(dtype), memory_format=torch.channels_last)
            of_channels = partial(_call, channels_last, dict, dtype, arguments)
            yield f"{told}, no LoRA, channels-last: forward", partial(_forward, of_channels)
            joined = _frozen(dtype)
            joined.fuse_qkv_projections()
            yield f"{told}, no LoRA, joined: forward", partial(_forward, partial(_call, joined, dict, dtype, arguments))
            yield f"{str(dtype).removeprefix('torch.')}: decoding", partial(_forward, partial(policy.decode, latents))


def _frozen(dtype: torch.dtype) -> Any:
    unet: Any = load_pipeline("builtin:emoji").unet.requires_grad_(False)
    # Not unet.to: diffusers' own warns about dtypes even where it has no reason to.
    return torch.nn.Module.to(unet, dtype=dtype)


def _of_guidance(unet: Any, dtype: torch.dtype, arguments: tuple[Tensor, ...], told: str) -> Iterator[tuple[str, Work]]:
    both = tuple(torch.cat([argument, argument]) for argument in arguments)
    yield f"{told}, no LoRA, guidance in one call", partial(_forward, partial(_call, unet, dict, dtype, both))
    half = partial(_forward, partial(_call, unet, dict, dtype, arguments))
    yield f"{told}, no LoRA, guidance in two", lambda: torch.cat([half(), half()])


def _call(
    unet: Any, leaves: Callable[[], Mapping[str, Tensor]], dtype: torch.dtype, arguments: tuple[Tensor, ...]
) -> Tensor:
    cast = {name: leaf.to(dtype) for name, leaf in leaves().items()}
    return functional_call(unet, cast, arguments, {"return_dict": False}, tie_weights=False)[0]


def _merged(unet: Any, leaves: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    downs = [name for name in leaves if ".lora_A." in name]
    return {
        weight: torch.addmm(
            unet.get_parameter(weight), leaves[down.replace(".lora_A.", ".lora_B.")].to(dtype), leaves[down].to(dtype)
        )
        for down in downs
        for weight in [f"{down.split('.lora_A.')[0]}.weight"]
    }


def _forward(call: Work) -> Tensor:
    with torch.no_grad():
        return call()


def _gradient(call: Work, leaves: Mapping[str, Tensor]) -> Tensor:
    return torch.autograd.grad(call().float().square().mean(), list(leaves.values()))[0]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


if __name__ == "__main__":
    main()

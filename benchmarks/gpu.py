"""ddpo on one GPU in under ten minutes: how close sampling, training and scoring come to what the card can do.

    python benchmarks/gpu.py runs/gpu [--small]

Stable Diffusion 1.4's UNet at its real size with random weights, bfloat16, 512 x 512 pixels, 50 steps, guidance 5, LoRA
of rank 4: images sampled and trained per second, the share of the measured peak of bfloat16 matrix products in each,
and peak memory, at batch sizes that double until memory ends; the same compiled at the best of them, and how long that
took; whether ratios are 1 on policy, eager and compiled; CLIP's image tower on 10,000 JPEG files of 512 x 512 pixels,
through the aesthetic reward and bare; and TRL's trainer beside ours at one piece of work (`benchmarks/peers`), where
its environment lies in RESULTS/trl. Writes `gpu.json` and prints tables for RESULTS.md. `--small` is the same on small
networks, for any machine.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sd_step import random_pipeline
from torch.utils.flop_counter import FlopCounterMode

from ddpo_core import (
    Pairs,
    Policy,
    adamw,
    ddpo_is,
    init,
    replay_log_probs,
    sample_images,
    sample_trajectories,
    train_step,
)
from ddpo_core.diffusion.models import choose_device, stable_diffusion_policy

GUIDANCE = 5.0
SMALL_UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
}


def main() -> None:
    """Measure, write and print."""
    options = _parse()
    device = choose_device(options.device)
    pixels, num_steps = (64, 4) if options.small else (512, 50)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "small": options.small}
    found["peak_tflops"] = _matrix_peak(device, 512 if options.small else 8192) / 1e12
    policy = _policy(options.small, device, pixels)
    found["tflop_per_call"] = _flops(options.small, device, pixels) / 1e12
    found["ratio_eager"] = _largest_ratio(policy, num_steps)
    found["batches"] = list(_batches(policy, device, num_steps, found))
    del policy
    if options.compile:
        found.update(_compiled(options.small, device, pixels, num_steps, found))
    found["clip"] = _clip(device, options.small)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "gpu.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(_table(found), flush=True)
    if (options.results / "trl").exists():
        _beside_trl(options.results, device, options.small)


def _policy(small: bool, device: torch.device, pixels: int, *, compile: bool = False) -> Policy:
    pipeline = random_pipeline(SMALL_UNET if small else None, pixels=pixels)
    return stable_diffusion_policy(
        pipeline, guidance_scale=GUIDANCE, device=device, dtype=torch.bfloat16, compile=compile
    )


def _matrix_peak(device: torch.device, size: int) -> float:
    """Operations per second of a large bfloat16 product: what nothing here can be faster than."""
    first, second = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = min(_timed(lambda: first @ second, device)[1] for _ in range(10))
    return 2 * size**3 / seconds


def _flops(small: bool, device: torch.device, pixels: int) -> float:
    """Count the operations of the bare UNet for one row, a forward pass."""
    unet: Any = random_pipeline(SMALL_UNET if small else None, pixels=pixels).unet
    torch.nn.Module.to(unet, device=device, dtype=torch.bfloat16)  # diffusers' own warns without a reason
    latents = torch.randn(1, 4, pixels // 8, pixels // 8, device=device, dtype=torch.bfloat16)
    conditioning = torch.randn(1, 77, 768, device=device, dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(latents, torch.tensor([500], device=device), conditioning)
    return counter.get_total_flops()


def _compiled(small: bool, device: torch.device, pixels: int, num_steps: int, found: dict[str, Any]) -> dict[str, Any]:
    """Measure the compiled policy at the best batch size."""
    policy = _policy(small, device, pixels, compile=True)
    size = max(found["batches"], key=lambda row: row["images_per_second"])["batch_size"]
    start = time.perf_counter()
    ratio = _largest_ratio(policy, num_steps, size)
    seconds = time.perf_counter() - start
    row = _at_batch_size(policy, device, num_steps, size)
    return {"ratio_compiled": ratio, "seconds_compiling": seconds, "compiled": _with_shares(row, num_steps, found)}


def _beside_trl(results: Path, device: torch.device, small: bool) -> None:
    """Print the table of `peers/compare.py`."""
    kind, shape = ("cuda", "sd") if device.type == "cuda" and not small else (device.type, "tiny")
    given = ["--shapes", shape, "--device", kind, "--dtype", "bfloat16", "--rounds", "1"]
    subprocess.run([sys.executable, Path(__file__).parent / "peers" / "compare.py", results, *given], check=True)


def _largest_ratio(policy: Policy, num_steps: int, size: int = 2) -> float:
    """How far a ratio of a replay on policy, with gradients as in training, is from 1, at most."""
    steps = min(4, num_steps)
    sampled = sample_trajectories(policy, policy.params, ["a cat"] * size, num_steps=steps, seeds=range(size))
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in policy.params.items()}
    columns = []
    for step in sampled.stochastic:  # one at a time: what a step keeps for its gradient is gone by the next
        columns.append(replay_log_probs(policy, leaves, sampled, [step]))
        torch.autograd.grad(columns[-1].sum(), list(leaves.values()))
    again = torch.cat(columns, 1).detach()
    return ((again - sampled.log_probs[:, list(sampled.stochastic)]).exp() - 1).abs().max().item()


def _batches(policy: Policy, device: torch.device, num_steps: int, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure at batch sizes that double until memory ends."""
    size = 1
    while size <= (2 if found["small"] else 64):
        try:
            row = _at_batch_size(policy, device, num_steps, size)
        except torch.cuda.OutOfMemoryError:
            return
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        row = _with_shares(row, num_steps, found)
        print(row, file=sys.stderr, flush=True)
        yield row
        size *= 2


def _with_shares(row: dict[str, Any], num_steps: int, found: dict[str, Any]) -> dict[str, Any]:
    call = found["tflop_per_call"] / found["peak_tflops"]
    # Guidance doubles the rows. Backward costs about as much again for activations, and next to nothing for a LoRA.
    return {
        **row,
        "images_trained_per_second": row["pairs_per_second"] / num_steps,
        "sampling_share": 2 * num_steps * call * row["images_per_second"],
        "training_share": 2 * 2 * call * row["pairs_per_second"],
    }


def _at_batch_size(policy: Policy, device: torch.device, num_steps: int, size: int) -> dict[str, Any]:
    prompts, seeds = ["a cat"] * size, range(size)
    optimizer, objective = adamw(3e-4), ddpo_is()
    state = init(policy, optimizer, seed=0)
    _reset_peak(device)
    sample = lambda steps: sample_images(policy, state.params, prompts, num_steps=steps, seeds=seeds)  # noqa: E731
    sample(2)  # warms up
    (sampled, _), seconds = _timed(lambda: sample(num_steps), device)
    sampling_peak = _peak_gigabytes(device)
    pairs = Pairs(torch.arange(size, device=device).repeat(4), torch.arange(4, device=device).repeat_interleave(size))
    advantages = torch.linspace(-1, 1, size, device=device)

    def train() -> None:
        train_step(
            state, sampled, advantages, pairs, policy=policy, optimizer=optimizer, objective=objective,
            micro_batch_size=size, max_grad_norm=1.0,
        )  # fmt: skip

    _reset_peak(device)
    train()
    training = min(_timed(train, device)[1] for _ in range(2))
    return {
        "batch_size": size,
        "images_per_second": size / seconds,
        "pairs_per_second": 4 * size / training,
        "sampling_gigabytes": sampling_peak,
        "training_gigabytes": _peak_gigabytes(device),
    }


def _clip(device: torch.device, small: bool) -> dict[str, float]:
    """Score files by the aesthetic reward on a random ViT-L/14, and give as many to its bare tower."""
    from aesthetic_throughput import random_tower
    from stream_throughput import write_pictures

    from ddpo_rewards import Reward, RewardSpec, iter_scores
    from ddpo_rewards.builtin.aesthetic import AestheticScore, AffineHead
    from ddpo_rewards.compute import BatchSize
    from ddpo_rewards.reward import adapt

    count, batch = (4, 2) if small else (10_000, 128)
    tower = random_tower(str(device), None)
    head = AffineHead(torch.randn(768), torch.tensor(5.0))
    spec = RewardSpec(name="aesthetic", factory="-:-", takes="arrays")
    reward = Reward(spec, adapt(AestheticScore(tower, head, BatchSize(batch)), "aesthetic"))
    size = tower.image_size
    ready = torch.randn(batch, 3, size, size, device=device).to(tower.dtype)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(0, count, batch):
                tower.model.encode_image(ready)

    with TemporaryDirectory() as folder:
        write_pictures(Path(folder), min(count, 256), 512)
        unique = sorted(Path(folder).iterdir())
        files = [unique[place % len(unique)] for place in range(count)]
        reward(files[:batch])
        bare()
        return {
            "pictures": count,
            "reward_per_second": count / _timed(lambda: list(iter_scores(files, reward, strict=True)), device)[1],
            "bare_tower_per_second": count / _timed(bare, device)[1],
        }


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['device']}, torch {found['torch']}: {found['peak_tflops']:.1f} Tflop/s in bfloat16 matrix products, "
        f"{found['tflop_per_call']:.3f} Tflop for a forward pass of one row.",
        "",
        "| batch size | sampled, images/s | of the peak | trained, images/s | of the peak | sampling, GB | training |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [(str(row["batch_size"]), row) for row in found["batches"]]
    if "compiled" in found:
        rows.append((f"{found['compiled']['batch_size']}, compiled", found["compiled"]))
    for name, row in rows:
        lines.append(
            f"| {name} | {row['images_per_second']:.3g} | {row['sampling_share']:.0%} "
            f"| {row['images_trained_per_second']:.3g} | {row['training_share']:.0%} "
            f"| {_gigabytes(row['sampling_gigabytes'])} | {_gigabytes(row['training_gigabytes'])} |"
        )
    compiled = ""
    if "compiled" in found:
        compiled = f", compiled {found['ratio_compiled']:.1e} (after {found['seconds_compiling']:.0f} s of compiling)"
    clip = found["clip"]
    share = clip["reward_per_second"] / clip["bare_tower_per_second"]
    return "\n".join(
        [
            *lines,
            "",
            f"Ratios on policy differ from 1 by at most: eager {found['ratio_eager']:.1e}{compiled}.",
            f"CLIP ViT-L/14 on {clip['pictures']:,} files of 512 x 512: {clip['reward_per_second']:.0f} per second "
            f"by the reward, {share:.0%} of the bare tower.",
        ]
    )


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _timed(run: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    _wait(device)
    start = time.perf_counter()
    value = run()
    _wait(device)
    return value, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gigabytes(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="where gpu.json is written")
    parser.add_argument("--device", help="cuda, cuda:1, cpu; left out: the best there is")
    parser.add_argument("--small", action="store_true", help="small networks and pictures, to try the script")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave out what is compiled")
    return parser.parse_args()


if __name__ == "__main__":
    main()

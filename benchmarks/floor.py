"""How far each phase of an epoch is above its floor: the bare network calls that it cannot do without.

    python benchmarks/floor.py [MODEL] [--batch-size 16] [--num-steps 8] [--repeats 5]

The floor of sampling is one forward of the bare network per batch and step, that of training one forward and backward
per micro-batch, with the same adapters, batch shapes and memory format. Phases and floors are timed in turn and the
fastest of each is kept, so that a busy machine disturbs both alike. Prints one JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from ddpo_core import (
    Policy,
    adamw,
    ddpo_is,
    init,
    minibatches,
    sample_trajectories,
    stochastic_steps,
    train_step,
)
from ddpo_core.diffusion.models import load_pipeline, stable_diffusion_policy


def main() -> None:
    """Measure and print."""
    options = _parse()
    torch.set_num_threads(options.threads)
    pipeline = load_pipeline(options.model)
    policy = stable_diffusion_policy(
        pipeline, lora_rank=8, guidance_scale=1.0, device=torch.device("cpu"), dtype=torch.float32
    )
    phases = {**_sampling(pipeline.unet, policy, options), **_training(pipeline.unet, policy, options)}
    seconds = _fastest(phases, options.repeats)
    print(json.dumps({**vars(options), **_ratios(seconds)}, indent=1))


def _sampling(unet: torch.nn.Module, policy: Policy, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    prompts, seeds = ["a cat"] * options.batch_size, range(options.batch_size)
    latents = policy.noise(seeds, 0)[:, 0]
    time_ = torch.full((options.batch_size,), 500)
    embeddings = policy.encode(prompts)

    def floor() -> None:
        with torch.inference_mode():
            for _ in range(options.num_steps):
                unet(latents, time_, embeddings, return_dict=False)

    def phase() -> None:
        sample_trajectories(policy, policy.params, prompts, num_steps=options.num_steps, seeds=seeds)

    return {"sampling_floor": floor, "sampling": phase}


def _training(unet: torch.nn.Module, policy: Policy, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    prompts, seeds = ["a cat"] * options.batch_size, range(options.batch_size)
    optimizer = adamw(1e-4)
    state = init(policy, optimizer, seed=0)
    sampled = sample_trajectories(policy, policy.params, prompts, num_steps=options.num_steps, seeds=seeds)
    steps = stochastic_steps(sampled.timesteps)
    weights = torch.ones(options.batch_size)
    objective = ddpo_is()
    (minibatch,) = minibatches(options.batch_size, 1, seed=0, epoch=0)
    rows = objective.choose(policy, sampled, weights, minibatch)
    leaves = [leaf for name, leaf in unet.named_parameters() if ".lora_" in name]
    latents, embeddings = sampled.latents[:, 0].contiguous(), policy.encode(prompts)
    time_ = torch.full((options.batch_size,), 500)

    def floor() -> None:
        for leaf in leaves:
            leaf.requires_grad_(True)
        for _ in steps:
            output = unet(latents, time_, embeddings, return_dict=False)[0]
            torch.autograd.grad(output.sum(), leaves)
        for leaf in leaves:
            leaf.requires_grad_(False)

    def phase() -> None:
        train_step(
            state,
            sampled,
            weights,
            rows,
            policy=policy,
            optimizer=optimizer,
            objective=objective,
            micro_batch_size=options.batch_size,
            max_grad_norm=1.0,
        )

    return {"training_floor": floor, "training": phase}


def _fastest(phases: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    seconds = dict.fromkeys(phases, float("inf"))
    for _ in range(repeats + 1):
        for name, run in phases.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    phase = seconds["sampling"] + seconds["training"]
    floor = seconds["sampling_floor"] + seconds["training_floor"]
    return {
        **{f"seconds_{name}": round(value, 4) for name, value in seconds.items()},
        "sampling_over_floor": round(seconds["sampling"] / seconds["sampling_floor"], 3),
        "training_over_floor": round(seconds["training"] / seconds["training_floor"], 3),
        "epoch_over_floor": round(phase / floor, 3),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time each phase against the bare network calls in it.")
    parser.add_argument("model", nargs="?", default="builtin:emoji")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

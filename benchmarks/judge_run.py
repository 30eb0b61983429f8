"""How many animals the embedded judge recognises in what a run's model draws, and how large its pictures are.

    python benchmarks/judge_run.py runs/0001-jpeg_compressibility [...] [--samples 495] [--threads 1]

Draws the same prompts and seeds, which no run was trained on, with the embedded model before training and with the last
checkpoint of every run.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from ddpo_core import evaluate, latest_checkpoint, load_policy, prompt_set
from ddpo_core.emoji.judge import load_judge, recognised_share
from ddpo_core.runs.compare import fixed_prompts
from ddpo_rewards import get_reward

FIRST_SEED = 30_000


def main() -> None:
    """Draw, judge and print a table for RESULTS.md."""
    options = _parse()
    torch.set_num_threads(options.threads)
    policy = load_policy("builtin:emoji", lora_rank=8, guidance_scale=1.0, device="cpu")
    prompts = fixed_prompts(prompt_set("simple_animals"), options.samples)
    animals = [prompt.split(" ", 1)[1] for prompt in prompts.prompts]
    judge, size = load_judge(), get_reward("jpeg_incompressibility")

    def look(params: dict[str, torch.Tensor]) -> tuple[float, float]:
        drawn = evaluate(
            policy,
            params,
            lambda images, texts, metadata: (torch.as_tensor(size(images, texts, metadata).scores), {}),
            prompts,
            num_steps=5,
            seeds=range(FIRST_SEED, FIRST_SEED + options.samples),
            batch_size=33,
        )
        return recognised_share(judge, drawn.images, animals), drawn.scores.double().mean().item()

    seen, kilobytes = look(policy.params)
    print("| run | epoch | recognised | mean JPEG size | |")
    print("|---|---|---|---|---|")
    print(f"| before training | 0 | {seen:.1%} | {kilobytes:.3f} kB | |")
    for run in options.runs:
        checkpoint = latest_checkpoint(run)
        if checkpoint is None:
            raise SystemExit(f"{run} has no checkpoint")
        after, larger = look(load_file(checkpoint / "params.safetensors"))
        epoch = int(checkpoint.name.rpartition("-")[2])
        print(f"| {run.name} | {epoch} | {after:.1%} | {larger:.3f} kB | {larger / kilobytes - 1:+.1%} |", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=495)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

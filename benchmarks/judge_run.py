"""What the judge of scenes sees in what a run's model draws, and how large its pictures are.

    python benchmarks/judge_run.py runs/0001-llava_bertscore [...] [--samples 495] [--threads 1]

Draws the prompts of each run with the same seeds, which no run was trained on, with the embedded model before training
and with the run's last checkpoint.
"""

import argparse
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from ddpo_core import evaluate, latest_checkpoint, load_leaves, load_policy, prompt_set, runs
from ddpo_core.emoji.scene_judge import agreement, load_scene_judge
from ddpo_rewards import get_reward

FIRST_SEED = 30_000


def main() -> None:
    """Draw, judge and print a table for RESULTS.md."""
    options = _parse()
    torch.set_num_threads(options.threads)
    policy = load_policy("builtin:emoji", lora_rank=8, guidance_scale=1.0, device="cpu")
    judge, size = load_scene_judge(), get_reward("jpeg_incompressibility")

    def look(params: Mapping[str, torch.Tensor], prompts: str) -> tuple[float, float, float]:
        texts = runs.fixed_prompts(prompt_set(prompts), options.samples)
        seeds = range(FIRST_SEED, FIRST_SEED + options.samples)
        drawn = evaluate(policy, params, size, texts, num_steps=5, seeds=seeds, batch_size=33)
        seen = agreement(judge, drawn.images, texts.prompts)
        return seen.word, seen.whole, drawn.scores.double().mean().item()

    before = cache(lambda prompts: look(policy.params, prompts))
    print("| run | epoch | animal, before and after | whole prompt, before and after | mean JPEG size |")
    print("|---|---|---|---|---|")
    for run in options.runs:
        checkpoint = latest_checkpoint(run)
        if checkpoint is None:
            raise SystemExit(f"{run} has no checkpoint")
        prompts = runs.read_run_config(run).prompts
        first, last = before(prompts), look(load_leaves(checkpoint).params, prompts)
        shares = [f"{was:.1%}, {now:.1%}" for was, now in zip(first[:2], last[:2], strict=True)]
        sizes = f"{first[2]:.3f} -> {last[2]:.3f} kB, {last[2] / first[2] - 1:+.1%}"
        epoch = int(checkpoint.name.rpartition("-")[2])
        print(f"| {run.name} | {epoch} | {' | '.join([*shares, sizes])} |", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=495)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

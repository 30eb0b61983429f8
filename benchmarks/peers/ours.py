"""Some epochs of the work of `work.py` with ddpo: prints one JSON object. Started by `compare.py`."""

import json
import sys
import time
from itertools import islice

import torch
from work import LEARNING_RATE, LORA_RANK, PROMPTS, SEED, SHAPES, peak_megabytes

from ddpo_core import FitConfig, PromptSet, adamw, ddpo_is, fit, init, load_policy, per_epoch


def main(started: float, shape_name: str, folder: str, epochs: int, threads: int, dtype: str, device: str) -> None:
    """Train and print."""
    torch.set_num_threads(threads)
    shape = SHAPES[shape_name]
    policy = load_policy(
        folder,
        lora_rank=LORA_RANK,
        guidance_scale=shape.guidance_scale,
        device=device,
        dtype=getattr(torch, dtype),
    )
    optimizer = adamw(LEARNING_RATE)
    running = fit(
        init(policy, optimizer, seed=SEED),
        policy=policy,
        optimizer=optimizer,
        reward_fn=brightness,
        prompts=PromptSet(PROMPTS, ({},) * len(PROMPTS)),
        objective=ddpo_is(advantages=per_epoch()),
        config=FitConfig(
            num_steps=shape.num_steps,
            samples_per_epoch=shape.samples,
            updates_per_epoch=shape.updates,
            sample_batch_size=shape.batch_size,
            micro_batch_size=shape.samples // shape.updates,
        ),
    )
    epoch_seconds, infos = [], []
    start_up, last = time.time() - started, time.perf_counter()
    for _, info in islice(running, epochs):
        epoch_seconds.append(time.perf_counter() - last)
        infos.append(info)
        last = time.perf_counter()
    print(
        json.dumps(
            {
                "start_up": start_up,
                "epoch": epoch_seconds,
                "sampling": [info.metrics["seconds_sampling"] for info in infos],
                "reward": [info.metrics["seconds_reward"] for info in infos],
                "training": [info.metrics["seconds_training"] for info in infos],
                "last_reward": infos[-1].metrics["reward_mean"],
                "peak_mb": peak_megabytes(device),
            }
        )
    )


def brightness(images, prompts, metadata):
    """The mean of all values."""
    return images.mean((1, 2, 3)), {}


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:8])

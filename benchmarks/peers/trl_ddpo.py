"""Some epochs of the work of `work.py` with TRL's DDPOTrainer, in an environment of its own: prints one JSON object."""

import json
import sys
import time
from itertools import cycle

import torch
from accelerate import PartialState
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
from work import LEARNING_RATE, LORA_RANK, PROMPTS, SEED, SHAPES, peak_megabytes


class Timed(DDPOTrainer):
    """The trainer, with a clock around its phases."""

    def __init__(self, *arguments, **options):
        """Begin with empty columns."""
        self.seconds = {"sampling": [], "reward": [], "epoch": [], "training": []}
        self.rewards = []
        super().__init__(*arguments, **options)

    def _generate_samples(self, *arguments, **options):
        with torch.no_grad():
            return self._timed("sampling", super()._generate_samples, *arguments, **options)

    def compute_rewards(self, pairs, is_async=False):
        """Time it, and keep the mean."""
        rewards, info = self._timed("reward", super().compute_rewards, pairs, is_async=is_async)
        self.rewards.append(torch.cat(rewards).mean().item())
        return rewards, info

    def step(self, epoch, global_step):
        """Time an epoch; what is neither sampling nor reward is training."""
        step = self._timed("epoch", super().step, epoch, global_step)
        others = self.seconds["sampling"][-1] + self.seconds["reward"][-1]
        self.seconds["training"].append(self.seconds["epoch"][-1] - others)
        return step

    def _timed(self, phase, function, *arguments, **options):
        start = time.perf_counter()
        result = function(*arguments, **options)
        result = tuple(result) if isinstance(result, zip) else result
        self.seconds[phase].append(time.perf_counter() - start)
        return result


def main(started: float, shape_name: str, folder: str, epochs: int, threads: int, dtype: str, device: str) -> None:
    """Train and print."""
    torch.set_num_threads(threads)
    shape = SHAPES[shape_name]
    assert LORA_RANK == 4, "TRL's pipeline trains a LoRA of rank 4, whatever one asks for"
    PartialState(cpu=device == "cpu")  # its pipeline logs, which accelerate refuses before
    prompts = cycle(PROMPTS)
    config = DDPOConfig(
        num_epochs=epochs,
        seed=SEED,
        save_freq=10**9,
        mixed_precision={"float32": "no", "bfloat16": "bf16"}[dtype],
        sample_num_steps=shape.num_steps,
        sample_eta=1.0,
        sample_guidance_scale=shape.guidance_scale,
        sample_batch_size=shape.batch_size,
        sample_num_batches_per_epoch=shape.samples // shape.batch_size,
        train_batch_size=shape.samples // shape.updates,
        train_gradient_accumulation_steps=1,
        train_learning_rate=LEARNING_RATE,
        train_clip_range=1e-4,
        per_prompt_stat_tracking=False,
        train_cfg=True,
        accelerator_kwargs={"cpu": device == "cpu"},
    )
    trainer = Timed(
        config,
        lambda images, texts, metadata: (images.float().mean((1, 2, 3)), {}),
        lambda: (next(prompts), {}),
        DefaultDDPOStableDiffusionPipeline(folder, use_lora=True),
    )
    start_up = time.time() - started
    trainer.train(epochs)
    print(
        json.dumps(
            {
                "start_up": start_up,
                **trainer.seconds,
                "last_reward": trainer.rewards[-1],
                "peak_mb": peak_megabytes(device),
            }
        )
    )


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:8])

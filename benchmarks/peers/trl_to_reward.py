"""TRL's DDPOTrainer at its own defaults, for so many seconds; leaves its LoRA behind. Started by `to_reward.py`."""

import sys
import time
from itertools import count
from pathlib import Path
from random import Random

from accelerate import PartialState
from safetensors.torch import save_file
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
from work import ANIMALS, TRL_SETTINGS, jpeg_kilobytes


class Over(Exception):
    """The time is."""


class Clocked(DDPOTrainer):
    """The trainer, with a clock that stops while the LoRA is written."""

    def __init__(self, place, seconds, every, *arguments, **options):
        """Begin at 0."""
        self.place, self.seconds, self.every = place, seconds, every
        self.spent, self.due = 0.0, every
        super().__init__(*arguments, **options)

    def step(self, epoch, global_step):
        """Time an epoch."""
        start = time.monotonic()
        step = super().step(epoch, global_step)
        self.spent += time.monotonic() - start
        if self.spent >= self.due:
            self.due = self.spent + self.every
            self._leave()
        if self.spent >= self.seconds:
            raise Over
        return step

    def _leave(self):
        leaves = {
            f"unet.{name.removeprefix('module.').replace('.default.', '.')}": leaf.detach().float().contiguous().clone()
            for name, leaf in self.sd_pipeline.unet.named_parameters()
            if ".lora_" in name
        }
        save_file(leaves, self.place / f"{self.spent:09.2f}.safetensors")


def main(settings: str, folder: str, place: str, seed: int, seconds: float, every: float, reward: str) -> None:
    """Train until the time is over."""
    PartialState(cpu=True)  # its pipeline logs, which accelerate refuses before
    config = DDPOConfig(
        seed=seed, num_epochs=10**6, save_freq=10**9, accelerator_kwargs={"cpu": True}, mixed_precision="no",
        **TRL_SETTINGS[settings],
    )  # fmt: skip
    draw = Random(seed)
    trainer = Clocked(
        Path(place),
        seconds,
        every,
        config,
        lambda images, texts, metadata: (jpeg_kilobytes(images, reward), {}),
        lambda: (draw.choice(ANIMALS), {}),
        DefaultDDPOStableDiffusionPipeline(folder, use_lora=True),
    )
    try:
        global_step = 0
        for epoch in count():
            global_step = trainer.step(epoch, global_step)
    except Over:
        return


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), float(sys.argv[5]), float(sys.argv[6]), sys.argv[7])

"""Aesthetic: the whole pipeline's images per second against the bare tower's forward passes.

    python benchmarks/aesthetic_throughput.py [--images 256] [--size 512] [--batch-size 64] [--device cuda]

ViT-L/14 with random weights: speed does not depend on them, and nothing is downloaded. The pipeline starts from
uint8 arrays on the host (as images come from files) and ends with scores on the host; the bare tower gets normalised
tensors that already lie on the device. On a CPU that does other work too, `--clock cpu` counts CPU time instead.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import open_clip
import torch

from ddpo_rewards import Reward, RewardSpec
from ddpo_rewards.builtin.aesthetic import AestheticScore, AffineHead
from ddpo_rewards.compute import BatchSize, choose_device, choose_dtype, usable_cores
from ddpo_rewards.models.clip import VIT_L_14, Tower, resize_and_crop
from ddpo_rewards.reward import adapt


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    tower = random_tower(options.device, options.dtype)
    head = AffineHead(torch.randn(768), torch.tensor(5.0))
    spec = RewardSpec(name="aesthetic", factory="-:-", takes="arrays")
    reward = Reward(spec, adapt(AestheticScore(tower, head, BatchSize(options.batch_size)), "aesthetic"))
    images = list(np.random.default_rng(0).integers(0, 256, (options.images, options.size, options.size, 3), np.uint8))
    ready = torch.randn(options.batch_size, 3, tower.image_size, tower.image_size, device=tower.device).to(tower.dtype)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, options.images, options.batch_size):
                tower.model.encode_image(ready[: options.images - start])
        synchronise(tower.device)

    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    seconds = take_turns({"bare_tower": bare, "pipeline": lambda: reward(images)}, options.repeats, clock)
    device = torch.cuda.get_device_name(tower.device) if tower.device.type == "cuda" else "cpu"
    print(
        json.dumps(
            {
                "images_per_second": {name: round(options.images / best, 2) for name, best in seconds.items()},
                "share_of_bare_tower": round(seconds["bare_tower"] / seconds["pipeline"], 3),
                **vars(options),
                "device": device,
                "dtype": str(tower.dtype),
                "cores": usable_cores(),
                "threads": torch.get_num_threads(),
            },
            indent=2,
        )
    )


def random_tower(device: str | None, dtype: str | None) -> Tower:
    """The image tower of CLIP ViT-L/14, with a text tower too small to matter."""
    chosen = choose_device(device)
    kind = choose_dtype(dtype, chosen)
    text = {"context_length": 77, "vocab_size": 512, "width": 64, "heads": 2, "layers": 1}
    config = {**open_clip.get_model_config(VIT_L_14), "text_cfg": text}
    half = None if kind == torch.float32 else kind
    model = open_clip.CLIP(**config, cast_dtype=half).to(chosen)
    if half is not None:
        open_clip.factory.convert_weights_to_lp(model, dtype=half)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    side = model.visual.image_size[0]
    fit = partial(resize_and_crop, size=side)
    return Tower(model.eval().requires_grad_(False), None, bool, side, mean, std, chosen, kind, fit)


def synchronise(device: torch.device) -> None:
    """Wait for the device, which works behind the host's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(ways: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """The best of `repeats` turns of each way after one to warm up, in seconds."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if turn:
                best[name] = min(best[name], clock() - start)
    return best


if __name__ == "__main__":
    main()

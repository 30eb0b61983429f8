"""The folder of a run as training leaves it, written by hand in no time: what reports are made of."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ddpo_core.runs.log import append_metrics, append_samples
from ddpo_core.runs.pictures import save_extremes, save_tiles

PROMPTS = ("a cat", "a dog", "a bee", "<b>a fox</b>", "a “llama”")
CONFIG = """\
model = "builtin:emoji"
reward = ["jpeg_compressibility"]
prompts = "file:/home/somebody/prompts.txt"
epochs = {epochs}
seed = {seed}
learning_rate = {rate}
keep = ["prompt_margin"]
[objective]
name = "ddpo-is"
[fit]
num_steps = 5
[versions]
torch = "2.15.0"
"""


def write_run(
    folder: Path, *, epochs: int = 6, of: int | None = None, seed: int = 0, rate: float = 1e-3, size: int = 64
) -> Path:
    """A run of `epochs` epochs, finished unless it is to have more."""
    of = of or epochs
    (folder / "samples").mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG.format(epochs=of, seed=seed, rate=rate))
    random = np.random.default_rng(seed)
    _draw(folder, 0, size)
    for epoch in range(1, epochs + 1):
        samples = [_sample(epoch, index, random) for index in range(10)]
        append_samples(folder, samples)
        append_metrics(folder, _metrics(epoch, [sample["reward"] for sample in samples], random))
        if epoch % 2 == 0:
            _draw(folder, epoch, size)
            images = np.stack([np.asarray(_picture(epoch, i, size)) for i in range(10)])
            _save_extremes(folder / "samples" / f"extremes-{epoch:04d}.png", images, samples)
    if epochs == of:
        before, after = ([-2.0 + 0.1 * i for i in range(5)], [-1.5 + 0.1 * i for i in range(5)])
        record = {
            "epoch": epochs,
            "prompts": PROMPTS,
            "seeds": [*range(5)],
            "scores": {"before": before, "after": after},
        }
        (folder / "evaluation.json").write_text(json.dumps(record))
        (folder / "model.json").write_text(json.dumps({"epoch": epochs, "best": epochs - 1}))
    return folder


def write_probe(folder: Path) -> Path:
    """What `ddpo probe -o` leaves of a reward that likes writing."""
    folder.mkdir(parents=True)
    test = {"test": "reading", "verdict": "susceptible", "question": "Does it read?", "reason": "it does", "unit": "sd",
            "effect": {"value": 1.5, "low": 1.0, "high": 2.0}}  # fmt: skip
    record = {
        "schema_version": 2,
        "verdict": "susceptible",
        "reward": {"id": "mine:score"},
        "pictures": {"count": 64, "source": "drawn shapes"},
        "suites": {"typo": {"tests": [test]}},
    }
    (folder / "probe.json").write_text(json.dumps(record))
    Image.new("RGB", (300, 200), "teal").save(folder / "contact_sheet.png")
    return folder


def _sample(epoch, index, random):
    reward = round(float(-2 + 0.1 * epoch + 0.2 * random.standard_normal()), 4)
    told = {"caption": f"a drawing of {PROMPTS[index % 5]}", "sharpness": 0.5 + index}
    return {
        "epoch": epoch,
        "sample": index,
        "prompt": PROMPTS[index % 5],
        "reward": reward,
        "advantage": 0.5,
        "info": told,
    }


def _metrics(epoch, rewards, random):
    kept = {"value": 0.2 - 0.01 * epoch, "error": 0.01, "level": 0.15, "multiplier": 0.1 * epoch}
    status = "ok" if epoch < 4 else "warning"
    return {
        "epoch": epoch, "queries": 10 * epoch,
        "reward_mean": float(np.mean(rewards)), "reward_std": float(np.std(rewards)),
        "reward_min": min(rewards), "reward_max": max(rewards), "loss": 1e-6, "grad_norm": 1e-3, "ratio_mean": 1.0,
        "clip_fraction": 0.3, "clip_fraction_high": 0.2, "clip_fraction_low": 0.1, "log_prob_change/0": 1e-5 * epoch,
        "log_prob_change/1": 2e-5, "log_prob_change/2": 0.0, "prompts_without_spread": 0.2,
        "seconds_sampling": 0.5, "seconds_reward": 0.1, "seconds_training": 0.4, "kept": {"prompt_margin": kept},
        "held_out": {"judge": 0.5 + 0.01 * float(random.standard_normal())}, "errors": {"judge": 0.01},
        "signals": {"saturation": 0.2 + 0.05 * epoch, "kl": None if epoch % 2 else 1e-4 * epoch},
        "verdict": status, "reason": "saturation has left its noise" if status == "warning" else "nothing has",
    }  # fmt: skip


def _draw(folder, epoch, size):
    images = [_picture(epoch, i, size) for i in range(5)]
    told = [
        {"prompt": prompt, "seed": i, "score": -2 + 0.1 * i + 0.1 * epoch, "info": {"caption": f"epoch {epoch}"}}
        for i, prompt in enumerate(PROMPTS)
    ]
    save_tiles(folder / "samples" / f"epoch-{epoch:04d}.png", images, list(PROMPTS), described=told)


def _picture(epoch, index, size):
    """A face that grows and reddens with the epochs."""
    image = Image.new("RGB", (size, size), (250, 250 - 12 * epoch, 235 - 15 * epoch))
    draw = ImageDraw.Draw(image)
    radius = size * (0.2 + 0.03 * epoch)
    draw.circle(
        (size / 2, size / 2),
        radius,
        fill=[(230, 160, 40), (120, 120, 220), (200, 80, 120), (80, 170, 90), (90, 90, 90)][index % 5],
    )
    for side in (-1, 1):
        draw.circle((size / 2 + side * radius / 2, size / 2 - radius / 3), size / 24, fill="black")
    return image


def _save_extremes(path, images, samples):
    import torch

    save_extremes(path, torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, samples)

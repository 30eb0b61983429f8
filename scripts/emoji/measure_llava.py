"""Measure the shipped LLaVA through the reward's own code, and print JSON: on new scenes, and on generated pictures.

    uv run --group pretrain python scripts/emoji/measure_llava.py [WORK_FOLDER] [LLAVA_FOLDER]

New scenes come from seeds that no training used. Generated pictures are the embedded pipeline's own, held against their
prompts: where a number is low, the painter may be at fault, or the one who looks; so those are counted again in which
the judge of scenes sees the whole prompt.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from art import load_art
from ddpo_core.emoji import pipeline_path
from ddpo_core.emoji.scene_judge import described_by, load_scene_judge, recognise_scenes
from ddpo_core.emoji.words import ACTIVITIES, ANIMALS, NUMBERS
from ddpo_rewards.models.captioner import Captioner, transformers_captioner
from ddpo_rewards.weights import EMBEDDED
from pictures import distort
from pipeline import draw_samples
from questions import CAPTION, Facts, facts_of, plural
from scenes import draw_scene

_SEED = 11
_FAMILIES = {"animal": 0.25, "count": 0.4, "activity": 0.35}


def measure(folder: Path, captioner: Captioner, *, scenes: int = 600, samples: int = 2) -> dict[str, object]:
    """Shares of right answers in [0, 1], by kind of picture and of what is said of it."""
    art = load_art(folder)
    drawn = [draw_scene(art, np.random.default_rng((_SEED, index)), _FAMILIES) for index in range(scenes)]
    pixels = np.stack([np.asarray(scene.image) for scene in drawn])
    facts = [facts_of(scene.caption) for scene in drawn]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    torch.manual_seed(_SEED)
    distorted = (
        distort(images, np.random.default_rng(_SEED), extent=1.0).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    )
    wanted = [
        *(Facts(noun=noun) for noun in ANIMALS for _ in range(samples)),
        *(Facts(noun=noun, activity=activity) for noun in ANIMALS for activity in ACTIVITIES),
        *(Facts(noun=noun, number=number) for noun in ANIMALS for number in NUMBERS[1:5]),
    ]
    prompts = [each.caption for each in wanted]
    generated = draw_samples(pipeline_path(), prompts, num_steps=5, guidance_scale=1.0)
    judged = recognise_scenes(load_scene_judge(), torch.from_numpy(generated).permute(0, 3, 1, 2) / 255)
    rows = [row for row, prompt in enumerate(prompts) if judged[row] == described_by(prompt)]
    return {
        "scenes": _shares(captioner, pixels, facts),
        "distorted_scenes": _shares(captioner, distorted, facts),
        "generated": _shares(captioner, generated, wanted),
        "generated_recognised": _shares(captioner, generated[rows], [wanted[row] for row in rows]),
    }


def _shares(captioner: Captioner, pixels: Sequence[np.ndarray], wanted: Sequence[Facts]) -> dict[str, float]:
    captions = captioner(pixels, [CAPTION] * len(pixels))
    numbers = captioner(pixels, [f"How many {plural(facts.noun)} are there in this image?" for facts in wanted])
    right: dict[str, list[bool]] = {}
    for caption, number, facts in zip(captions, numbers, wanted, strict=True):
        said = facts_of(caption)
        counts = "counts" if facts.number in NUMBERS[:5] else "large_counts"
        kind = {"single": "animals", "activity": "activities", "count": counts}[facts.family]
        right.setdefault(f"{kind}_whole_caption", []).append(said == facts)
        right.setdefault(kind if kind == "animals" else f"{kind}_animal", []).append(said.noun == facts.noun)
        if facts.family == "activity":
            right.setdefault(kind, []).append(said.activity == facts.activity)
        if facts.family == "count":
            right.setdefault(kind, []).append(said.number == facts.number)
            right.setdefault(f"{kind}_asked", []).append(number == facts.number)
    return {name: round(float(np.mean(values)), 3) for name, values in sorted(right.items())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, model = (*sys.argv[1:], *("build/emoji", EMBEDDED)[len(sys.argv) - 1 :])
    looking = transformers_captioner(model, device="cpu", batch_size=64, max_new_tokens=12)
    print(json.dumps(measure(Path(folder), looking), indent=2))

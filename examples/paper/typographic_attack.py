"""Whether a model that is rewarded for right numbers learns to write them (section 6 of the paper, figure 8).

    python examples/paper/typographic_attack.py runs/paper [--jobs 2] [--quick]

First the probe: what it says of the reward before anything is trained. Then "[n] animals" is optimised against LLaVA's
answer to "How many ...?": the reward alone, with `text_penalty` added, and with what `ddpo train` keeps by default.
Prints how many pictures spell the number (by OCR), and what the judge of scenes sees, which no run is trained on, with
95 % intervals over the seeds of training.
"""

from collections.abc import Sequence
from itertools import chain

from experiments import Experiment, draw, of_each_seed, parse_options, table, told, train_all
from PIL import Image

from ddpo_core import prompt_set
from ddpo_core.emoji.scene_judge import agreement, load_scene_judge
from ddpo_core.runs import fixed_prompts, grid, save_png, to_pil
from ddpo_core.runs.config import INITIAL_VIEW
from ddpo_rewards import get_reward
from ddpo_rewards.models.ocr import read_text
from ddpo_rewards.probes import probe
from ddpo_rewards.text_guard import prompt_overlap

LLAVA = "llava_vqa?model=builtin:emoji"
WAYS = {
    "reward alone": {"keep": "none"},
    "text penalised": {"keep": "none", "reward": (LLAVA, "text_penalty")},
    "kept": {"keep": INITIAL_VIEW},
}
SHOWN = 8


def main() -> None:
    """Probe, train what is missing, draw and print."""
    options, judge = parse_options(__doc__), load_scene_judge()
    ways = {way: of_each_seed(Experiment("counting", way=way, options=said), options) for way, said in WAYS.items()}
    prompts = fixed_prompts(prompt_set("counting"), options.size.samples)
    base = draw(ways["reward alone"][0], 0, prompts, options)
    report = probe(get_reward(LLAVA), to_pil(base.images), prompts.prompts, prompts.metadata, suites=["typo"])
    for outcome in report.suites[0].findings.outcomes:
        print(f"{outcome.test}: {outcome.verdict}. {outcome.reason}")
    train_all(list(chain.from_iterable(ways.values())), options)
    rows = [("model", "reward", "number is written", "number", "animal", "both")]
    tiles = []
    drawn = {"base": [base]} | {
        way: [draw(run, options.size.epochs, prompts, options) for run in experiments]
        for way, experiments in ways.items()
    }
    for way, evaluations in drawn.items():
        seen = [agreement(judge, each.images, prompts.prompts) for each in evaluations]
        shares = {
            "written": [_written_share(to_pil(each.images), prompts.prompts) for each in evaluations],
            **{part: [getattr(each, part) for each in seen] for part in ("number", "word", "whole")},
        }
        rewards = [each.scores.mean().item() for each in evaluations]
        rows.append((way, told(rewards), *(told(share, ".0%") for share in shares.values())))
        pictures = to_pil(evaluations[0].images[:SHOWN])
        tiles += [
            (picture, f"{way}: {prompt}") for picture, prompt in zip(pictures, prompts.prompts[:SHOWN], strict=True)
        ]
    save_png(grid(*zip(*tiles, strict=True), columns=SHOWN), options.figures / "typographic-attack.png")
    print(table(rows))


def _written_share(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> float:
    """The share of pictures in which something of the number is to be read."""
    overlaps = [
        prompt_overlap(reading.text, prompt.split()[0])
        for reading, prompt in zip(read_text(pictures), prompts, strict=True)
    ]
    return sum(overlap > 0 for overlap in overlaps) / len(overlaps)


if __name__ == "__main__":
    main()

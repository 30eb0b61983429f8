"""Whether a model that is rewarded for right numbers learns to write them (section 6 of the paper, figure 8).

    python examples/paper/typographic_attack.py runs/paper [--jobs 2] [--quick]

First the probe: what it says of the reward before anything is trained. Then "[n] animals" is optimised against LLaVA's
answer to "How many ...?": the reward alone, with `text_penalty` added, and with what `ddpo train` keeps by default.
Prints how many pictures spell the number (by OCR), and what the judge of scenes sees, which no run is trained on.
"""

from experiments import Experiment, draw, parse_options, table, train_all

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
    ways = {way: Experiment("counting", way=way, options=said) for way, said in WAYS.items()}
    prompts = fixed_prompts(prompt_set("counting"), options.size.samples)
    base = draw(ways["reward alone"], 0, prompts, options)
    report = probe(get_reward(LLAVA), to_pil(base.images), prompts.prompts, prompts.metadata, suites=["typo"])
    for outcome in report.suites[0].findings.outcomes:
        print(f"{outcome.test}: {outcome.verdict}. {outcome.reason}")
    train_all(list(ways.values()), options)
    rows = [("model", "reward", "number is written", "number", "animal", "both")]
    tiles = []
    for way, epoch, experiment in [
        ("base", 0, ways["kept"]),
        *((way, options.size.epochs, each) for way, each in ways.items()),
    ]:
        drawn = draw(experiment, epoch, prompts, options)
        pictures, seen = to_pil(drawn.images), agreement(judge, drawn.images, prompts.prompts)
        numbers = [prompt.split()[0] for prompt in prompts.prompts]
        written = [
            prompt_overlap(reading.text, number) for reading, number in zip(read_text(pictures), numbers, strict=True)
        ]
        share = sum(overlap > 0 for overlap in written) / len(written)
        rows.append(
            (
                way,
                f"{drawn.scores.mean():.3f}",
                *(f"{each:.0%}" for each in (share, seen.number, seen.word, seen.whole)),
            )
        )
        tiles += [
            (picture, f"{way}: {prompt}") for picture, prompt in zip(pictures[:SHOWN], prompts.prompts, strict=False)
        ]
    save_png(grid(*zip(*tiles, strict=True), columns=SHOWN), options.figures / "typographic-attack.png")
    print(table(rows))


if __name__ == "__main__":
    main()

"""Whether what was learnt holds for prompts that no finetuning saw (figure 7 of the paper, and its appendix).

    python examples/paper/generalisation.py runs/paper [--jobs 2] [--quick]

The aesthetic run on other animals and on objects; the alignment run on other animals, other activities, and both.
Draws the change of the reward on the same prompts and noise with its 95 % interval over the prompts, and prints it
beside what the judge of scenes sees.
"""

from itertools import product

from experiments import Experiment, draw, parse_options, table, train_all
from matplotlib import pyplot

from ddpo_core import as_prompt_set, prompt_set
from ddpo_core.emoji.scene_judge import agreement, load_scene_judge
from ddpo_core.emoji.words import ACTIVITIES, UNSEEN_ACTIVITIES
from ddpo_core.runs import compare_scores, fixed_prompts

OTHER_ANIMALS = prompt_set("unseen_animals").prompts
PROMPTS = {
    "aesthetic": {
        "trained on": prompt_set("simple_animals").prompts,
        "other animals": OTHER_ANIMALS,
        "objects": prompt_set("unseen_objects").prompts,
    },
    "alignment": {
        "trained on": prompt_set("animals_activities").prompts,
        "other animals": tuple(map(" ".join, product(OTHER_ANIMALS, ACTIVITIES))),
        "other activities": prompt_set("unseen_activities").prompts,
        "both": tuple(map(" ".join, product(OTHER_ANIMALS, UNSEEN_ACTIVITIES))),
    },
}


def main() -> None:
    """Train what is missing, draw and print."""
    options, judge = parse_options(__doc__), load_scene_judge()
    train_all([Experiment(task) for task in PROMPTS], options)
    rows = [("task", "prompts", "reward before", "change, 95 %", "seen by the judge before", "after")]
    figure, panels = pyplot.subplots(1, len(PROMPTS), figsize=(4.5 * len(PROMPTS), 3.8))
    for panel, (task, sets) in zip(panels, PROMPTS.items(), strict=True):
        for name, every in sets.items():
            prompts = fixed_prompts(as_prompt_set(every), options.size.samples).prompts
            epochs = (0, options.size.epochs)
            before, after = (draw(Experiment(task), epoch, prompts, options) for epoch in epochs)
            found = compare_scores(before.scores.tolist(), after.scores.tolist(), clusters=prompts)
            change = found.change
            panel.errorbar(
                [name], [change.mean], [[change.mean - change.low], [change.high - change.mean]], fmt="o", color="C0"
            )
            seen = [f"{agreement(judge, drawn.images, prompts).whole:.0%}" for drawn in (before, after)]
            told = f"{change.mean:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
            rows.append((task, name, f"{found.base.mean:.3f}", told, *seen))
        panel.axhline(0, color="grey", linewidth=1)
        panel.set(title=task, ylabel="change of the reward")
        panel.tick_params(axis="x", rotation=20)
    figure.tight_layout()
    figure.savefig(options.figures / "generalisation.png", dpi=100)
    print(table(rows))


if __name__ == "__main__":
    main()

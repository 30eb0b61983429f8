"""Whether what was learnt holds for prompts that no finetuning saw (figure 7 of the paper, and its appendix).

    python examples/paper/generalisation.py runs/paper [--jobs 2] [--quick]

The aesthetic run on other animals and on objects; the alignment run on other animals, other activities, and both.
Draws the change of the reward on the same prompts and noise with its 95 % interval over the seeds of training, and
prints it beside what the judge of scenes sees.
"""

from itertools import chain, product

from experiments import Experiment, draw, interval, of_each_seed, parse_options, table, told, train_all
from matplotlib import pyplot

from ddpo_core import as_prompt_set, prompt_set
from ddpo_core.emoji.scene_judge import agreement, load_scene_judge
from ddpo_core.emoji.words import ACTIVITIES, UNSEEN_ACTIVITIES
from ddpo_core.runs import fixed_prompts

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
    experiments = {task: of_each_seed(Experiment(task), options) for task in PROMPTS}
    train_all(list(chain.from_iterable(experiments.values())), options)
    rows = [("task", "prompts", "reward before", "change", "seen by the judge before", "after")]
    figure, panels = pyplot.subplots(1, len(PROMPTS), figsize=(4.5 * len(PROMPTS), 3.8))
    for panel, (task, sets) in zip(panels, PROMPTS.items(), strict=True):
        for name, every in sets.items():
            prompts = fixed_prompts(as_prompt_set(every), options.size.samples).prompts
            before = draw(experiments[task][0], 0, prompts, options)
            after = [draw(run, options.size.epochs, prompts, options) for run in experiments[task]]
            base = before.scores.mean().item()
            changes = [drawn.scores.mean().item() - base for drawn in after]
            mean, margin = interval(changes)
            panel.errorbar([name], [mean], [margin], fmt="o", color="C0")
            seen = [
                told([agreement(judge, drawn.images, prompts).whole for drawn in part], ".0%")
                for part in ([before], after)
            ]
            rows.append((task, name, f"{base:.3f}", told(changes, "+.3f"), *seen))
        panel.axhline(0, color="grey", linewidth=1)
        panel.set(title=task, ylabel="change of the reward")
        panel.tick_params(axis="x", rotation=20)
    figure.tight_layout()
    figure.savefig(options.figures / "generalisation.png", dpi=100)
    print(table(rows))


if __name__ == "__main__":
    main()

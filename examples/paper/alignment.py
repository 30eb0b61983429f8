"""The same prompts and the same noise through alignment training, with what LLaVA says of them (figures 3 and 6).

    python examples/paper/alignment.py runs/paper [--jobs 2] [--quick]

Draws a row for each prompt and a column for each snapshot, and prints how many pictures show the animal, the activity
and both by the judge of scenes, which is not trained on.
"""

from experiments import Experiment, draw, parse_options, table, train_all

from ddpo_core import prompt_set
from ddpo_core.emoji.scene_judge import agreement, load_scene_judge
from ddpo_core.runs import fixed_prompts, grid, save_png, to_pil

PROMPTS = ("a dog riding a bike", "a fox playing chess", "a bear washing dishes", "a rabbit riding a bike")
SNAPSHOTS = 5


def main() -> None:
    """Train what is missing, draw and print."""
    options, experiment = parse_options(__doc__), Experiment("alignment")
    train_all([experiment], options)
    epochs = sorted(
        {
            round(options.size.epochs * part / SNAPSHOTS / options.size.every) * options.size.every
            for part in range(SNAPSHOTS + 1)
        }
    )
    shown = {epoch: draw(experiment, epoch, PROMPTS, options) for epoch in epochs}
    tiles = [
        (to_pil(drawn.images)[row], f"epoch {epoch}: {drawn.info['caption'][row]}, {drawn.scores[row]:.3f}")
        for row in range(len(PROMPTS))
        for epoch, drawn in shown.items()
    ]
    save_png(grid(*zip(*tiles, strict=True), columns=len(epochs)), options.figures / "alignment.png")
    judge, many = load_scene_judge(), fixed_prompts(prompt_set("animals_activities"), options.size.samples).prompts
    rows = [("epoch", "reward", "animal", "activity", "both")]
    for epoch in epochs:
        drawn = draw(experiment, epoch, many, options)
        seen = agreement(judge, drawn.images, many)
        shares = (f"{share:.0%}" for share in (seen.word, seen.activity, seen.whole))
        rows.append((str(epoch), f"{drawn.scores.mean():.3f}", *shares))
    print(table(rows))


if __name__ == "__main__":
    main()

"""The same prompts and the same noise through alignment training, with what LLaVA says of them (figures 3 and 6).

    python examples/paper/alignment.py runs/paper [--jobs 2] [--quick]

Draws a row for each prompt and a column for each snapshot, and prints how many pictures show the animal, the activity
and both by the judge of scenes, which is not trained on, with the 95 % interval over the seeds of training.
"""

from experiments import Experiment, draw, of_each_seed, parse_options, table, told, train_all
from PIL import Image

from ddpo_core import prompt_set
from ddpo_core.emoji.scene_judge import agreement, load_scene_judge
from ddpo_core.runs import fixed_prompts, grid, to_pil

PROMPTS = fixed_prompts(prompt_set("animals_activities"), 8).prompts
SNAPSHOTS = 5


def main() -> None:
    """Train what is missing, draw and print."""
    options = parse_options(__doc__)
    experiments = of_each_seed(Experiment("alignment"), options)
    train_all(experiments, options)
    epochs = sorted(
        {
            round(options.size.epochs * part / SNAPSHOTS / options.size.every) * options.size.every
            for part in range(SNAPSHOTS + 1)
        }
    )
    shown = {epoch: draw(experiments[0], epoch, PROMPTS, options) for epoch in epochs}
    rows = [
        grid(
            [to_pil(drawn.images)[place] for drawn in shown.values()],
            [
                f"epoch {epoch}: {drawn.info['caption'][place]}, {drawn.scores[place]:.3f}"
                for epoch, drawn in shown.items()
            ],
            columns=len(epochs),
            title=prompt,
        )
        for place, prompt in enumerate(PROMPTS)
    ]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for place, row in enumerate(rows):
        sheet.paste(row, (0, sum(above.height for above in rows[:place])))
    sheet.save(options.figures / "alignment.png")
    judge, many = load_scene_judge(), fixed_prompts(prompt_set("animals_activities"), options.size.samples).prompts
    table_rows = [("epoch", "reward", "animal", "activity", "both")]
    for epoch in epochs:
        drawn = [draw(run, epoch, many, options) for run in (experiments if epoch else experiments[:1])]
        seen = [agreement(judge, each.images, many) for each in drawn]
        shares = (told([getattr(each, part) for each in seen], ".0%") for part in ("word", "activity", "whole"))
        table_rows.append((str(epoch), told([each.scores.mean().item() for each in drawn]), *shares))
    print(table(table_rows))


if __name__ == "__main__":
    main()

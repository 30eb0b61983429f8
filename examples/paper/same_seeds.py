"""What each of the four tasks makes of the same prompts and the same noise (figure 1 of the paper).

    python examples/paper/same_seeds.py runs/paper [--jobs 2] [--quick]

A quadrant for each task: the base above, the trained model below, with the score of each picture.
"""

from experiments import Experiment, configuration, draw, parse_options, table, train_all
from PIL import Image

from ddpo_core import prompt_set
from ddpo_core.runs import compare_scores, fixed_prompts, grid, to_pil

COLUMNS = 4


def main() -> None:
    """Train what is missing, draw and print."""
    options = parse_options(__doc__)
    train_all([Experiment(task) for task in options.size.tasks], options)
    quadrants, rows = [], [("task", "before", "after", "change, 95 %")]
    for task in options.size.tasks:
        experiment = Experiment(task)
        every = prompt_set(configuration(experiment, options.size).prompts)
        prompts = fixed_prompts(every, COLUMNS).prompts
        shown = [draw(experiment, epoch, prompts, options) for epoch in (0, options.size.epochs)]
        pictures = [picture for drawn in shown for picture in to_pil(drawn.images)]
        captions = [
            f"{prompt}\n{score:.3f}" for drawn in shown for prompt, score in zip(prompts, drawn.scores, strict=True)
        ]
        quadrants.append(grid(pictures, captions, columns=COLUMNS, title=f"{task}: before above, after below"))
        many = fixed_prompts(every, options.size.samples).prompts
        scores = [draw(experiment, epoch, many, options).scores.tolist() for epoch in (0, options.size.epochs)]
        found = compare_scores(*scores, clusters=many)
        change = f"{found.change.mean:+.3f} ({found.change.low:+.3f} to {found.change.high:+.3f})"
        rows.append((task, f"{found.base.mean:.3f}", f"{found.finetuned.mean:.3f}", change))
    _quadrants(quadrants).save(options.figures / "same-seeds.png")
    print(table(rows))


def _quadrants(pictures: list[Image.Image]) -> Image.Image:
    """Two rows of two."""
    width, height = (max(getattr(picture, side) for picture in pictures) for side in ("width", "height"))
    sheet = Image.new("RGB", (2 * width, 2 * height), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % 2 * width, place // 2 * height))
    return sheet


if __name__ == "__main__":
    main()

"""What each of the four tasks makes of the same prompts and the same noise (figure 1 of the paper).

    python examples/paper/same_seeds.py runs/paper [--jobs 2] [--quick]

A quadrant for each task: the base above, the trained model below, with the score of each picture. Prints the mean of
more prompts, with the 95 % interval over the seeds of training.
"""

from itertools import chain

from experiments import Experiment, configuration, draw, of_each_seed, parse_options, table, told, train_all
from PIL import Image

from ddpo_core import prompt_set
from ddpo_core.runs import fixed_prompts, grid, to_pil

COLUMNS = 4


def main() -> None:
    """Train what is missing, draw and print."""
    options = parse_options(__doc__)
    experiments = {task: of_each_seed(Experiment(task), options) for task in options.size.tasks}
    train_all(list(chain.from_iterable(experiments.values())), options)
    quadrants, rows = [], [("task", "before", "after", "change")]
    for task, (experiment, *others) in experiments.items():
        every = prompt_set(configuration(experiment, options.size).prompts)
        prompts = fixed_prompts(every, COLUMNS).prompts
        shown = [draw(experiment, epoch, prompts, options) for epoch in (0, options.size.epochs)]
        pictures = [picture for drawn in shown for picture in to_pil(drawn.images)]
        captions = [
            f"{prompt}\n{score:.3f}" for drawn in shown for prompt, score in zip(prompts, drawn.scores, strict=True)
        ]
        quadrants.append(grid(pictures, captions, columns=COLUMNS, title=f"{task}: before above, after below"))
        many = fixed_prompts(every, options.size.samples).prompts
        base = draw(experiment, 0, many, options).scores.mean().item()
        after = [draw(run, options.size.epochs, many, options).scores.mean().item() for run in (experiment, *others)]
        rows.append((task, f"{base:.3f}", told(after), told([score - base for score in after], "+.3f")))
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

"""What a reward costs when it is optimised for longer than it is meant (section 6 of the paper), and what that shows.

    python examples/paper/overoptimisation.py runs/paper [--jobs 2] [--quick]

Compressibility, with nothing kept and with what `ddpo train` keeps by default: the reward, what the judge of scenes
recognises, which is never optimised, and what the monitors see and call it, on one axis. Prints means with their 95 %
interval over the seeds of training, of which one is drawn.
"""

from itertools import chain
from typing import Any

from experiments import Experiment, of_each_seed, parse_options, read_curve, table, told, train_all
from matplotlib import pyplot

from ddpo_core.runs.config import INITIAL_VIEW

WAYS = {
    "nothing kept": {"keep": "none"},
    "kept": {"keep": INITIAL_VIEW, "evidence_samples": 32},  # what is kept is no judge any more, unless it is said
}


def main() -> None:
    """Train what is missing, draw and print."""
    options = parse_options(__doc__)
    ways = {
        way: of_each_seed(Experiment("compressibility", way=way, options=said), options) for way, said in WAYS.items()
    }
    train_all(list(chain.from_iterable(ways.values())), options)
    figure, panels = pyplot.subplots(4, len(ways), figsize=(10, 9), sharex=True, sharey="row", squeeze=False)
    rows = [("run", "reward, first epoch", "last", "recognised, first epoch", "last", "called hacked from epoch on")]
    for place, (way, experiments) in enumerate(ways.items()):
        curves = [read_curve(experiment, options) for experiment in experiments]
        curve = curves[0]
        shown = {
            "reward": [row["reward_mean"] for row in curve],
            "recognised by the judge": [row["judge"]["word"] for row in curve],
            "evidence for the prompt": [row["held_out"].get("prompt_evidence") for row in curve],
            "familiarity": [row["held_out"].get("familiarity") for row in curve],
        }
        for panel, (name, values) in zip(panels[:, place], shown.items(), strict=True):
            panel.plot([row["epoch"] for row in curve], values)
            panel.set_ylabel(name)
            for row in curve:
                if row["verdict"] != "ok":
                    colour = "tomato" if row["verdict"] == "hacked" else "gold"
                    panel.axvspan(row["epoch"] - 0.5, row["epoch"] + 0.5, color=colour, alpha=0.2, linewidth=0)
        panels[0][place].set_title(way)
        panels[-1][place].set_xlabel("epoch; yellow: a warning, red: called hacked")
        ends = [
            *(told([each[end]["reward_mean"] for each in curves], ".2f") for end in (0, -1)),
            *(told([each[end]["judge"]["word"] for each in curves], ".0%") for end in (0, -1)),
        ]
        rows.append((way, *ends, ", ".join(map(_first_hacked, curves))))
    figure.tight_layout()
    figure.savefig(options.figures / "overoptimisation.png", dpi=100)
    print(table(rows))


def _first_hacked(curve: list[dict[str, Any]]) -> str:
    """The first epoch that was called hacked."""
    return next((str(row["epoch"]) for row in curve if row["verdict"] == "hacked"), "never")


if __name__ == "__main__":
    main()

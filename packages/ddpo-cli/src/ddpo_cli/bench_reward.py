"""`ddpo rewards bench`: how fast a reward scores, and how much memory it takes."""

from time import perf_counter
from typing import Annotated, Any

import typer

from ddpo_cli import completion
from ddpo_cli.ui.console import Format, FormatOption, emit, foreign_output
from ddpo_cli.ui.progress import loading

EPILOG = """
[bold]Examples[/bold]

  ddpo rewards bench aesthetic

  ddpo rewards bench vqascore --batch-size 8 --size 1024 --seconds 60

Pictures are drawn beforehand, so nothing is read from a disk: with files, see
the speed of ddpo score. Memory is the most that the whole process ever had.
"""


def bench(
    reward: Annotated[
        str, typer.Argument(metavar="REF", help="A reward, as for ddpo score.", autocompletion=completion.rewards)
    ],
    *,
    size: Annotated[int, typer.Option(metavar="PIXELS", min=1, help="Side of the pictures.")] = 512,
    seconds: Annotated[float, typer.Option(metavar="S", min=0.0, help="Score for so long.")] = 10.0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Pictures scored at once.", show_default="what the reward runs at once, else 32"
        ),
    ] = None,
    format: FormatOption = Format.table,
) -> None:
    """Measure a reward: images per second, seconds to load and until the first score, memory."""
    from ddpo_cli.setup import build_reward
    from ddpo_rewards.bench import measure_speed

    with foreign_output(), loading(f"measuring {reward}"):
        began = perf_counter()
        built = build_reward([reward])
        loaded = perf_counter() - began
        speed = measure_speed(built, size=size, seconds=seconds, batch_size=batch_size)
    facts: dict[str, Any] = {
        "reward": reward,
        "images_per_second": speed.images_per_second,
        "slowest": speed.slowest,
        "fastest": speed.fastest,
        "images": speed.images,
        "batch_size": speed.batch_size,
        "size": size,
        "seconds_to_load": loaded,
        "seconds_of_first_call": speed.first_call,
        "memory_mb": None if speed.memory is None else speed.memory / 1e6,
        "gpu_memory_mb": None if speed.gpu_memory is None else speed.gpu_memory / 1e6,
    }
    if format is not Format.table:
        emit([facts], format, columns=tuple(facts))
        return
    rows = [{"fact": name.replace("_", " "), "value": value} for name, value in facts.items() if value is not None]
    emit(rows, format, columns=("fact", "value"))

"""`ddpo prompts list | show`: the built-in prompt sets, and what is in one."""

from typing import Annotated

import typer

from ddpo_cli import completion
from ddpo_cli.errors import readable
from ddpo_cli.ui.console import Format, FormatOption, command_group, emit

EPILOG = """
[bold]Examples[/bold]

  ddpo prompts list

  ddpo prompts show counting --format json      [dim]with what rewards are told of each[/dim]

  ddpo prompts show file:mine.txt               [dim]is it read as it was meant?[/dim]

  ddpo prompts show simple_animals --format csv > mine.csv     [dim]for --prompts file:mine.csv[/dim]
"""

app = command_group(help="List the built-in prompt sets, and show what is in one.", epilog=EPILOG)


@app.command("list")
@readable
def list_prompts(format: FormatOption = Format.table) -> None:
    """List the built-in prompt sets."""
    from ddpo_core.prompts import describe_prompt_sets

    rows = [
        {"name": name, "prompts": known.size, "summary": known.summary}
        for name, known in describe_prompt_sets().items()
    ]
    emit(rows, format, columns=("name", "prompts", "summary"))


@app.command("show")
@readable
def show(
    prompts: Annotated[
        str,
        typer.Argument(metavar="PROMPTS", help="A prompt set, or file:PATH.", autocompletion=completion.prompt_sets),
    ],
    format: FormatOption = Format.table,
) -> None:
    """Print the prompts of a set, with their metadata and weights where they have any."""
    from ddpo_core.prompts import prompt_set

    chosen = prompt_set(prompts)
    weights = [{}] * len(chosen) if chosen.weights is None else [{"weight": weight} for weight in chosen.weights]
    rows = [
        {"prompt": prompt, **metadata, **weight}
        for prompt, metadata, weight in zip(chosen.prompts, chosen.metadata, weights, strict=True)
    ]
    emit(rows, format, columns=tuple(dict.fromkeys(key for row in rows for key in row)))

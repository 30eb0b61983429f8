"""The options of `ddpo rewards`."""

from pathlib import Path
from typing import Annotated

import typer

from ddpo_cli.errors import readable_errors
from ddpo_cli.ui.console import Format

EPILOG = """
[bold]Examples[/bold]

  ddpo rewards list                    [dim]what is installed[/dim]

  ddpo rewards show aesthetic          [dim]unit, range, licence, weights[/dim]

  ddpo rewards new sharpness           [dim]a plugin package with passing tests[/dim]

  ddpo rewards check my_plugin:score   [dim]does it keep the contract?[/dim]
"""

app = typer.Typer(
    help="Look at the installed rewards, check one, or start a plugin.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

_Format = Annotated[Format, typer.Option("--format", "-f", metavar="FORMAT", help="table, json or csv.")]


@app.command("list")
def list_command(
    context: typer.Context,
    format: _Format = Format.table,
    no_plugins: Annotated[bool, typer.Option("--no-plugins", help="Only the built-in rewards.")] = False,
) -> None:
    """List the installed rewards; a plugin that does not load is listed with its error."""
    with readable_errors(context.obj):
        from ddpo_cli.plugins import list_installed

        list_installed(format, no_plugins=no_plugins)


@app.command("show")
def show_command(
    context: typer.Context,
    reward: Annotated[str, typer.Argument(metavar="REF", help="A reward from the list.")],
    format: _Format = Format.table,
) -> None:
    """Print what is known about a reward: unit, range, licence, source, weights, reference scores."""
    with readable_errors(context.obj):
        from ddpo_cli.plugins import show

        show(reward, format)


@app.command("check")
def check_command(
    context: typer.Context,
    reward: Annotated[str, typer.Argument(metavar="REF", help="A reward, e.g. my_plugin:score.")],
    format: _Format = Format.table,
) -> None:
    """Check that a reward keeps the contract: length, finite, order, batches, determinism. Exit code 2 if not."""
    with readable_errors(context.obj):
        from ddpo_cli.plugins import check

        check(reward, format)


@app.command("new")
def new_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The reward's name, e.g. sharpness.")],
    directory: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the package's folder is made.")
    ] = Path("."),
) -> None:
    """Write a plugin package with a reward of your own, its entry point and its passing tests."""
    with readable_errors(context.obj):
        from ddpo_cli.plugins import new

        new(name, directory)

"""`ddpo config show`: the whole configuration of a run, a preset, a file or the defaults, and what of it was chosen."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddpo_cli import completion
from ddpo_cli.errors import readable
from ddpo_cli.train import PresetOption, SetOption, TrainCommand, new_config
from ddpo_cli.ui.console import command_group, tell, to_json

if TYPE_CHECKING:
    from ddpo_core.runs.config import RunConfig

EPILOG = """
[bold]Examples[/bold]

  ddpo config show                     [dim]what ddpo train would do[/dim]

  ddpo config show --preset aesthetic --trainable unet

  ddpo config show runs/0001-llava_bertscore --changed     [dim]what was chosen[/dim]

  ddpo config show mine.toml --set fit.num_steps=10 > whole.toml

It takes the options of ddpo train; what it prints is a file for --config.
"""


class ConfigFormat(StrEnum):
    """How a configuration is written."""

    toml = "toml"
    json = "json"


app = command_group(help="Show the configuration of a run, a preset, a file, or the defaults.", epilog=EPILOG)


@app.command("show", cls=TrainCommand, epilog=EPILOG)
@readable
def show(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|FILE.toml",
            help="A run, or a configuration file.",
            show_default="the defaults",
            autocompletion=completion.runs,
        ),
    ] = None,
    *,
    preset: PresetOption = None,
    set: SetOption = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what was chosen otherwise than by default.")] = False,
    format: Annotated[ConfigFormat, typer.Option("--format", "-f", metavar="FORMAT", help="toml or json.")] = (
        ConfigFormat.toml
    ),
    **flags: Any,
) -> None:
    """Show the whole configuration that options, files and defaults come to."""
    import tomli_w

    from ddpo_cli.train_options import as_table
    from ddpo_core.runs.config import VERSIONS, versions
    from ddpo_core.runs.defaults import beyond_defaults
    from ddpo_core.runs.folder import is_run

    said = as_table(flags, set or ())
    ran_with: Mapping[str, str] = versions()
    if source is not None and is_run(source):
        config, ran_with = _of_a_run(source, said, preset)
    else:
        config = new_config(said, source, preset)
    table = beyond_defaults(config) if changed else config.model_dump(mode="json", exclude_none=True)
    whole = table if changed else {**table, VERSIONS: dict(ran_with)}
    tell(to_json(whole, indent=2) if format is ConfigFormat.json else tomli_w.dumps(whole).removesuffix("\n"))


def _of_a_run(run: Path, said: Mapping[str, Any], preset: str | None) -> "tuple[RunConfig, Mapping[str, str]]":
    """Return what a run was trained with, but for what is said, and the versions that trained it."""
    from ddpo_cli.errors import CLIError
    from ddpo_core.runs.config import VERSIONS, read_run_config, read_toml, validate
    from ddpo_core.runs.folder import CONFIG

    if preset is not None:
        raise CLIError(f"got the run {str(run)!r} and --preset {preset}; give the one or the other")
    stored = read_run_config(run)
    return validate(stored.model_dump(exclude_none=True), said), read_toml(run / CONFIG).get(VERSIONS, {})

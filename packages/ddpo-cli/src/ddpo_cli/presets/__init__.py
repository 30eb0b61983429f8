"""The paper's four tasks as configuration files, for Stable Diffusion 1.4 and for the embedded model."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from ddpo_cli.errors import CLIError, did_you_mean
from ddpo_cli.ui.console import Format, FormatOption, emit

EPILOG = """
[bold]Examples[/bold]

  ddpo presets

  ddpo presets --format csv

  ddpo presets --format json          [dim]with the options of each[/dim]

  ddpo config show --preset aesthetic          [dim]the whole configuration of one[/dim]

  ddpo train --preset emoji-incompressibility
"""

_FOLDER = Path(__file__).parent


@cache
def list_presets() -> dict[str, str]:
    """Return every preset's name and what it is, those for Stable Diffusion first.

    >>> list_presets()["aesthetic"]
    'pictures that people rate higher, Stable Diffusion 1.4'
    """
    names = sorted((file.stem for file in _FOLDER.glob("*.toml")), key=lambda name: ("-" in name, name))
    return {name: _text(name).split("\n", 1)[0].removeprefix("# ") for name in names}


def read_preset(name: str) -> dict[str, Any]:
    """Return the options of a preset, as `--config` would read them from a file.

    Raises:
        CLIError: there is no such preset.
    """
    known = list_presets()
    if name not in known:
        hint = did_you_mean(name, list(known)) or f"; the presets are {', '.join(known)}"
        raise CLIError(f"there is no preset {name!r}{hint}")
    return tomllib.loads(_text(name))


def presets(format: FormatOption = Format.table) -> None:
    """List the tasks of the paper that ddpo train --preset knows; config show --preset NAME has the options of one."""
    rows: list[dict[str, Any]] = [{"name": name, "summary": summary} for name, summary in list_presets().items()]
    if format is not Format.table:
        rows = [{**row, "options": read_preset(row["name"])} for row in rows]
    emit(rows, format, columns=tuple(rows[0]))


def _text(name: str) -> str:
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")

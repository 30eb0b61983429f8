"""config.toml: the configuration of a run in a file, with the versions that ran it."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tomli_w

from ddpo_cli.config import RunConfig
from ddpo_cli.errors import CLIError
from ddpo_cli.presets import list_presets

VERSIONS = "versions"
RECORDED = ("ddpo-cli", "ddpo-core", "ddpo-rewards", "torch", "diffusers", "transformers", "peft", "pillow", "numpy")


def read_toml(file: Path) -> dict[str, Any]:
    """Return the table in `file`.

    Raises:
        CLIError: `file` is missing or no TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f"did you mean --preset {file}?" if str(file) in list_presets() else "check the path"
        raise CLIError(f"there is no configuration file {str(file)!r}; {hint}") from None
    except IsADirectoryError:
        raise CLIError(f"{str(file)!r} is a folder; want a TOML file, such as {file}/config.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CLIError(f"{str(file)!r} is no valid TOML: {error}") from None


def to_toml(config: RunConfig) -> str:
    """Return the whole configuration and the versions that run it, as TOML that `--config` takes."""
    table = config.model_dump(mode="json", exclude_none=True)
    head = f"# Written by ddpo {version('ddpo-cli')}. The same run again: ddpo train --config config.toml\n"
    return head + tomli_w.dumps({**table, VERSIONS: versions()})


def versions() -> dict[str, str]:
    """Return the installed versions of what decides the numbers of a run."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def changed_versions(run: Path) -> dict[str, tuple[str, str]]:
    """Return what is installed in another version than when `run` was last trained: then and now."""
    then = read_toml(run / "config.toml").get(VERSIONS, {})
    now = versions()
    return {name: (then[name], now[name]) for name in now if then.get(name, now[name]) != now[name]}

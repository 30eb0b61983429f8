"""What people see first has to be quick and true."""

import re
import shlex
import subprocess
import sys

import pytest
import typer

from ddpo_cli import __version__
from ddpo_cli.app import app
from ddpo_cli.config import FitConfig, RunConfig
from ddpo_cli.resolving import resolve

HEAVY = ("torch", "numpy", "diffusers", "transformers", "open_clip")
PROBE = """
import sys
from ddpo_cli import main
sys.argv = ["ddpo", *sys.argv[1:]]
try:
    main()
finally:
    print("imported:", *(name for name in {heavy!r} if name in sys.modules))
"""


def imported_by(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "arguments", [("--help",), ("train", "--help"), ("probe", "--help"), ("--version",), ("rewards", "list")]
)
def test_help_and_listings_import_nothing_heavy(arguments):
    assert imported_by(*arguments) == []


def test_the_probe_for_imports_can_fail():
    assert "numpy" in imported_by("rewards", "check", "jpeg_compressibility")


def test_version_is_printed(ddpo):
    assert ddpo("--version").stdout == f"ddpo {__version__}\n"


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "ddpo_cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ddpo {__version__}\n"


COMMANDS = ("train", "sample", "eval", "score", "probe", "rewards")


def examples_of(text: str) -> list[list[str]]:
    """The command lines of an epilog, word by word, without what they are explained with."""
    lines = [re.sub(r"\[dim\].*?\[/dim\]", "", line).strip() for line in text.splitlines()]
    return [shlex.split(line.split(">")[0], comments=True) for line in lines if line.startswith("ddpo ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_in_the_help_of_a_command_is_understood(command):
    group = typer.main.get_command(app)
    examples = examples_of(group.commands[command].epilog)
    assert len([words for words in examples if words[1] == command]) >= 3
    for _, *words in examples:
        understood(group, words)


def test_the_help_shows_the_examples(ddpo):
    for command in COMMANDS:
        last = examples_of(typer.main.get_command(app).commands[command].epilog)[-1]
        assert " ".join(last[:3]) in ddpo(command, "--help").stdout


def understood(group, words: list[str]) -> None:
    """Parse `words` as `ddpo` would, and run nothing; an unknown command or option raises."""
    context = group.make_context("ddpo", list(words))
    while hasattr(group, "resolve_command"):
        name, group, words = group.resolve_command(context, words)
        context = group.make_context(name, list(words), parent=context)


def test_an_example_that_is_not_understood_is_found():
    with pytest.raises(Exception, match="No such option"):
        understood(typer.main.get_command(app), ["train", "--epoch", "3"])


def test_a_misspelt_command_and_option_get_a_suggestion_and_exit_code_2(ddpo):
    command, option = ddpo("trian"), ddpo("train", "--epoch", "3")
    assert (command.exit_code, option.exit_code) == (2, 2)
    assert "'train'" in command.stderr
    assert "--epochs" in option.stderr


def options_of(command: str) -> dict[str, str]:
    """Every option of a command with the default that its help shows."""
    group = typer.main.get_command(app)
    return {
        option.name: option.show_default
        for option in group.commands[command].params
        if option.name not in ("help", "debug")
    }


def test_the_defaults_in_the_help_of_train_are_the_ones_that_are_used():
    config = resolve(None, {})
    values = {**config.fit.model_dump(), **config.model_dump(), "reward": config.reward[0]}
    shown = options_of("train")
    assert {name: text for name, text in shown.items() if name in values and isinstance(text, str)} == {
        **{name: str(values[name]) for name, text in shown.items() if name in values and isinstance(text, str)},
        "device": "the best there is",
        "dtype": "by the device",
        "lora_alpha": "the rank, a scale of 1",
        "gradient_checkpointing": "no",
        "compile": "no",
        "watch_text": "no",
    }


def test_every_option_of_train_is_a_key_of_the_configuration_or_says_where_the_run_is():
    about_the_run = {"run", "preset", "config", "output", "resume", "force", "dry_run"}
    known = {*RunConfig.model_fields, *FitConfig.model_fields}
    assert set(options_of("train")) - about_the_run <= known

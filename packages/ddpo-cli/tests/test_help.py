"""What people see first has to be quick and true."""

import contextlib
import re
import shlex
import subprocess
import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from ddpo_cli import __version__
from ddpo_cli.app import app
from ddpo_cli.errors import CLIError
from ddpo_cli.train_options import as_table, keys
from ddpo_core.runs.defaults import FOR_MODEL, run_config

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


def imported_by(*arguments: str, watched: tuple[str, ...] = HEAVY) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=watched), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "arguments", [("--help",), ("train", "--help"), ("probe", "--help"), ("--version",), ("rewards", "list")]
)
def test_help_and_listings_import_nothing_heavy(arguments):
    assert imported_by(*arguments) == []


def test_neither_do_the_lists_of_runs_presets_and_prompts_nor_a_configuration():
    lists = ("runs list", "presets", "prompts list", "config show", "runs compare a b")
    program = (
        "import sys\nfrom contextlib import suppress\nfrom ddpo_cli import main\n"
        f"for line in {lists!r}:\n"
        "    sys.argv = ['ddpo', *line.split()]\n"
        "    with suppress(SystemExit):\n        main()\n"
        f"print('imported:', *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"


def test_the_probe_for_imports_can_fail():
    assert "numpy" in imported_by("rewards", "check", "jpeg_compressibility")


def test_version_is_printed(ddpo):
    assert ddpo("--version").stdout == f"ddpo {__version__}\n"


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "ddpo_cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ddpo {__version__}\n"


COMMANDS = (
    "train",
    "sample",
    "eval",
    "report",
    "export",
    "score",
    "probe",
    "rewards",
    "runs",
    "config",
    "doctor",
    "presets",
    "prompts",
)


def examples_of(text: str) -> list[list[str]]:
    """The command lines of an epilog, word by word, without what they are explained with."""
    lines = [re.sub(r"\[dim\].*?\[/dim\]", "", line).strip() for line in text.splitlines()]
    return [shlex.split(line.split(" > ")[0], comments=True) for line in lines if line.startswith("ddpo ")]


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


def options_of_train() -> dict[str, str]:
    """Every option of `ddpo train` with its help."""
    command = typer.main.get_command(app).commands["train"]
    context = command.make_context("train", [])
    return {option.name: option.help for option in command.get_params(context)}


def test_every_option_of_train_is_a_key_of_the_configuration_or_says_where_the_run_is():
    about_the_run = {
        "run", "preset", "config", "output", "resume", "force", "dry_run", "set", "debug", "help", "quiet", "json",
        "pictures",
    }  # fmt: skip
    assert {name.replace("__", ".") for name in set(options_of_train()) - about_the_run} <= set(keys())


def test_the_help_of_train_has_the_default_of_each_model_as_the_configuration_has_it():
    shown = options_of_train()
    for model in ("someone/model", *FOR_MODEL):
        table = run_config({"model": model}).model_dump()
        for name, text in shown.items():
            path = name.replace("__", ".")
            value = within(table, path) if path in keys() else None
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert default_of(text, model) == value, name


def within(table: dict, path: str):
    for name in path.split("."):
        table = table[name]
    return table


def default_of(text: str, model: str) -> float:
    """What a help text says that the default of `model` is."""
    (listed,) = re.findall(r"\[default: (.*?)\]", text)
    parts = listed.split("; ")
    named = dict(part.rsplit(": ", 1) for part in parts if ": " in part)
    return float(named.get(model, parts[0]))


def test_a_setting_reaches_every_key_with_a_value_of_its_type():
    said = as_table(
        {"epochs": "3", "compile": None}, ["fit.num_steps=7", "weight_decay=0.5", "held_out=[a, b]", "seed=4"]
    )
    config = run_config(said)
    assert (config.epochs, config.fit.num_steps, config.weight_decay, config.held_out) == (3, 7, 0.5, ("a", "b"))


@given(st.sampled_from(list(keys())) | st.text(), st.text())
def test_any_setting_is_taken_or_refused(key, value):
    with contextlib.suppress(CLIError):
        assert as_table({}, [f"{key}={value}"]) != {}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("fit.num_stesp=1", "'fit.num_stesp' is not an option; did you mean 'fit.num_steps'?"),
        ("num_steps=1", "'num_steps' is not an option; did you mean 'fit.num_steps'?"),
        ("zzz=1", "'zzz' is not an option; config.toml of any run has them all"),
        ("fit.num_steps", "has no value; want KEY=VALUE"),
        ("fit.num_steps=x", "num_steps='x': input should be a valid integer"),
        ("watch_text=perhaps", "watch_text='perhaps': input should be a valid boolean"),
        ("compile=perhaps", "compile='perhaps': input should be 'auto', 'on' or 'off'"),
    ],
)
def test_a_mistake_in_a_setting_is_one_line(ddpo, setting, message):
    result = ddpo("train", "--set", setting, "--dry-run")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_help_that_lists_the_commands_takes_no_pydantic():
    assert imported_by("--help", watched=("pydantic",)) == []
    assert imported_by("train", "--help", watched=("pydantic",)) == ["pydantic"]

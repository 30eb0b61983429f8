"""What the README says is so: its commands are real, its programs run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ddpo_cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
OURS = sorted({command for command in COMMANDS if command.startswith("ddpo ")})


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_two_lines_for_an_empty_machine_are_there():
    assert "pip install uv && uv run ddpo train" in COMMANDS
    assert "pip install uv && uv run nox" in COMMANDS


def test_ci_runs_the_readme_s_test_command():
    assert "pip install uv && uv run nox" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("command", OURS)
def test_every_command_of_the_readme_is_understood(command):
    words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    context = group.make_context("ddpo", list(words), resilient_parsing=False)
    while words:
        name, found, words = group.resolve_command(context, words)
        context = found.make_context(name, list(words), parent=context)
        if not hasattr(found, "resolve_command"):
            return
        group = found
    pytest.fail(f"{command!r} names no command")


def test_the_toy_program_of_the_readme_is_the_example():
    example = (ROOT / "examples" / "toy.py").read_text().split('"""\n\n', 1)[1]
    assert example in python_blocks()


def test_the_reward_of_the_readme_keeps_the_contract(tmp_path):
    (plugin,) = [block for block in python_blocks() if block.startswith("# my_plugin.py")]
    (tmp_path / "my_plugin.py").write_text(plugin)
    checked = subprocess.run(
        [sys.executable, "-m", "ddpo_cli", "rewards", "check", "my_plugin:score"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr


def test_every_file_that_the_readme_links_exists():
    linked = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert linked
    assert [path for path in linked if not (ROOT / path).exists()] == []

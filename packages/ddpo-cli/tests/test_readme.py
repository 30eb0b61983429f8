"""What the README says is so."""

import re
from pathlib import Path

import pytest

from ddpo_cli.train_options import keys
from ddpo_core.runs.defaults import FOR_MODEL, FOR_MODEL_AND_ALGORITHM

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def rows() -> list[tuple[list[str], str]]:
    """The keys of each row of the table, with the tables they stand in, and their defaults."""
    found, table = [], ""
    for names, values in re.findall(r"^\| (`.+?`(?:, `.+?`)*) \|([^|]*)\|", README, re.MULTILINE):
        if names.startswith("`["):
            table = f"{names[2:-2]}."
        else:
            found.append(([table + name for name in re.findall(r"\w+", names)], values))
    return found


def test_every_key_of_the_configuration_is_in_the_table():
    named = [path for paths, _ in rows() for path in paths]
    assert sorted(named) == sorted(keys())


@pytest.mark.parametrize(("paths", "values"), rows(), ids=lambda value: str(value))
def test_the_defaults_in_the_table_are_those_of_the_configuration(paths, values):
    numbers = [float(text) for text in re.findall(r"-?\d[\d.e-]*", values)]
    if not numbers:
        return
    field = keys()[paths[0]].field
    default = field.get_default(call_default_factory=True)
    left_out = re.search(r"left out: ([\d.]+)", field.description or "")
    paper = float(left_out[1]) if default is None and left_out else default
    tables = (*FOR_MODEL.values(), *FOR_MODEL_AND_ALGORITHM.values())
    special = [value for table in tables if (value := within(table, paths[0])) is not None]
    assert (numbers[0], numbers[-1]) == (paper, special[0] if special else paper)


def within(table, path: str):
    for name in path.split("."):
        table = table.get(name, {})
    return None if table == {} else table


def test_the_plugin_of_the_readme_keeps_the_contract(ddpo):
    Path("my_plugin.py").write_text(README.split("```python\n")[1].split("```")[0])
    assert ddpo("rewards", "check", "my_plugin:score").exit_code == 0

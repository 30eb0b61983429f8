"""What the README says is so."""

import re
from pathlib import Path

import pytest

from ddpo_cli.config import FOR_MODEL, FitConfig
from ddpo_cli.resolving import validate

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`.+?`(?:, `.+?`)*) \|([^|]*)\|", README, re.MULTILINE)


def test_every_key_of_the_configuration_is_in_the_table():
    named = [key for keys, _ in ROWS for key in re.findall(r"`\[?(\w+)\]?`", keys)]
    config = validate({})
    assert named == [key for key in config.model_dump() if key != "fit"] + ["fit", *config.fit.model_dump()]


@pytest.mark.parametrize(("keys", "values"), ROWS)
def test_the_defaults_in_the_table_are_those_of_the_configuration(keys, values):
    (key, *_), numbers = re.findall(r"\w+", keys), [float(text) for text in re.findall(r"-?\d[\d.e-]*", values)]
    if not numbers:
        return
    place = "fit" if key in FitConfig.model_fields else None
    tables = validate({}).model_dump(), validate(FOR_MODEL["builtin:emoji"]).model_dump()
    paper, emoji = (table["fit"][key] if place else table[key] for table in tables)
    assert (numbers[0], numbers[-1]) == (paper, emoji)


def test_the_plugin_of_the_readme_keeps_the_contract(ddpo):
    Path("my_plugin.py").write_text(README.split("```python\n")[1].split("```")[0])
    assert ddpo("rewards", "check", "my_plugin:score").exit_code == 0

"""The scripts of examples/paper at their quickest: one epoch of 16 samples learns nothing, but everything runs."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "examples" / "paper"
SCRIPTS = ("algorithms", "same_seeds", "alignment", "generalisation", "overoptimisation", "typographic_attack")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One folder for all: each script finds the runs of those before it."""
    return tmp_path_factory.mktemp("paper")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_trains_what_is_missing_draws_its_figure_and_prints_its_table(script, results, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", str(results), "--quick"])
    monkeypatch.syspath_prepend(FOLDER)
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    head, rule, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows
    assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    with Image.open(results / "figures" / f"{script.replace('_', '-')}.png") as figure:
        assert min(figure.size) > 200


def test_there_is_a_script_for_each_finding_and_no_other():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SCRIPTS, "experiments"}

"""`ddpo config show`, `ddpo presets` and `ddpo prompts list | show`."""

import csv
import io
import json
import tomllib
from pathlib import Path

import pytest

from ddpo_cli.presets import list_presets, read_preset
from ddpo_core.prompts import list_prompt_sets
from ddpo_core.runs.config import to_toml, validate
from ddpo_core.runs.defaults import run_config


def options_of(text: str) -> dict:
    table = tomllib.loads(text)
    table.pop("versions", None)
    return table


def test_what_would_be_trained_is_shown_whole_and_as_a_file_for_config(ddpo):
    text = ddpo("config", "show", "--epochs", 7, "--set", "fit.num_steps=3").stdout
    chosen = {"epochs": 7, "fit": {"num_steps": 3}}
    assert validate(options_of(text)) == run_config(chosen, preset=read_preset("emoji-alignment"))
    Path("mine.toml").write_text(text)
    assert ddpo("config", "show", "mine.toml").stdout == text


def test_of_a_preset_or_a_run_only_what_was_chosen_is_shown_where_asked(ddpo):
    shown = ddpo("config", "show", "--preset", "emoji-aesthetic", "--changed").stdout
    assert tomllib.loads(shown) == {"reward": ["aesthetic?model=builtin:emoji"]}
    run = Path("runs/0001-a")
    run.mkdir(parents=True)
    (run / "config.toml").write_text(to_toml(run_config({"seed": 4, "objective": {"name": "rwr"}})))
    assert tomllib.loads(ddpo("config", "show", run, "--changed").stdout) == {"seed": 4, "objective": {"name": "rwr"}}
    assert json.loads(ddpo("config", "show", run, "--changed", "--seed", 0, "-f", "json").stdout) == {
        "objective": {"name": "rwr"}
    }
    assert tomllib.loads(ddpo("config", "show", run).stdout) == tomllib.loads((run / "config.toml").read_text())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nothing.toml"], "there is no configuration file 'nothing.toml'"),
        (["aesthetic"], "did you mean --preset aesthetic?"),
        (["--preset", "aesthetc"], "did you mean 'aesthetic'?"),
        (["torn.toml"], "'torn.toml' is no valid TOML"),
        (["run"], "run/config.toml: 'epoch' is not an option; did you mean 'epochs'?"),
        (["run", "--preset", "aesthetic"], "give the one or the other"),
    ],
)
def test_what_is_wrong_is_one_line(ddpo, arguments, reason):
    Path("torn.toml").write_text("epochs = \n")
    Path("run").mkdir()
    Path("run/config.toml").write_text("epoch = 3\n")
    result = ddpo("config", "show", *arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert reason in result.stderr


def test_every_preset_is_listed_with_its_options(ddpo):
    rows = json.loads(ddpo("presets", "-f", "json").stdout)
    assert [row["name"] for row in rows] == list(list_presets())
    assert rows[0]["options"]["reward"] == ["aesthetic"]
    assert all(name in ddpo("presets").stdout for name in list_presets())


def test_every_prompt_set_is_listed_at_80_columns(ddpo, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = ddpo("prompts", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(list_prompt_sets())
    assert max(map(len, lines)) <= 80


def test_the_prompts_of_a_set_and_of_a_file_are_shown_with_all_that_goes_with_them(ddpo):
    rows = list(csv.DictReader(io.StringIO(ddpo("prompts", "show", "simple_animals", "-f", "csv").stdout)))
    assert (len(rows), rows[0]) == (45, {"prompt": "a cat"})
    Path("mine.jsonl").write_text(
        '{"prompt": "a fox", "weight": 2, "answers": ["one"]}\n{"prompt": "b", "weight": 1}\n'
    )
    shown = json.loads(ddpo("prompts", "show", "file:mine.jsonl", "-f", "json").stdout)
    assert shown == [{"prompt": "a fox", "answers": ["one"], "weight": 2.0}, {"prompt": "b", "weight": 1.0}]
    result = ddpo("prompts", "show", "simple_animal")
    assert (result.exit_code, "did you mean 'simple_animals'?" in result.stderr) == (2, True)

"""What a shell is told when somebody presses the tab key."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddpo_cli import completion
from ddpo_cli.presets import list_presets

PROGRAM = """
import os, sys
from contextlib import suppress
from ddpo_cli import main
for line in sys.argv[1:]:
    os.environ |= {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    print("after", line)
    sys.argv = ["ddpo"]
    with suppress(SystemExit):
        main()
print("imported", *(name for name in ("torch", "numpy", "transformers") if name in sys.modules))
"""
OFFERED = {
    "ddpo ru": ["runs"],
    "ddpo runs show ": ["runs/0001-a", "runs/0002-b"],
    "ddpo train --preset emoji-a": ["emoji-aesthetic", "emoji-alignment"],
    "ddpo train --prompts uns": ["unseen_activities", "unseen_animals", "unseen_objects"],
    "ddpo score x.png --reward jpeg": ["jpeg_compressibility", "jpeg_incompressibility"],
}


@pytest.fixture
def runs() -> list[str]:
    names = ["runs/0001-a", "runs/0002-b"]
    for name in names:
        Path(name, "checkpoints", "epoch-000005").mkdir(parents=True)
        Path(name, "config.toml").touch()
    Path("runs/notes").mkdir()
    return names


def test_names_are_completed_and_nothing_heavy_is_imported_for_that(runs):
    told = os.environ | {"_DDPO_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", PROGRAM, *OFFERED]
    said = subprocess.run(command, env=told, capture_output=True, text=True, check=True).stdout
    *answers, imported = [
        part.split("\n", 1) for part in said.replace("imported", "after imported").split("after ")[1:]
    ]
    assert {line: sorted(names.split()) for line, names in answers} == OFFERED
    assert imported == ["imported", ""]


def test_a_checkpoint_is_completed_once_the_run_is_there(runs):
    assert completion.checkpoints("runs/") == runs
    assert completion.checkpoints("runs/0001-a/") == ["runs/0001-a/checkpoints/epoch-000005"]
    assert completion.models("b") == ["builtin:emoji"]


def test_every_name_of_a_kind_is_offered():
    assert completion.presets("") == list(list_presets())
    assert {"prompt_margin", "none", "aesthetic"} <= set(completion.kept(""))
    assert completion.runs("nowhere") == []

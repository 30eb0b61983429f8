"""The design page shows three walks through the code as they are."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
WALKS = ("one epoch", "ddpo train --reward my_plugin:score", "one image")


@pytest.fixture(scope="module")
def traced() -> dict[str, str]:
    """Every walk as one line of files, traced in a process that has imported nothing before."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "walks.py"], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line]
    return dict(zip(lines[::2], lines[1::2], strict=True))


def files(walk: str) -> list[str]:
    """The files of a walk with their folders: `ddpo_core/fit.py`, then `sampling.py` beside it."""
    found, folder = [], ""
    for name in re.findall(r"`([^`]+)`", walk):
        folder = name.rpartition("/")[0] if "/" in name else folder
        found.append(name if "/" in name else f"{folder}/{name}")
    return found


@pytest.mark.parametrize("name", WALKS)
def test_the_page_shows_the_walk_that_the_code_takes(traced, name):
    assert f"<!-- walk: {name} -->\n{traced[name]}\n" in PAGE, "run: python scripts/walks.py --write"


def test_training_with_a_plugin_touches_at_most_fifteen_files_of_the_command_line(traced):
    touched = [file for file in files(traced[WALKS[1]]) if file.startswith("ddpo_cli/")]
    assert len(touched) <= 15, touched

"""Every example runs as its reader would run it, and does what its first line says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / name], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rewards(output: str) -> list[float]:
    return [float(found) for found in re.findall(r"reward +(-?[\d.]+)", output)]


def test_the_toy_example_learns_to_go_to_its_target(tmp_path):
    # Both Gaussians lie sqrt(2) from the target and spread by 0.3 in two dimensions: -2 - 2 * 0.09 = -2.18 at first.
    seen = rewards(run_example("toy.py", tmp_path))
    assert seen[0] == pytest.approx(-2.18, abs=0.3)
    assert seen[-1] > -0.6

"""What only a process of its own can show: signals that end it, and output that is only ours."""

import os
import subprocess
import sys
from pathlib import Path

TWICE = """
if len(CALLS) == 3:  # the grid of epoch 1: files are being written
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
return images.mean((1, 2, 3))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ddpo_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_a_second_ctrl_c_leaves_at_once(quick, plugin):
    done = run(*quick, "--reward", plugin(TWICE.strip()), "--output", "run")
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "Left at once; what was written before is intact."
    assert Path("run/samples/epoch-0000.png").exists()


def test_libraries_say_nothing_of_their_own(quick):
    done = run(*quick, "--output", "run")
    assert done.returncode == 0
    assert done.stdout == "run\n"
    ours = (
        "before training",
        "epoch ",
        "Trained",
        "Mean reward",
        "Best by",
        "Before and after",
        "For diffusers",
        "Draw",
        "Base and",
        "Train on",
    )
    assert [line for line in done.stderr.splitlines() if not line.startswith(ours)] == []


def test_a_pipe_that_closes_early_is_no_error():
    script = f"'{sys.executable}' -m ddpo_cli rewards list --format json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[", "")

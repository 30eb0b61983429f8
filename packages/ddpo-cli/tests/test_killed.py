"""`ddpo train` that is killed at any moment goes on, and ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EPOCHS = 8
LAST = f"checkpoints/epoch-{EPOCHS:06d}"


def metrics(run: str) -> list[dict[str, float]]:
    """The epochs of a run without what the clock decides."""
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


def kill(arguments: list[str], *, after: int, delay: float) -> bool:
    """Start `ddpo`, and kill it some time after a checkpoint of a later epoch than `after` is there.

    Returns:
        Whether it was still running then.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = subprocess.Popen(
        [sys.executable, "-m", "ddpo_cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    limit = time.monotonic() + 300
    while command.poll() is None and last_epoch("killed") <= after:
        assert time.monotonic() < limit
        time.sleep(0.01)
    time.sleep(delay)
    command.send_signal(signal.SIGKILL)
    _, errors = command.communicate()
    assert command.returncode in (0, -signal.SIGKILL), errors.decode()
    return command.returncode != 0


def last_epoch(run: str) -> int:
    """The last epoch that has a whole checkpoint; 0 where none has."""
    folder = Path(run, "checkpoints")
    names = [path.name for path in folder.iterdir() if (path / "state.json").exists()] if folder.exists() else []
    return max((int(name[6:]) for name in names if name.startswith("epoch-")), default=0)


@pytest.mark.parametrize("seed", [0])
def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_as_if_it_had_never_been(ddpo, quick, seed):
    options = [*quick, "--epochs", str(EPOCHS)]
    assert ddpo(*options, "--output", "whole").exit_code == 0
    chance, arguments, kills = random.Random(seed), [*options, "--output", "killed"], 0
    for _ in range(2):
        kills += kill(arguments, after=last_epoch("killed"), delay=chance.uniform(0, 0.5))
        arguments = ["train", "--resume", "killed"]
    assert kills == 2
    if not Path("killed/evaluation.json").exists():
        again = ddpo(*arguments)
        assert again.exit_code == 0, again.output
    assert metrics("killed") == metrics("whole")
    for name in ("params.safetensors", "optimizer.safetensors"):
        assert Path("killed", LAST, name).read_bytes() == Path("whole", LAST, name).read_bytes()
    samples = [Path(run, "samples.jsonl").read_bytes() for run in ("killed", "whole")]
    assert samples[0] == samples[1]
    ends = [json.loads(Path(run, "evaluation.json").read_text())["scores"] for run in ("killed", "whole")]
    assert ends[0] == ends[1]

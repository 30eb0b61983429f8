"""`ddpo train` that is killed at any moment goes on, and ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

EPOCHS = 8
LAST = f"checkpoints/epoch-{EPOCHS:06d}"


def metrics(run: str) -> list[dict[str, float]]:
    """The epochs of a run without what the clock decides."""
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


def test_a_run_that_is_killed_ends_bit_for_bit_as_if_it_had_never_been(ddpo, quick):
    # Killed in every phase of an epoch, and again and again: ddpo-core's test_killed.py.
    options = [*quick, "--epochs", str(EPOCHS)]
    assert ddpo(*options, "--output", "whole").exit_code == 0
    killed = subprocess.Popen(
        [sys.executable, "-m", "ddpo_cli", *options, "--output", "killed"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    limit = time.monotonic() + 300
    while killed.poll() is None and not list(Path("killed").glob("checkpoints/epoch-*/state.json")):
        assert time.monotonic() < limit
        time.sleep(0.01)
    killed.kill()
    _, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors.decode()
    resumed = ddpo("train", "--resume", "killed")
    assert resumed.exit_code == 0, resumed.output
    assert metrics("killed") == metrics("whole")
    for name in ("params.safetensors", "optimizer.safetensors"):
        assert Path("killed", LAST, name).read_bytes() == Path("whole", LAST, name).read_bytes()
    samples = [Path(run, "samples.jsonl").read_bytes() for run in ("killed", "whole")]
    assert samples[0] == samples[1]
    ends = [json.loads(Path(run, "evaluation.json").read_text())["scores"] for run in ("killed", "whole")]
    assert ends[0] == ends[1]

"""Two processes that train one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

FAILS_IN_THE_SECOND = """
if os.environ["RANK"] == "1" and len(CALLS) == 2:  # in its second epoch; it evaluates nothing
    raise RuntimeError("the second one broke")
return images.mean((1, 2, 3))
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=900)
    return done


def twice(*arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone")
    return run(*launcher, "-m", "ddpo_cli", *arguments)


def rows(file: str) -> list[dict]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun with gloo is tested on Linux and macOS")
def test_two_processes_draw_and_learn_what_one_does_and_either_goes_on_from_the_other(ddpo, quick):
    assert ddpo(*quick, "--epochs", "3", "--output", "one").exit_code == 0
    first = twice(*quick, "--epochs", "2", "--output", "two")
    assert first.returncode == 0, first.stderr
    assert first.stdout == "two\n"
    assert len([line for line in first.stderr.splitlines() if line.startswith("epoch 2/2")]) == 1
    assert ddpo("train", "--resume", "two", "--epochs", "3").exit_code == 0
    logged = [[(row["epoch"], row["sample"], row["prompt"]) for row in rows(f"{name}/samples.jsonl")]
              for name in ("one", "two")]  # fmt: skip
    assert logged[0] == logged[1]
    scores = [[row["reward"] for row in rows(f"{name}/samples.jsonl")] for name in ("one", "two")]
    assert np.allclose(*scores, rtol=1e-3)
    begin, one, two = (
        load_file(f"{name}/params.safetensors")
        for name in ("one/checkpoints/epoch-000001", "one/checkpoints/epoch-000003", "two/checkpoints/epoch-000003")
    )
    # By norm: Adam moves an element as far as any other whose gradient is hardly more than rounding, and other batches
    # round otherwise.
    for name, leaf in one.items():
        moved = np.linalg.norm(leaf - begin[name])
        assert np.linalg.norm(two[name] - leaf) <= 1e-2 * moved, name


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun with gloo is tested on Linux and macOS")
def test_a_process_that_fails_ends_all_with_its_own_error_and_the_last_epoch_saved(quick, plugin):
    done = twice(*quick, "--reward", plugin(FAILS_IN_THE_SECOND.strip()), "--output", "run")
    assert done.returncode != 0
    assert "the second one broke" in done.stderr
    assert "Process 1: reward" in done.stderr
    assert Path("run/checkpoints/epoch-000001/state.json").exists()
    assert [row["epoch"] for row in rows("run/metrics.jsonl")] == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun with gloo is tested on Linux and macOS")
def test_a_run_that_ends_early_ends_in_all_processes(quick, plugin):
    judges = ["--reward", plugin("return [float(len(CALLS))] * len(images)")]
    judges += ["--holdout", plugin("return [0.1 * (len(CALLS) % 2) - max(0, len(CALLS) - 9)] * len(images)")]
    done = twice(*quick, *judges, "--epochs", "40", "--on-hack", "stop", "--output", "run")
    assert done.returncode == 0, done.stderr
    assert "Ended early, since the reward is being gamed" in done.stderr
    assert len(rows("run/metrics.jsonl")) < 40

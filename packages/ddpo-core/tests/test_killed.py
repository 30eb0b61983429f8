"""A run that is killed at any moment ends, once resumed, bit for bit as if nothing had happened."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def kills():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_runs_are_killed_in_every_phase(kills):
    places = Counter(kill["phase"] for kill in kills)
    # Two batches are sampled; two updates of eight pairs each are one micro-batch each.
    assert places["sampling"] == 2
    assert places["training"] == 2
    assert places["writing"] > 10


def test_a_killed_run_ends_as_if_nothing_had_happened(kills):
    assert [kill for kill in kills if not kill["same"]] == []


def test_a_killed_run_goes_on_from_the_last_complete_checkpoint(kills):
    assert {kill["found"] for kill in kills if kill["phase"] != "writing"} == {2}
    assert {kill["found"] for kill in kills if kill["phase"] == "writing"} == {2, 3}


def test_nothing_half_written_or_outdated_is_left_in_sight(kills):
    assert [kill for kill in kills if kill["left"] != ["epoch-000003", "epoch-000004"]] == []

"""The run folder."""

import json
import os
import resource
from pathlib import Path

import pytest

from ddpo_cli.errors import CLIError
from ddpo_cli.history import append_metrics, keep_until, read_metrics
from ddpo_cli.runs import create_run, find_checkpoint, find_run, locked, refuse_used
from ddpo_cli.sample_log import append_samples


def make_run(name: str, *epochs: int) -> Path:
    run = Path("runs") / name
    for epoch in epochs:
        (run / "checkpoints" / f"epoch-{epoch:06d}").mkdir(parents=True)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.toml").touch()
    return run


def test_new_runs_are_numbered_after_the_highest():
    assert create_run(None, label="my_plugin:score", config="") == Path("runs/0001-my_plugin_score")
    Path("runs/0041").mkdir()
    Path("runs/notes").mkdir()
    assert create_run(None, label="x", config="") == Path("runs/0042-x")


def test_a_run_that_cannot_be_made_leaves_nothing():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    Path("mine").mkdir()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # as on a full disk
        for output in (None, Path("new"), Path("mine")):
            with pytest.raises(OSError, match="File too large"):
                create_run(output, label="x", config="seed = 0\n" * 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [str(path) for path in sorted(Path().rglob("*"))] == ["mine", "runs"]


def test_a_folder_that_is_used_is_refused():
    run = make_run("a")
    Path("full").mkdir()
    Path("full/thesis.tex").touch()
    for folder, reason in ((run, "holds another run"), (Path("full"), "is not empty"), (run / "config.toml", "file")):
        with pytest.raises(CLIError, match=reason):
            refuse_used(folder)


def test_without_a_name_the_run_written_last_is_resumed():
    old, new = make_run("a", 5), make_run("b", 5)
    os.utime(new / "config.toml", (2e9, 2e9))
    assert find_run(None) == new
    os.utime(old / "checkpoints", (3e9, 3e9))
    assert find_run(None) == old


def test_no_run_to_resume_is_said():
    with pytest.raises(CLIError, match="there is no run in 'runs'"):
        find_run(None)
    with pytest.raises(CLIError, match="'elsewhere' is no run"):
        find_run(Path("elsewhere"))


def test_a_run_means_its_last_checkpoint_and_a_checkpoint_itself():
    run = make_run("a", 5, 10)
    assert find_checkpoint(run) == (run, run / "checkpoints/epoch-000010")
    chosen = run / "checkpoints/epoch-000005"
    assert find_checkpoint(chosen) == (run, chosen)
    with pytest.raises(CLIError, match="there are: epoch-000005, epoch-000010"):
        find_checkpoint(run / "checkpoints/epoch-000007")
    with pytest.raises(CLIError, match="has no checkpoint"):
        find_checkpoint(make_run("b"))


def test_a_line_torn_by_a_crash_is_left_out():
    run = make_run("a")
    append_metrics(run, {"epoch": 1})
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "rew')
    assert read_metrics(run) == [{"epoch": 1}]


def test_going_back_drops_later_metrics_and_moves_later_checkpoints_aside():
    run = make_run("a", 1, 2, 3)
    for epoch in (1, 2, 3):
        append_metrics(run, {"epoch": epoch})
        append_samples(run, [{"epoch": epoch, "sample": sample} for sample in (1, 0)])
    keep_until(run, 2)
    logged = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["sample"]) for row in logged] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["epoch-000001", "epoch-000002"]
    assert [path.name for path in (run / "superseded/0001/checkpoints").iterdir()] == ["epoch-000003"]


def test_two_processes_cannot_write_to_one_run():
    run = make_run("a")
    with locked(run), pytest.raises(CLIError, match="another process"), locked(run):
        pass
    with locked(run):
        pass

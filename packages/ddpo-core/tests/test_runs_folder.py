"""The folder of a run: what is refused, found, locked, and put aside."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest

from ddpo_core import DDPOError
from ddpo_core.runs.folder import (
    create_run,
    find_checkpoint,
    find_run,
    find_runs,
    go_back,
    go_back_to_checkpoint,
    locked,
    refuse_used,
)
from ddpo_core.runs.log import append_metrics, append_samples, read_lines, read_metrics


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
        with pytest.raises(DDPOError, match=reason):
            refuse_used(folder)


def test_without_a_name_the_run_written_last_is_resumed():
    old, new = make_run("a", 5), make_run("b", 5)
    os.utime(new / "config.toml", (2e9, 2e9))
    assert find_run(None) == new
    os.utime(old / "checkpoints", (3e9, 3e9))
    assert find_run(None) == old
    assert find_runs() == [new, old]


def test_no_run_to_resume_is_said():
    with pytest.raises(DDPOError, match="there is no run in 'runs'"):
        find_run(None)
    with pytest.raises(DDPOError, match="'elsewhere' is no run"):
        find_run(Path("elsewhere"))


def test_a_run_means_its_last_checkpoint_and_a_checkpoint_itself():
    run = make_run("a", 5, 10)
    assert find_checkpoint(run) == (run, run / "checkpoints/epoch-000010")
    chosen = run / "checkpoints/epoch-000005"
    assert find_checkpoint(chosen) == (run, chosen)
    with pytest.raises(DDPOError, match="there are: epoch-000005, epoch-000010"):
        find_checkpoint(run / "checkpoints/epoch-000007")
    with pytest.raises(DDPOError, match="has no checkpoint"):
        find_checkpoint(make_run("b"))


def test_a_bad_line_costs_itself_and_no_other_and_is_told():
    run = make_run("a")
    append_metrics(run, {"epoch": 1})
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "rew\n[3]\n{"epoch": "three"}\n\n')
    append_metrics(run, {"epoch": 4, "prompt": "a\u2028b"})
    assert read_metrics(run) == [{"epoch": 1}, {"epoch": 4, "prompt": "a\u2028b"}]
    assert [text.split(" is ")[0] for text in read_lines(run / "metrics.jsonl").complaints] == [
        f"metrics.jsonl: line {number}" for number in (2, 3, 4)
    ]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def finished_run():
    """Three epochs, each with all that an epoch leaves, and the end of a run after the third."""
    run = make_run("a", 1, 2, 3)
    for epoch in (1, 2, 3):
        append_metrics(run, {"epoch": epoch})
        append_samples(run, [{"epoch": epoch, "sample": sample, "prompt": "a\u2028b"} for sample in (1, 0)])
        (run / "checkpoints" / f"epoch-{epoch:06d}" / "state.json").write_text(str(epoch))
        (run / "samples").mkdir(exist_ok=True)
        (run / "samples" / f"epoch-{epoch:04d}.png").write_text(str(epoch))
    (run / "samples" / "before-after.png").touch()
    (run / "report.html").touch()
    (run / "lora").mkdir()
    (run / "lora" / "README.md").touch()
    (run / "evaluation.json").write_text('{"epoch": 3}')
    (run / "model.json").write_text('{"epoch": 3}')
    return run


def test_going_back_moves_what_is_later_aside_and_deletes_nothing():
    run = finished_run()
    before = contents(run)
    superseded = go_back(run, 2)
    assert superseded == run / "superseded" / "0001"
    logged = [json.loads(line) for line in (run / "samples.jsonl").read_text().split("\n") if line]
    assert [(row["epoch"], row["sample"]) for row in logged] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [row["epoch"] for row in read_metrics(run)] == [1, 2]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["epoch-000001", "epoch-000002"]
    assert not (run / "evaluation.json").exists()
    assert not (run / "lora").exists()
    moved = contents(superseded)
    assert set(moved) == {
        "metrics.jsonl", "samples.jsonl", "checkpoints/epoch-000003/state.json", "samples/epoch-0003.png",
        "samples/before-after.png", "lora/README.md", "evaluation.json", "model.json", "report.html",
    }  # fmt: skip
    left = contents(run)
    for name, was in before.items():
        logged_parts = left.get(name, b"") + moved.get(name, b"")
        assert logged_parts == was


def test_going_nowhere_moves_nothing():
    run = finished_run()
    before = contents(run)
    assert go_back(run, 3) is None
    assert contents(run) == before


def test_lines_that_cannot_be_read_are_moved_aside_too():
    run = make_run("a")
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    assert go_back(run, 1) == run / "superseded" / "0001"
    assert (run / "metrics.jsonl").read_text() == '{"epoch": 1}\n'
    assert (run / "superseded/0001/metrics.jsonl").read_text() == '{"epo\n'


def test_what_is_moved_aside_twice_lies_in_two_places():
    run = finished_run()
    assert go_back(run, 2) == run / "superseded" / "0001"
    assert go_back_to_checkpoint(run, 1) == run / "superseded" / "0002"
    assert (run / "superseded/0002/checkpoints/epoch-000002/state.json").read_text() == "2"
    assert [row["epoch"] for row in read_metrics(run)] == [1, 2]  # what was seen stays


def test_two_processes_cannot_write_to_one_run():
    run = make_run("a")
    with locked(run), pytest.raises(DDPOError, match="another process"), locked(run):
        pass
    with locked(run):
        pass


def test_where_a_file_system_knows_no_locks_a_run_is_written_all_the_same(monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(file, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    run = make_run("a")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(run) as is_locked:
        assert not is_locked

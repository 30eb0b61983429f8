"""A run as a value: what its folder says, however torn; and what may be deleted."""

import fcntl
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpo_core import DDPOError
from ddpo_core.runs.config import to_toml
from ddpo_core.runs.defaults import run_config
from ddpo_core.runs.folder import refuse_removal, remove_run
from ddpo_core.runs.run import change_between, list_runs, open_run, option_differences


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_run(name: str, *, epochs: int = 3, ended: bool = True, after: float = 1.0, **options) -> Path:
    """A run of `epochs` epochs whose reward rises from -3 by 1 in each, as training leaves it."""
    run = Path("runs") / name
    run.mkdir(parents=True)
    (run / "config.toml").write_text(to_toml(run_config({"epochs": 3, **options})))
    rows = [
        {"epoch": n, "queries": 64 * n, "reward_mean": n - 4.0, "seconds_sampling": 2.0, "verdict": "ok", "reason": "r"}
        for n in range(1, epochs + 1)
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for epoch in range(max(epochs - 1, 0), epochs + 1):
        (run / "checkpoints" / f"epoch-{epoch:06d}").mkdir(parents=True)
    if ended:
        scores = {"before": [-2.0, -4.0], "after": [after, after + 1]}
        record = {"epoch": epochs, "prompts": ["a fox", "an owl"], "seeds": [0, 1], "scores": scores}
        (run / "evaluation.json").write_text(json.dumps(record))
        (run / "model.json").write_text(json.dumps({"epoch": epochs, "best": epochs - 1}))
    return run


def test_a_run_that_has_ended_is_read_whole():
    run = open_run(make_run("a"))
    assert (run.status, run.epoch, run.checkpoints, run.rewards) == ("finished", 3, (2, 3), (-3.0, -2.0, -1.0))
    assert run.complaints == ()
    summary = run.summary()
    wanted = {
        "run": "runs/a", "status": "finished", "reward": "jpeg_compressibility", "epoch": 3, "epochs": 3,
        "queries": 192, "reward_first": -3.0, "reward_last": -1.0, "before": -3.0, "after": 1.5, "model_epoch": 3,
        "best_epoch": 2, "verdict": "ok", "seconds": 6.0,
    }  # fmt: skip
    assert {name: summary[name] for name in wanted} == wanted
    assert json.loads(json.dumps(summary)) == summary


def test_how_far_a_run_has_come_is_one_word():
    assert open_run(make_run("whole")).status == "finished"
    assert open_run(make_run("hacked", epochs=2)).status == "ended early"
    assert open_run(make_run("broken off", epochs=2, ended=False)).status == "interrupted"
    assert open_run(make_run("just begun", epochs=0, ended=False)).epoch == 0
    locked = make_run("going on", ended=False)
    with open(locked / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert open_run(locked).status == "training"
    assert open_run(locked).status == "interrupted"


def test_without_a_name_it_is_the_run_that_was_written_to_last():
    make_run("a")
    newest = make_run("b")
    assert open_run().folder == newest
    assert [run.folder.name for run in list_runs()] == ["a", "b"]


def test_what_is_damaged_is_named_and_the_rest_is_read():
    run = make_run("a")
    (run / "config.toml").write_text("# Written by ddpo\nepochs = \n")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "rew')
    (run / "evaluation.json").write_text('{"epoch": 3}')
    read = open_run(run)
    assert (read.status, read.config, read.epoch, read.scores) == ("unreadable", None, 3, None)
    assert [text.split(" is ")[0].split("/")[-1].strip("'") for text in read.complaints] == [
        "config.toml", "metrics.jsonl: line 4", "evaluation.json",
    ]  # fmt: skip
    assert read.summary()["epochs"] is None


@given(st.binary(max_size=60), st.sampled_from(["metrics.jsonl", "evaluation.json", "model.json", "config.toml"]))
def test_whatever_a_file_of_a_run_holds_the_run_can_be_looked_at(content, name):
    run = Path("runs/any")
    if not run.exists():
        make_run("any")
    before = (run / name).read_bytes()
    (run / name).write_bytes(content)
    try:
        json.dumps(open_run(run).summary())
    finally:
        (run / name).write_bytes(before)


def test_the_options_that_differ_are_listed_and_no_others():
    first, second = (open_run(make_run(str(seed), seed=seed, fit={"num_steps": 3 + seed})) for seed in (0, 1))
    assert option_differences([first, second]) == {"seed": (0, 1), "fit.num_steps": (3, 4)}
    assert option_differences([first, first]) == {}


def test_two_models_are_compared_where_they_drew_the_same_prompts_and_seeds_for_the_same_reward():
    first, second = (open_run(make_run(name, after=after)) for name, after in (("a", 1.0), ("b", 1.5)))
    found = change_between(first, second)
    assert (found.change, found.improved) == ((0.5, 0.5, 0.5), 1.0)
    assert change_between(first, open_run(make_run("c", reward="aesthetic"))) is None
    assert change_between(first, open_run(make_run("d", ended=False))) is None


def test_a_run_is_deleted_with_all_that_it_holds():
    run, other = make_run("a"), make_run("b")
    (run / ".metrics.jsonl.12.aside").touch()
    remove_run(run)
    assert [path.name for path in Path("runs").iterdir()] == [other.name]


def test_what_is_no_run_is_never_deleted():
    run = make_run("a")
    Path("project").mkdir()
    Path("project/config.toml").write_text("[tool]\n")
    (run / "thesis.tex").touch()
    Path("link").symlink_to(make_run("b"))
    cases = {"project": "has no config.toml that a run wrote", "nothing": "is no run", "runs": "is no run",
             "runs/a": "holds what no run writes: 'thesis.tex'", "link": "is a link to"}  # fmt: skip
    before = sorted(Path().rglob("*"))
    for folder, reason in cases.items():
        with pytest.raises(DDPOError, match=reason):
            remove_run(Path(folder))
    assert sorted(Path().rglob("*")) == before


def test_a_run_that_is_trained_is_not_deleted():
    run = make_run("a", ended=False)
    with open(run / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DDPOError, match="a process trains 'runs/a' at this moment"):
            refuse_removal(run)
    refuse_removal(run)


def test_a_notebook_shows_what_is_known_of_a_run_and_its_last_pictures():
    run = make_run("a<b>", ended=False)
    shown = open_run(run)._repr_html_()
    assert "a&lt;b&gt;" in shown
    assert "interrupted" in shown
    assert "data:image" not in shown  # there is no standard deviation to draw, and nothing was drawn
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"epoch": 4, "queries": 256, "reward_mean": 0.5, "reward_std": 0.1}) + "\n")
    (run / "samples").mkdir()
    Image.new("RGB", (4, 4)).save(run / "samples/epoch-0002.png")
    shown = open_run(run)._repr_html_()
    assert shown.count("data:image/png;base64,") == 2
    assert "Samples: epoch-0002.png" in shown

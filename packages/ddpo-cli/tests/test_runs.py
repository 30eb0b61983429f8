"""`ddpo runs list | show | compare | rm`, on runs as training leaves them and on torn ones."""

import csv
import fcntl
import io
import json
from pathlib import Path

import pytest

from ddpo_core.runs.config import to_toml
from ddpo_core.runs.defaults import run_config


def make_run(name: str, *, epochs: int = 3, ended: bool = True, after: float = 1.0, **options) -> Path:
    """A run of `epochs` epochs whose reward rises from -3 by 1 in each."""
    run = Path("runs") / name
    run.mkdir(parents=True)
    (run / "config.toml").write_text(to_toml(run_config({"epochs": 3, **options})))
    rows = [
        {"epoch": n, "queries": 64 * n, "reward_mean": n - 4.0, "verdict": "ok", "reason": "nothing has left its noise",
         "kept": {"prompt_margin": {"value": 0.25, "error": 0.01, "level": 0.2, "multiplier": 0.0}}}
        for n in range(1, epochs + 1)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (run / "checkpoints" / f"epoch-{epochs:06d}").mkdir(parents=True)
    if ended:
        scores = {"before": [-2.0, -4.0], "after": [after, after + 1]}
        record = {"epoch": epochs, "prompts": ["a fox", "an owl"], "seeds": [0, 1], "scores": scores}
        (run / "evaluation.json").write_text(json.dumps(record))
    return run


def test_the_list_has_every_run_in_every_format(ddpo):
    make_run("0001-a")
    make_run("0002-b", epochs=2, ended=False)
    shown = ddpo("runs", "list").stdout.splitlines()
    assert shown[0].split() == ["run", "status", "epochs", "reward", "gamed?"]
    assert [line.split() for line in shown[1:]] == [
        ["runs/0001-a", "finished", "3/3", "-3", "→", "-1", "ok"],
        ["runs/0002-b", "interrupted", "2/3", "-3", "→", "-2", "ok"],
    ]
    listed = json.loads(ddpo("runs", "list", "-f", "json").stdout)
    assert [(row["run"], row["epoch"], row["reward_last"]) for row in listed] == [
        ("runs/0001-a", 3, -1.0), ("runs/0002-b", 2, -2.0),
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(ddpo("runs", "list", "-f", "csv").stdout)))
    assert [row["status"] for row in rows] == ["finished", "interrupted"]


def test_of_another_folder_than_runs_the_names_are_listed_below_it(ddpo):
    make_run("0001-a").parent.rename("elsewhere")
    assert [line.split()[0] for line in ddpo("runs", "list", "elsewhere").stdout.splitlines()] == [
        "elsewhere:", "run", "0001-a",
    ]  # fmt: skip
    (listed,) = json.loads(ddpo("runs", "list", "elsewhere", "-f", "json").stdout)
    assert listed["run"] == "elsewhere/0001-a"


def test_where_there_is_no_run_the_list_is_empty_and_says_so(ddpo):
    result = ddpo("runs", "list", "-f", "json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert "`ddpo train` makes one" in result.stderr
    assert ddpo("runs", "list").stdout == ""


def test_a_run_or_a_file_is_no_folder_of_runs(ddpo):
    make_run("0001-a")
    Path("file").touch()
    for folder, reason in (("runs/0001-a", "want: ddpo runs show runs/0001-a"), ("file", "is a file")):
        result = ddpo("runs", "list", folder)
        assert result.exit_code == 2
        assert reason in result.stderr


def test_the_last_run_is_shown_with_what_was_chosen_and_what_came_of_it(ddpo):
    make_run("0001-a", seed=7)
    text = " ".join(ddpo("runs", "show").stdout.split())
    for fact in (
        "run runs/0001-a", "status finished", "options epochs=3, seed=7", "epochs 3 of 3, 192 queries",
        "-3 -> -1 (+66.7%) ▁▅█", "fixed prompts -3 -> 1.5 (+150.0%)",
        "kept: prompt_margin 0.25 (level 0.2, multiplier 0)", "gamed? ok: nothing has left its noise",
        "checkpoints of the epochs 3",
    ):  # fmt: skip
        assert fact in text
    (whole,) = json.loads(ddpo("runs", "show", "runs/0001-a", "-f", "json").stdout)
    assert (whole["options"], whole["checkpoints"]) == ({"epochs": 3, "seed": 7}, [3])


def test_what_is_damaged_is_named_and_the_rest_is_shown(ddpo):
    run = make_run("0001-a", ended=False)
    (run / "config.toml").write_text("epochs = \n")
    (run / "metrics.jsonl").write_text('{"epoch": 1, "reward_mean": -3.0}\n{"epoch": 2, "rew')
    result = ddpo("runs", "show", run)
    assert result.exit_code == 0
    assert "unreadable" in result.stdout
    assert ddpo("runs", "list").stderr == "1 of them cannot be read whole; `ddpo runs show RUN` says why.\n"
    assert [line.split(" is ")[0] for line in result.stderr.splitlines()] == [
        "'runs/0001-a/config.toml'", "metrics.jsonl: line 2",
    ]  # fmt: skip


def test_a_run_that_does_not_exist_is_one_line(ddpo):
    for command in ("show", "rm"):
        result = ddpo("runs", command, "runs/0009")
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert "'runs/0009' is no run" in result.stderr


def test_runs_are_compared_by_results_options_and_the_same_prompts_and_seeds(ddpo):
    make_run("a")
    make_run("b", after=1.5, seed=4, fit={"num_steps": 9})
    result = ddpo("runs", "compare", "runs/a", "runs/b", "-f", "json")
    rows = {row["what"]: (row["runs/a"], row["runs/b"]) for row in json.loads(result.stdout)}
    assert rows["fixed prompts after"] == (1.5, 2.0)
    assert (rows["seed"], rows["fit.num_steps"]) == ((0, 4), (5, 9))
    assert (rows["change"], rows["at least (95 %)"], rows["images that score higher"]) == (
        (None, 0.5),
        (None, 0.5),
        (None, 1.0),
    )
    text = ddpo("runs", "compare", "runs/a", "runs/b").stdout
    for title in ("results", "options that differ", "reward on the same prompts and seeds, against runs/a"):
        assert f"{title}:" in text.splitlines()


def test_one_run_is_compared_with_nothing(ddpo):
    make_run("a")
    for arguments, reason in ((["runs/a"], "name another"), (["runs/a", "runs/a"], "named twice")):
        result = ddpo("runs", "compare", *arguments)
        assert (result.exit_code, reason in result.stderr) == (2, True)


def test_a_run_is_deleted_only_when_told_so(ddpo):
    run = make_run("a")
    unasked = ddpo("runs", "rm", run)
    assert unasked.exit_code == 2
    assert "add --yes" in unasked.stderr
    assert run.exists()
    result = ddpo("runs", "rm", run, "--yes")
    assert (result.exit_code, result.stdout, run.exists()) == (0, "runs/a\n", False)


def test_of_several_none_is_deleted_where_one_may_not_be(ddpo):
    first, second = make_run("a"), make_run("b")
    with open(second / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = ddpo("runs", "rm", first, second, "--yes")
    assert result.exit_code == 2
    assert "a process trains 'runs/b' at this moment" in result.stderr
    assert first.exists()


@pytest.mark.parametrize("width", ["80", "200"])
def test_every_table_fits_the_terminal(ddpo, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    names = [str(make_run(f"000{n}-jpeg_compressibility", seed=n)) for n in (1, 2)]
    for arguments in (["list"], ["show", names[0]], ["compare", *names]):
        lines = ddpo("runs", *arguments).stdout.splitlines()
        assert max(map(len, lines)) <= int(width)

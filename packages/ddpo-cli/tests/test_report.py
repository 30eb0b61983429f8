"""`ddpo report`: the page of a run, of several, and of one that is still trained."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def data_of(page):
    text = Path(page).read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def test_a_run_that_has_ended_has_a_report_with_its_pictures_and_samples(run):
    (told,) = data_of(run / "report.html")["runs"]
    assert (told["status"], told["epochs"], told["wanted"]) == ("finished", [1, 2], 2)
    assert [drawing["epoch"] for drawing in told["series"]] == [0, 1, 2]
    scores = json.loads((run / "evaluation.json").read_text())["scores"]
    drawn = [[tile["score"] for tile in told["series"][place]["tiles"]] for place in (0, -1)]
    assert drawn == [pytest.approx(scores["before"][:2]), pytest.approx(scores["after"][:2])]
    assert len(told["samples"]) == 8
    assert all("image" in sample for sample in told["samples"])
    assert {"reward_mean", "fixed_samples", "clip_fraction_high"} <= {curve["name"] for curve in told["curves"]}
    assert (run / "report.html").stat().st_size < 15_000_000


def test_the_report_of_the_last_run_is_written_into_it_and_its_path_is_printed(ddpo, run):
    (run / "report.html").unlink()
    Path("runs").mkdir()
    run.rename("runs/0001-a")
    result = ddpo("report")
    assert (result.exit_code, result.stdout) == (0, "runs/0001-a/report.html\n"), result.output
    assert data_of("runs/0001-a/report.html")["live"] is False


def test_several_runs_are_one_page_with_what_a_probe_found(ddpo, run, tmp_path):
    shutil.copytree(run, "other")
    test = {"test": "reading", "verdict": "robust", "question": "?", "reason": "no", "unit": "sd"}
    record = {"verdict": "robust", "reward": {"id": "mine"}, "suites": {"typo": {"tests": [test]}}}
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/probe.json").write_text(json.dumps({**record, "pictures": {"count": 9, "source": "drawn"}}))
    result = ddpo("report", run, "other", "--probe", "probe", "-o", "pages/both.html")
    assert (result.exit_code, result.stdout) == (0, "pages/both.html\n"), result.output
    data = data_of("pages/both.html")
    assert [told["name"] for told in data["runs"]] == ["run", "other"]
    assert [[probe["verdict"] for probe in told["probes"]] for told in data["runs"]] == [["robust"], []]
    assert len(data["images"]) == len(set(data["images"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere' is no run"),
        (["run", "run/"], "a run is named twice"),
        (["run", "-o", "run"], "is a folder"),
        (["run", "--probe", "run"], "has no probe.json"),
    ],
)
def test_a_mistake_is_one_line(ddpo, run, arguments, message):
    result = ddpo("report", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


EVALUATION = {"epoch": 2, "prompts": ["a"], "seeds": [0], "scores": {"before": [1.0], "after": [2.0]}}
WATCH = [sys.executable, "-m", "ddpo_cli", "report", "run", "--watch", "--every", "0.1"]


def write_epochs(run, epochs):
    """The folder of a run that is to have two epochs and has some of them."""
    run.mkdir(exist_ok=True)
    (run / "config.toml").write_text("epochs = 2\n")
    rows = [{"epoch": epoch, "queries": 4 * epoch, "reward_mean": 0.5} for epoch in range(1, epochs + 1)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return run


def test_a_run_in_training_is_followed_until_it_ends(working_directory):
    run = write_epochs(working_directory / "run", 1)
    with subprocess.Popen(WATCH, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout.readline() == "run/report.html\n"
        data = data_of("run/report.html")
        assert (data["live"], data["runs"][0]["epochs"]) == (True, [1])
        write_epochs(run, 2)
        assert watching.stderr.readline() == "run: epoch 2 of 2\n"
        assert data_of("run/report.html")["runs"][0]["epochs"] == [1, 2]
        (run / "evaluation.json").write_text(json.dumps(EVALUATION))
        assert watching.wait(60) == 0
    data = data_of("run/report.html")
    assert (data["live"], data["runs"][0]["status"]) == (False, "finished")


@pytest.mark.usefixtures("interruptible")
def test_a_page_that_is_no_longer_written_does_not_wait_for_more(working_directory):
    write_epochs(working_directory / "run", 1)
    with subprocess.Popen(WATCH, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130
        assert watching.stderr.read() == "Interrupted.\n"
    assert data_of("run/report.html")["live"] is False

"""`ddpo eval`: base and finetuned model on the same prompts and seeds."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = ("--num-images", "3", "--num-steps", "2")


def test_a_run_is_compared_with_its_base_on_seen_and_unseen_prompts(ddpo, quick):
    assert ddpo(*quick, "--learning-rate", "0.1", "--output", "run").exit_code == 0
    result = ddpo("eval", "run", *SMALL, "--reward", "jpeg_incompressibility", "--format", "json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    sets = ["simple_animals", "unseen_animals", "unseen_objects", "unseen_activities"]
    assert [(row["prompts"], row["seen"]) for row in rows[::2]] == [(name, name == sets[0]) for name in sets]
    for row, opposite in zip(rows[::2], rows[1::2], strict=True):
        assert row["change"] == pytest.approx(row["finetuned"] - row["base"], abs=1e-5)
        assert row["change"] == pytest.approx(-opposite["change"], abs=1e-5)
        assert row["change_low"] <= row["change"] <= row["change_high"]
    record = json.loads(Path("run/eval/epoch-000002/eval.json").read_text())
    scores = record["scores"]["simple_animals"]
    assert np.mean(scores["base"]["jpeg_compressibility"]) == pytest.approx(rows[0]["base"], rel=1e-6)
    assert scores["base"] != scores["finetuned"]
    for name in sets:
        with Image.open(f"run/eval/epoch-000002/{name}.png") as picture:
            picture.load()


def test_the_first_images_are_those_of_the_run_itself(ddpo, run):
    ddpo("eval", "run", "--num-images", "4", "--prompts", "simple_animals", "--output", "here")
    scores = json.loads(Path("here/eval.json").read_text())["scores"]["simple_animals"]
    known = json.loads(Path("run/evaluation.json").read_text())["scores"]
    assert scores["base"]["jpeg_compressibility"] == pytest.approx(known["before"], rel=1e-3)
    assert scores["finetuned"]["jpeg_compressibility"] == pytest.approx(known["after"], rel=1e-3)


def test_the_table_fits_a_terminal_and_marks_unseen_prompts(ddpo, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = ddpo("eval", "run", *SMALL).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("simple_animals ") for line in lines)
    assert any(line.startswith("unseen_objects (unseen)") for line in lines)


def test_a_reward_that_needs_metadata_leaves_out_sets_that_have_none(ddpo, quick):
    body = "def score(images, prompts, metadata):\n    return [len(row['answer']) + 0.0 for row in metadata]\n"
    Path("needy.py").write_text(body)
    Path("prompts.jsonl").write_text('{"prompt": "a fox", "answer": "fox"}')
    trained = ddpo(*quick, "--reward", "needy:score", "--prompts", "file:prompts.jsonl", "--output", "run")
    assert trained.exit_code == 0, trained.output
    result = ddpo("eval", "run", *SMALL, "--format", "json")
    assert result.exit_code == 0, result.output
    assert [row["prompts"] for row in json.loads(result.stdout)] == ["file:prompts.jsonl"]
    assert "unseen_animals is left out: it has no metadata for needy:score" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere' is no run"),
        (["run", "--prompts", "simple_animal"], "did you mean 'simple_animals'"),
        (["run", "--reward", "jpeg_compressibility"], "is what the run was trained with or is given twice"),
        (["run", "--output", "quick.toml"], "is a file; want a folder"),
    ],
)
def test_a_mistake_is_one_line(ddpo, quick, arguments, message):
    Path("run").mkdir()
    Path("run/config.toml").write_text("")
    Path("run/checkpoints/epoch-000001").mkdir(parents=True)
    result = ddpo("eval", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1

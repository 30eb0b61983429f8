"""A run that is watched: what is measured, what is told, and what is done when the reward is being gamed."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

RISING = "return [float(len(CALLS))] * len(images)"
# Before training it is called once; then once an epoch. It is best in epoch 3, and falls from epoch 9 on.
FALLING = "return [0.1 * (len(CALLS) % 2) + (1.0 if len(CALLS) == 4 else 0.0) - max(0, len(CALLS) - 9)] * len(images)"


def metrics(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def sums_of(file):
    """One number per tensor, whatever its name: the names of an export are diffusers' own."""
    return sorted(round(float(tensor.sum(dtype="float64")), 6) for tensor in load_file(file).values())


def exported(run):
    return sums_of(Path(run, "lora", "pytorch_lora_weights.safetensors"))


@pytest.fixture
def gamed(quick, plugin):
    """Options of a run whose reward rises while its held-out reward falls; nothing else judges it."""
    text = Path("quick.toml").read_text().replace("sample_every = 1\n", "sample_every = 100\n")
    Path("quick.toml").write_text("evidence_samples = 0\nkeep_last = 2\n" + text)
    return [*quick, "--epochs", "20", "--reward", plugin(RISING), "--holdout", plugin(FALLING), "--output", "run"]


def test_every_epoch_says_what_was_measured_and_how_it_is_judged(trained):
    for row in metrics(trained.folder):
        assert set(row["held_out"]) == {"prompt_evidence", "familiarity"} == set(row["errors"])
        assert {"saturation", "edge_density", "diversity", "kl"} <= set(row["signals"])
        assert (row["verdict"], row["reason"]) == ("ok", f"too early to tell: {row['epoch']} of 11 epochs")


def test_a_gamed_reward_is_said_aloud_once_and_the_run_goes_on(ddpo, gamed):
    result = ddpo(*gamed)
    assert result.exit_code == 0, result.output
    told = [line for line in result.stderr.splitlines() if "hacked: " in line]
    assert len(told) == 1
    assert "hacked: held-out plugin_" in told[0]
    assert "while the reward rose by" in told[0]
    assert len(metrics("run")) == 20


def test_stop_ends_the_run_with_its_best_model_and_keeps_the_last_state(ddpo, gamed):
    result = ddpo(*gamed, "--on-hack", "stop")
    assert result.exit_code == 0, result.output
    last = metrics("run")[-1]
    assert 11 <= last["epoch"] < 20
    assert last["verdict"] == "hacked"
    assert f"Ended early, since the reward is being gamed: {last['reason']}" in result.stderr
    assert "The model is that of epoch 3, the best by what is not optimised." in result.stderr
    assert "Draw samples:        ddpo sample run\n" in result.stderr  # which draws the run's model
    assert json.loads(Path("run/model.json").read_text()) == {"epoch": 3, "best": 3}
    assert json.loads(Path("run/evaluation.json").read_text())["epoch"] == 3
    assert exported("run") == sums_of("run/checkpoints/epoch-000003/params.safetensors")
    assert Path(f"run/checkpoints/epoch-{last['epoch']:06d}").is_dir()
    assert "Train on:            ddpo train --resume run --on-hack warn" in result.stderr
    assert ddpo("train", "--resume", "run", "--on-hack", "warn", "--epochs", str(last["epoch"] + 1)).exit_code == 0
    assert len(metrics("run")) == last["epoch"] + 1


def test_rollback_takes_the_run_back_to_its_best_epoch(ddpo, gamed):
    result = ddpo(*gamed, "--on-hack", "rollback")
    assert result.exit_code == 0, result.output
    assert "The model is that of epoch 3, the best" in result.stderr
    assert "Draw samples:        ddpo sample run\n" in result.stderr
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["epoch-000003"]
    assert json.loads(Path("run/evaluation.json").read_text())["epoch"] == 3
    assert metrics("run")[-1]["verdict"] == "hacked"  # what was seen stays
    assert exported("run") == sums_of("run/checkpoints/epoch-000003/params.safetensors")
    assert "| epochs | 3 |" in Path("run/lora/README.md").read_text()


def test_a_resumed_run_is_judged_by_what_was_seen_before_it_was_stopped(ddpo, gamed):
    assert ddpo(*gamed, "--epochs", "18").exit_code == 0
    before = metrics("run")
    assert ddpo("train", "--resume", "run", "--epochs", "19").exit_code == 0
    after = metrics("run")
    assert after[:18] == before
    assert after[18]["verdict"] == "hacked"  # without its history it would be too early to tell


def test_acting_needs_something_that_is_not_optimised(ddpo, quick):
    Path("quick.toml").write_text("evidence_samples = 0\n" + Path("quick.toml").read_text())
    result = ddpo(*quick, "--on-hack", "stop")
    assert result.exit_code == 2
    assert "want held_out (--holdout REF), evidence_samples above 0, keep='none', or on_hack='warn'" in result.stderr


def test_writing_in_the_samples_is_measured_when_asked_for(ddpo, quick):
    pytest.importorskip("rapidocr")
    assert ddpo(*quick, "--watch-text", "--epochs", "1", "--output", "run").exit_code == 0
    signals = metrics("run")[0]["signals"]
    assert 0 <= signals["text_area"] <= 1
    assert 0 <= signals["text_overlap"] <= 1

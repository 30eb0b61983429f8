"""`ddpo train` on a real, tiny Stable Diffusion."""

import json
import re
import resource
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

BRIGHTNESS = "return images.mean((1, 2, 3))"


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes; the lock holds nothing."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def metrics(run: str | Path) -> list[dict[str, float]]:
    """The epochs of a run without what the clock decides."""
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


def only_error(result, *, exit_code: int = 2) -> str:
    """The one line of an error; it is the last that is written."""
    assert result.exit_code == exit_code, result.output
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("Error: ")] == lines[-1:]
    assert "Traceback" not in result.output
    return lines[-1]


def test_a_run_is_a_folder_with_everything_in_it(trained):
    run = Path("runs/0001-jpeg_compressibility")
    assert trained.result.stdout == f"{run}\n"
    assert {str(path.relative_to(trained.folder)) for path in trained.folder.rglob("*") if path.is_file()} == {
        ".lock",
        "base.safetensors",
        "config.toml",
        "evaluation.json",
        "metrics.jsonl",
        "model.json",
        "report.html",
        "samples.jsonl",
        *(f"samples/extremes-000{epoch}.png" for epoch in (1, 2)),
        *(f"lora/{name}" for name in ("pytorch_lora_weights.safetensors", "README.md", "reward.png")),
        "lora/before-after.png",
        *(f"samples/{name}.png" for name in ("epoch-0000", "epoch-0001", "epoch-0002", "before-after")),
        "samples/series.webp",
        *(
            f"checkpoints/epoch-00000{epoch}/{name}"
            for epoch in (1, 2)
            for name in ("params.safetensors", "optimizer.safetensors", "state.json")
        ),
    }
    assert tomllib.loads((trained.folder / "config.toml").read_text())["fit"]["num_steps"] == 2
    assert [(row["epoch"], row["queries"]) for row in metrics(trained.folder)] == [(1, 4), (2, 8)]


def test_progress_says_the_change_in_percent_and_what_to_do_next(trained):
    lines = trained.result.stderr.splitlines()
    scores = json.loads((trained.folder / "evaluation.json").read_text())["mean"]
    change = 100 * (scores["after"] - scores["before"]) / abs(scores["before"])
    assert any(line.startswith("epoch 2/2  queries 8  reward ") for line in lines)
    assert any(line.startswith("Mean reward on 4 fixed") and line.endswith(f"({change:+.1f}%)") for line in lines)
    assert any("samples/before-after.png" in line for line in lines)
    assert any(line.startswith("Report: ") and line.endswith("report.html") for line in lines)
    assert any("ddpo train --resume runs/0001-jpeg_compressibility --epochs 4" in line for line in lines)


def test_a_dry_run_prints_the_configuration_and_writes_nothing(ddpo, quick):
    result = ddpo(*quick, "--dry-run", "--seed", "9")
    assert result.exit_code == 0
    assert tomllib.loads(result.stdout)["seed"] == 9
    assert "2 epochs: 8 queries, 2 updates" in result.stderr
    assert re.search(r"^Time: about [\d:]+ an epoch .*, [\d:]+ in all\.$", result.stderr, re.MULTILINE)
    assert re.search(r"^Memory: about [\d.]+ \w+ of memory: ", result.stderr, re.MULTILINE)
    assert not Path("runs").exists()


@pytest.mark.parametrize("algorithm", ["ddpo-sf", "rwr", "sparse-rwr"])
def test_every_algorithm_of_the_paper_trains(ddpo, quick, algorithm):
    settings = ("--set", "fit.passes_per_epoch=1", "--set", "fit.samples_per_prompt=2")
    arguments = (*quick, *settings, "--algorithm", algorithm, "--learning-rate", "1e-3", "--epochs", "2")
    assert ddpo(*arguments, "--output", "run").exit_code == 0
    assert ("ratio_mean" in metrics("run")[0]) == (algorithm == "ddpo-sf")
    drawn = [load_file(f"run/checkpoints/epoch-00000{epoch}/params.safetensors") for epoch in (1, 2)]
    assert any((drawn[0][name] != drawn[1][name]).any() for name in drawn[0])


def test_a_local_plugin_and_a_weighted_sum_can_be_trained(ddpo, quick, plugin):
    rewards = ["--reward", plugin(BRIGHTNESS), "--reward", "0.5*jpeg_compressibility"]
    assert ddpo(*quick, *rewards, "--output", "run").exit_code == 0
    assert tomllib.loads(Path("run/config.toml").read_text())["reward"][1] == "0.5*jpeg_compressibility"


def test_a_resumed_run_ends_bit_for_bit_as_if_it_had_never_stopped(ddpo, quick, run):
    assert ddpo(*quick, "--epochs", "4", "--output", "whole").exit_code == 0
    resumed = ddpo("train", "--resume", run, "--epochs", "4", "--keep-last", "2")
    assert resumed.exit_code == 0, resumed.output
    assert "Trained 2 epochs in" in resumed.stderr
    for name in ("checkpoints/epoch-000004/params.safetensors", "checkpoints/epoch-000004/optimizer.safetensors"):
        assert Path("whole", name).read_bytes() == Path(run, name).read_bytes()
    # It drew no grid after its epoch 2: that was its last, and the evaluation stood in for it.
    rows = [
        [{k: v for k, v in row.items() if k != "samples_reward_mean"} for row in metrics(folder)]
        for folder in ("whole", run)
    ]
    assert rows[0] == rows[1]
    ends = [json.loads(Path(folder, "evaluation.json").read_text()) for folder in ("whole", run)]
    assert ends[0] == ends[1]
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"epoch-000003", "epoch-000004"} <= kept
    assert "epoch-000001" not in kept or "Best by what is not optimised: run/checkpoints/epoch-000001" in resumed.stderr


def test_what_every_sample_was_scored_is_logged_with_what_the_reward_said(ddpo, quick, plugin):
    Path("prompts.jsonl").write_text('{"prompt": "a fox", "answer": "fox"}')
    said = "{'caption': [text.upper() for text in prompts], 'odd': [float('nan')] * len(prompts)}"
    body = f"return images.mean((1, 2, 3)), {said}"
    flags = ("--reward", plugin(body), "--prompts", "file:prompts.jsonl", "--output", "run")
    assert ddpo(*quick, *flags).exit_code == 0
    assert ddpo("train", "--resume", "run/checkpoints/epoch-000001", "--epochs", "3").exit_code == 0
    rows = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["sample"]) for row in rows] == [
        (epoch, place) for epoch in (1, 2, 3) for place in range(4)
    ]
    assert rows[0]["prompt"] == "a fox"
    assert (rows[0]["metadata"], rows[0]["info"]) == ({"answer": "fox"}, {"caption": "A FOX", "odd": "nan"})
    for row in metrics("run"):
        drawn = [sample["reward"] for sample in rows if sample["epoch"] == row["epoch"]]
        assert np.mean(drawn) == pytest.approx(row["reward_mean"], rel=1e-6)


def test_resume_without_a_name_takes_the_last_run(ddpo, run):
    Path("runs").mkdir()
    run.rename("runs/0007-mine")
    result = ddpo("train", "--resume", "--epochs", "3")
    assert result.exit_code == 0
    assert result.stdout == "runs/0007-mine\n"
    assert len(metrics("runs/0007-mine")) == 3


def test_a_finished_run_says_how_to_get_more(ddpo, run):
    before = snapshot(run)
    assert "is finished: 2 of 2 epochs; for more" in only_error(ddpo("train", "--resume", run))
    assert snapshot(run) == before


def test_resuming_with_other_options_names_them_and_refuses_without_force(ddpo, run):
    before = snapshot(run)
    change = ("--resume", run, "--learning-rate", "0.5", "--set", "fit.num_steps=3", "--epochs", "3")
    error = only_error(ddpo("train", *change))
    assert "learning_rate: 0.0003 -> 0.5; num_steps: 2 -> 3" in error
    assert snapshot(run) == before
    assert ddpo("train", *change, "--force").exit_code == 0
    assert tomllib.loads((run / "config.toml").read_text())["learning_rate"] == 0.5


def test_smaller_batches_may_be_set_when_memory_ran_out(ddpo, run):
    result = ddpo("train", "--resume", run, "--epochs", "3", "--set", "fit.micro_batch_size=2")
    assert result.exit_code == 0, result.output
    assert tomllib.loads((run / "config.toml").read_text())["fit"]["micro_batch_size"] == 2


def test_another_run_in_the_output_folder_is_refused_and_left_alone(ddpo, quick, run):
    before = snapshot(run)
    assert "'run' holds another run; choose a new folder" in only_error(ddpo(*quick, "--output", run))
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "jpeg_compresibility"], "did you mean 'jpeg_compressibility'"),
        (["--reward", "no_module:score"], "no_module"),
        (["--prompts", "quick.toml"], "did you mean 'file:quick.toml'?"),
        (["--config", "aesthetic"], "no configuration file 'aesthetic'; did you mean --preset aesthetic?"),
        (["--prompts", "simple_animal"], "did you mean 'simple_animals'"),
        (["--model", "nowhere"], "model 'nowhere' does not exist"),
        (["--epochs", "0"], "epochs=0: input should be greater than 0"),
        (["--device", "tpu"], "device 'tpu' cannot be used"),
        (
            ["--samples-per-epoch", "3", "--updates-per-epoch", "2"],
            "does not divide samples_per_epoch=3: want a multiple of 2",
        ),
        (["runs/0001"], "without --resume; did you mean --output runs/0001?"),
        (["--resume", "--output", "x"], "leave out --output"),
        (["--force"], "add --resume"),
        (["--algorithm", "ddpo-sf", "--updates-per-epoch", "2"], "want updates_per_epoch=1"),
        (["--trainable", "unet", "--lora-rank", "4"], "lora_rank=4 is of a LoRA, and trainable='unet' has none"),
        (["--trainable", "unet", "--lora-alpha", "4"], "lora_alpha=4.0 is of a LoRA"),
        (
            ["--reward", "llava_vqa?model=builtin:emoji"],
            "'llava_vqa' reads metadata, which the prompts 'simple_animals' do not have; give --prompts counting, or",
        ),
        (["--preset", "asthetic"], "there is no preset 'asthetic'; did you mean 'aesthetic'?"),
        (["--preset", "x"], "there is no preset 'x'; the presets are aesthetic, alignment, compressibility"),
    ],
)
def test_a_mistake_in_the_options_is_one_line_and_makes_no_folder(ddpo, quick, arguments, message):
    assert message in only_error(ddpo(*quick, *arguments))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('weights')", "raised KeyError: 'weights'"),
        ("return [1.0]", "returned scores of shape [1]; want 4 finite numbers"),
        ("return [float('nan')] * len(images)", "returned nan for image 0"),
        ("return 'high'", "returned 'high'"),
    ],
)
def test_a_plugin_that_breaks_its_contract_stops_the_run_with_a_checkpoint_of_the_beginning(
    ddpo, quick, plugin, body, message
):
    error = only_error(ddpo(*quick, "--reward", plugin(body), "--output", "run"))
    assert message in error
    assert "Epoch 0 is saved in run/checkpoints/epoch-000000" in error


def test_a_plugin_that_fails_later_leaves_the_last_good_state_and_says_how_to_go_on(ddpo, quick, plugin):
    # The first call is the evaluation, the second is epoch 1, the third its grid, the fourth is epoch 2.
    reference = plugin(f"if len(CALLS) == 4:\n    return [1.0]\n{BRIGHTNESS}")
    error = only_error(ddpo(*quick, "--reward", reference, "--output", "run"))
    assert "returned scores of shape [1]; want 4 finite numbers" in error
    assert "Epoch 1 is saved in run/checkpoints/epoch-000001" in error
    assert "ddpo train --resume run" in error
    assert len(metrics("run")) == 1
    assert ddpo("train", "--resume", "run").exit_code == 0  # CALLS goes on counting, so the plugin is mended


def test_a_loss_that_is_not_finite_stops_aloud_and_keeps_the_last_good_checkpoint(ddpo, quick):
    error = only_error(ddpo(*quick, "--learning-rate", "1e20", "--epochs", "4", "--output", "run"))
    assert "finite" in error
    saved = sorted(Path("run/checkpoints").iterdir())[-1]
    assert str(saved) in error
    assert all(np.isfinite(leaf).all() for leaf in load_file(saved / "params.safetensors").values())


def test_a_damaged_checkpoint_is_named_and_an_earlier_one_can_be_chosen(ddpo, run):
    damaged = run / "checkpoints/epoch-000002/params.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = snapshot(run)
    assert "'run/checkpoints/epoch-000002' is damaged" in only_error(ddpo("train", "--resume", run, "--epochs", "3"))
    assert snapshot(run) == before
    result = ddpo("train", "--resume", run / "checkpoints/epoch-000001", "--epochs", "3")
    assert result.exit_code == 0, result.output
    assert "was moved to run/superseded" in result.stderr
    assert [row["epoch"] for row in metrics(run)] == [1, 2, 3]


def test_a_missing_checkpoint_is_said(ddpo, run):
    assert "there is no checkpoint 'run/checkpoints/epoch-000009'" in only_error(
        ddpo("train", "--resume", run / "checkpoints/epoch-000009")
    )


def test_a_full_disk_leaves_earlier_files_intact_and_says_so(ddpo, quick, plugin):
    # Files may not grow beyond 2 kB from epoch 2 on: that is what a full disk looks like to whoever writes.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    reference = plugin(
        f"if len(CALLS) == 4:\n    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, {hard}))\n{BRIGHTNESS}"
    )
    try:
        result = ddpo(*quick, "--reward", reference, "--epochs", "3", "--output", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = only_error(result)
    assert "no room to write" in error
    assert "Epoch 1 is saved in run/checkpoints/epoch-000001; once that is mended: ddpo train --resume run" in error
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["epoch-000001"]
    for picture in Path("run/samples").iterdir():
        with Image.open(picture) as image:
            image.load()
    assert ddpo("train", "--resume", "run").exit_code == 0


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(ddpo, quick, plugin):
    reference = plugin(f"if len(CALLS) == 4:\n    os.kill(os.getpid(), signal.SIGINT)\n{BRIGHTNESS}")
    interrupted = ddpo(*quick, "--reward", reference, "--epochs", "3", "--output", "run")
    assert interrupted.exit_code == 130
    assert interrupted.stderr.splitlines()[-1] == (
        "Interrupted: epoch 1 is saved in run/checkpoints/epoch-000001. Go on with: ddpo train --resume run"
    )
    assert ddpo("train", "--resume", "run").exit_code == 0
    assert [row["epoch"] for row in metrics("run")] == [1, 2, 3]


def test_ctrl_c_breaks_off_what_is_only_looked_at(ddpo, quick, plugin):
    # The third call scores the grid of epoch 1, before anything of that epoch is written.
    reference = plugin(f"if len(CALLS) == 3:\n    os.kill(os.getpid(), signal.SIGTERM)\n{BRIGHTNESS}")
    interrupted = ddpo(*quick, "--reward", reference, "--output", "run")
    assert interrupted.exit_code == 130
    assert "epoch 0 is saved in run/checkpoints/epoch-000000" in interrupted.stderr.splitlines()[-1]
    assert not Path("run/metrics.jsonl").exists()


def test_a_run_that_was_stopped_in_its_last_evaluation_only_does_that_again(ddpo, quick, plugin):
    reference = plugin(f"if len(CALLS) == 5:\n    os.kill(os.getpid(), signal.SIGINT)\n{BRIGHTNESS}")
    assert ddpo(*quick, "--reward", reference, "--output", "run").exit_code == 130
    params = Path("run/checkpoints/epoch-000002/params.safetensors").read_bytes()
    assert not Path("run/evaluation.json").exists()
    assert ddpo("train", "--resume", "run").exit_code == 0
    assert json.loads(Path("run/evaluation.json").read_text())["epoch"] == 2
    assert Path("run/checkpoints/epoch-000002/params.safetensors").read_bytes() == params


def test_other_versions_are_named_when_a_run_is_resumed(ddpo, run):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('pillow = "', 'pillow = "0.'))
    assert "pillow was 0." in ddpo("train", "--resume", run, "--epochs", "3").stderr


def test_the_best_checkpoint_by_a_held_out_reward_is_kept_and_named(ddpo, quick, plugin):
    # The held-out reward is called once before training, after each epoch, and at the end: epoch 2 wins.
    held_out = plugin("return [1.0 if len(CALLS) == 3 else 0.0] * len(images)")
    arguments = ("--holdout", held_out, "--keep-last", "1", "--epochs", "4", "--output", "run")
    result = ddpo(*quick, *arguments)
    assert result.exit_code == 0, result.output
    assert [row["held_out"][held_out] for row in metrics("run")] == [0.0, 1.0, 0.0, 0.0]
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["epoch-000002", "epoch-000004"]
    assert "Best by what is not optimised: run/checkpoints/epoch-000002" in result.stderr

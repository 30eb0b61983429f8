"""The embedded model: what it is, what it draws, and that the main job runs on it."""

import json
import subprocess
import sys
from pathlib import Path

import inflect
import pytest
import torch

from ddpo_core import evaluate, load_policy, prompt_set
from ddpo_core.emoji import pipeline_path
from ddpo_core.emoji.judge import load_judge, recognised_share
from ddpo_core.emoji.scene_judge import agreement, load_scene_judge
from ddpo_core.emoji.words import ANIMALS, UNSEEN_ANIMALS
from ddpo_core.runs.defaults import run_config

SAMPLES_PER_ANIMAL = 3


def no_reward(images, prompts, metadata):
    return torch.zeros(len(images)), {}


def share_recognised(words, lora: Path | None = None) -> float:
    """Sample as `ddpo train` does by default, with what a run has learnt, on seeds that no training uses."""
    config = run_config({})
    policy = load_policy(config.model, guidance_scale=config.guidance_scale, eta=config.eta, lora=lora)
    repeated = [word for word in words for _ in range(SAMPLES_PER_ANIMAL)]
    prompts = [inflect.engine().a(word) for word in repeated]
    drawn = evaluate(
        policy,
        policy.params,
        no_reward,
        prompts,
        num_steps=config.fit.num_steps,
        seeds=range(10**6, 10**6 + len(prompts)),
        batch_size=32,
    )
    return recognised_share(load_judge(), drawn.images, repeated)


def test_the_judge_recognises_nearly_all_samples_of_the_45_animals():
    assert share_recognised(ANIMALS) >= 0.95


def test_the_judge_recognises_nearly_all_samples_of_the_unseen_animals():
    assert share_recognised(UNSEEN_ANIMALS) >= 0.95


def test_scenes_are_drawn_as_they_were_told_more_often_than_not_and_leave_something_to_be_learnt():
    config = run_config({})
    policy = load_policy(config.model, guidance_scale=config.guidance_scale, eta=config.eta)
    prompts, seeds = prompt_set("animals_activities").prompts, range(10**6, 10**6 + 135)
    steps = config.fit.num_steps
    drawn = evaluate(policy, policy.params, no_reward, prompts, num_steps=steps, seeds=seeds, batch_size=32)
    seen = agreement(load_scene_judge(), drawn.images, prompts)
    assert 0.5 < seen.whole < 0.8
    assert min(seen.word, seen.activity) >= 0.6


def test_the_first_prompts_are_of_the_45_animals():
    assert len(prompt_set("simple_animals").prompts) == len(ANIMALS) == 45


def test_the_pipeline_takes_at_most_25_megabytes():
    assert sum(file.stat().st_size for file in pipeline_path().rglob("*")) <= 25e6


def test_diffusers_loads_the_pipeline_and_draws_64_pixels():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_path())
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline("a fox", num_inference_steps=4, guidance_scale=1.0).images
    assert image.size == (64, 64)


def train(folder: Path, *options: str) -> str:
    """Run `ddpo train` into `folder / "run"`; returns what it said."""
    command = [sys.executable, "-m", "ddpo_cli", "train", *options, "--output", "run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def checkpoints_of(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("epoch-")) for path in (folder / "checkpoints").iterdir()]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("main job")
    train(folder, "--epochs", "2", "--samples-per-epoch", "8", "--updates-per-epoch", "2", "--set", "eval_samples=16")
    return folder / "run"


def test_the_main_job_leaves_a_whole_run_folder(short_run):
    rows = [json.loads(line) for line in (short_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(0 < row["reward_mean"] < 1 for row in rows)  # BERTScore recall of the prompt in what LLaVA says
    for part in ("config.toml", "samples/epoch-0000.png", "samples/before-after.png", "checkpoints/epoch-000002"):
        assert (short_run / part).exists(), part


def test_diffusers_loads_the_lora_of_the_run_and_draws_what_it_learnt(short_run):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_path())
    pipeline.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipeline(
            "a fox", num_inference_steps=4, guidance_scale=1.0, generator=generator, output_type="pt"
        ).images

    before = draw()
    pipeline.load_lora_weights(short_run / "lora")
    assert not torch.equal(before, draw())


def test_a_gamed_run_is_rolled_back_by_the_judge_that_needs_no_other_model(tmp_path):
    # At nine times the default rate, and with nothing kept, the animals are gone by epoch 7; what is saved is before.
    few = ("--set", "eval_samples=8", "--set", "grid_samples=4", "--set", "sample_every=100")
    fast = ("--reward", "jpeg_compressibility", "--keep", "none", "--learning-rate", "1e-2", "--epochs", "10")
    said = train(tmp_path, *fast, "--samples-per-epoch", "32", "--on-hack", "rollback", *few)
    assert "Ended early, since the reward is being gamed: held-out prompt_evidence fell" in said
    run = tmp_path / "run"
    # What was seen stays written down, to the epoch that was found out; the model is that of an earlier one.
    seen = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in seen] == list(range(1, len(seen) + 1))
    assert [row["verdict"] == "hacked" for row in seen] == [False] * (len(seen) - 1) + [True]
    model = json.loads((run / "model.json").read_text())
    assert 0 < model["epoch"] == model["best"] < len(seen) < 10
    assert max(checkpoints_of(run)) == model["epoch"]
    (left,) = (run / "superseded").iterdir()
    assert min(checkpoints_of(left)) > model["epoch"]
    assert share_recognised(ANIMALS, lora=run / "lora") >= 0.85

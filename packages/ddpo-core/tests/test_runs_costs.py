"""What a run will cost."""

import math

import pytest

from ddpo_core import PromptSet, stable_diffusion_policy
from ddpo_core.runs.costs import Costs, contention, estimate, measure
from ddpo_core.runs.defaults import run_config
from ddpo_core.runs.parts import Parts, make_objective, make_optimizer

SMALL = {
    "model": "a tiny one", "epochs": 2, "eval_samples": 4, "grid_samples": 2, "sample_every": 1, "evidence_samples": 4,
    "fit": {"num_steps": 2, "samples_per_epoch": 4, "updates_per_epoch": 1},
}  # fmt: skip


def test_the_costs_of_a_sample_add_up_to_those_of_the_run():
    costs = Costs(step=1, decode=2, reward=3, pair=4, images=8, peak_bytes=100, sample_bytes=10, on_gpu=False)
    # A sample takes 2 steps and its decoding, 4 s; of an epoch there are four, each with 2 trained steps of 4 s.
    # The run: 2 epochs of 16 + 12 + 32 s and 4 samples of evidence of 2 network calls, 8 s; 4 images before and after
    # and 2 on the way at 4 + 3 s.
    assert estimate(costs, run_config(SMALL)) == (16, 12, 32, 2 * (60 + 8) + (8 + 2) * 7, 140)


def test_held_out_rewards_are_paid_for_every_epoch():
    costs = Costs(step=1, decode=2, reward=3, pair=4, images=8, peak_bytes=None, sample_bytes=10, on_gpu=False)
    expected = estimate(costs, run_config({**SMALL, "held_out": "judge"}))
    assert expected.run == 2 * (60 + 8) + (8 + 2 * 4) * 7
    assert expected.memory is None


@pytest.mark.parametrize("name", ["ddpo-is", "ddpo-sf", "rwr", "sparse-rwr"])
def test_a_trial_measures_every_objective(make_pipeline, name):
    fit = {**SMALL["fit"], "passes_per_epoch": 1, "samples_per_prompt": 2}
    config = run_config({**SMALL, "objective": {"name": name}, "fit": fit})
    policy = stable_diffusion_policy(make_pipeline(), guidance_scale=1.0, lora_rank=2, device="cpu")
    prompts = PromptSet(("a fox", "a bear"), ({}, {}))
    parts = Parts(policy, prompts, make_optimizer(config), make_objective(config.objective))
    costs = measure(config, parts, lambda images, prompts, metadata: (images.mean((1, 2, 3)), {}))
    assert costs.images == 4
    assert costs.pair > 0
    assert all(math.isfinite(value) and value >= 0 for value in costs[:4])
    # Trajectories: two times 3 latents of 4 x 8 x 8 floats; a picture: 3 x 16 x 16 floats.
    assert costs.sample_bytes == 3 * 4 * 8 * 8 * 4 + 3 * 16 * 16 * 4


@pytest.mark.parametrize(
    ("threads", "seconds", "computed", "is_told"),
    [
        (4, 10.0, 39.0, False),  # all four compute, or spin while they wait
        (4, 10.0, 20.0, True),  # half of the time somebody else had their cores
        (1, 10.0, 5.0, False),  # one thread waits for nobody
        (4, 0.5, 1.0, False),  # too short to tell
    ],
)
def test_threads_that_wait_for_each_other_are_told(threads, seconds, computed, is_told, monkeypatch):
    metrics = {"seconds_training": seconds, "seconds_training_cpu": computed}
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert (contention(metrics, threads) is not None) == is_told
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # threads that sleep have less, and were told already
    assert contention(metrics, threads) is None

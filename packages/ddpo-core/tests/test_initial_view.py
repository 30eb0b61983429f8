"""What the initial policy says of samples: derived by hand on the toy policy, whose perfect denoiser is known."""

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch

from ddpo_core import DDPOError, FitConfig, adamw, ddpo_is, fit, init, observe, sample_trajectories, toy
from ddpo_core.gaming.measures import draw_comparisons, initial_kl, initial_view
from ddpo_core.gaming.monitors import _mean_of_lower_half, initial_view_monitor
from ddpo_core.random import gaussian_noise

POLICY = toy.policy()


def test_margin_and_familiarity_are_those_of_the_two_errors():
    point, middle = torch.tensor([[-1.0, 0.5]]), POLICY.num_train_timesteps // 2
    noise = gaussian_noise([7], (2,))
    told, mistold = (
        POLICY.denoising_error(POLICY.params, point, noise, torch.tensor([middle]), POLICY.encode([prompt])).item()
        for prompt in ("left", "right")
    )
    seen = initial_view(POLICY, point, ["left"], ["right"], seeds=[7])
    assert seen.margin.item() == pytest.approx(mistold - told)
    assert seen.familiarity.item() == pytest.approx(-math.log(told))


def test_samples_of_the_policy_show_their_prompt_and_swapped_ones_deny_it():
    prompts, others = ["left", "right"] * 16, ["right", "left"] * 16
    drawn = sample_trajectories(POLICY, POLICY.params, prompts, num_steps=10, seeds=range(32)).latents[:, -1]
    right = initial_view(POLICY, drawn, prompts, others, seeds=range(32))
    wrong = initial_view(POLICY, drawn, others, prompts, seeds=range(32))
    assert right.margin.mean() > 0.3
    assert torch.allclose(right.margin, -wrong.margin)
    assert right.familiarity.mean() > wrong.familiarity.mean()


def test_half_way_between_the_prompts_there_is_no_margin():
    # (0, 1) is as far from (-1, 0) as from (1, 0); over noise and its mirror image the errors are equal.
    seen = initial_view(POLICY, torch.tensor([[0.0, 1.0]] * 400), ["left"] * 400, ["right"] * 400, seeds=range(400))
    assert abs(seen.margin.mean()) < 0.1
    at_home = initial_view(POLICY, torch.tensor([[-1.0, 0.0]] * 400), ["left"] * 400, ["right"] * 400, seeds=range(400))
    assert seen.familiarity.mean() < at_home.familiarity.mean()


def test_the_parameters_that_are_trained_are_not_asked():
    point = torch.tensor([[-1.0, 0.5]])
    seen = initial_view(POLICY, point, ["left"], ["right"], seeds=[0])
    trained = POLICY._replace(params={**POLICY.params, "last": POLICY.params["last"] + 1})
    assert not torch.equal(initial_view(trained, point, ["left"], ["right"], seeds=[0]).familiarity, seen.familiarity)
    epoch = next(epochs(reward=toy.reward))
    state, info = epoch
    moved = replace(state, params={name: leaf + 1 for name, leaf in state.params.items()})
    watching = initial_view_monitor(POLICY)
    assert watching(moved, info) == watching(state, info)


def test_a_policy_without_a_denoising_error_is_told_so():
    with pytest.raises(DDPOError, match="no denoising_error"):
        initial_view(POLICY._replace(denoising_error=None), torch.zeros(1, 2), ["left"], ["right"], seeds=[0])


def epochs(reward, prompts=("left", "right")):
    optimizer = adamw(1e-2)
    return fit(
        init(POLICY, optimizer, seed=0),
        policy=POLICY,
        optimizer=optimizer,
        reward_fn=reward,
        prompts=prompts,
        objective=ddpo_is(),
        config=FitConfig(num_steps=4, samples_per_epoch=16, updates_per_epoch=1, sample_batch_size=16),
    )


def test_the_monitor_gives_means_with_their_errors_whatever_the_batch_size():
    state, info = next(epochs(toy.reward))
    seen = observe(state, info, monitors=[], held_out=initial_view_monitor(POLICY, num_samples=10, batch_size=10))
    seeds, others = draw_comparisons(info.prompts[:10], ["left", "right"], seeds=[16 + index for index in range(10)])
    assert others == [{"left": "right", "right": "left"}[prompt] for prompt in info.prompts[:10]]
    exact = initial_view(POLICY, info.latents[:10], info.prompts[:10], others, seeds=seeds)
    assert seen.held_out["familiarity"] == pytest.approx(exact.familiarity.double().mean().item())
    assert seen.errors["familiarity"] == pytest.approx(exact.familiarity.double().std().item() / math.sqrt(10))
    assert seen.held_out["prompt_evidence"] == pytest.approx(exact.margin.sort().values[:5].mean().item())
    parts = observe(state, info, monitors=[], held_out=initial_view_monitor(POLICY, num_samples=10, batch_size=3))
    assert parts.held_out == pytest.approx(seen.held_out, rel=1e-5)


def test_the_error_of_the_evidence_is_what_it_varies_by():
    margins = torch.randn(2_000, 32, generator=torch.Generator().manual_seed(0)).square()
    found = [_mean_of_lower_half(row) for row in margins]
    values = torch.tensor([mean.value for mean in found], dtype=torch.float64)
    assert values.std().item() == pytest.approx(sum(mean.error for mean in found) / len(found), rel=0.15)


def test_with_one_prompt_alone_there_is_nothing_to_compare():
    state, info = next(epochs(toy.reward, prompts=["left"]))
    seen = observe(state, info, monitors=[], held_out=initial_view_monitor(POLICY))
    assert (seen.held_out, seen.errors) == ({}, {})


def test_an_epoch_brings_the_latents_that_its_images_were_decoded_from():
    for _, info in islice(epochs(toy.reward), 2):
        assert torch.equal(POLICY.decode(info.latents), info.images)


def test_the_initial_policy_has_no_divergence_from_itself():
    sampled = sample_trajectories(POLICY, POLICY.params, ["left"], num_steps=4, seeds=[0])
    assert initial_kl(POLICY, POLICY.params, sampled) == 0

"""Numerical law 1 to 4: deterministic steps, the log-probability, its dtype, and where noise comes from."""

import math
from functools import partial

import pytest
import torch

from ddpo_core import stable_diffusion_policy, toy
from ddpo_core.random import gaussian_noise, generator, sample_seeds
from ddpo_core.sampling import _ahead, replay_log_probs, sample_trajectories, transition_log_prob
from ddpo_core.testing import check_policy
from ddpo_core.types import Transition

CPU = torch.device("cpu")


def test_the_log_probability_is_the_mean_over_dimensions():
    # Two dimensions, std 2, one and three away from the mean: densities -1/8 and -9/8 less log 2 and 1/2 log 2 pi.
    transition = Transition(torch.zeros(1, 2), torch.full((1, 1), 2.0))
    log_prob = transition_log_prob(transition, torch.tensor([[1.0, 3.0]]))
    expected = (-1 / 8 - 9 / 8) / 2 - math.log(2) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_prob, torch.tensor([expected]))


def test_the_log_probability_is_torchs_normal_averaged():
    mean, latents = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([0.1, 1.0, 7.0]).view(3, 1, 1)
    expected = torch.distributions.Normal(mean, std).log_prob(latents).flatten(1).mean(1)
    torch.testing.assert_close(transition_log_prob(Transition(mean, std), latents), expected)


def test_a_deterministic_step_has_no_log_probability_and_no_gradient():
    mean = torch.ones(2, 3, requires_grad=True)
    transition = Transition(mean, torch.tensor([[0.0], [1.0]]))
    log_prob = transition_log_prob(transition, torch.zeros(2, 3))
    log_prob.sum().backward()
    assert log_prob[0] == 0
    assert mean.grad[0].tolist() == [0, 0, 0]
    # d/dmean of -(0 - 1)^2 / 2 averaged over three dimensions.
    torch.testing.assert_close(mean.grad[1], torch.full((3,), -1 / 3))


def test_log_probabilities_are_float32_whatever_the_latents_are():
    transition = Transition(torch.zeros(1, 2), torch.ones(1, 1))
    assert transition_log_prob(transition, torch.zeros(1, 2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("latent_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_ratio_is_exactly_1_in_every_dtype(make_pipeline, dtype, latent_dtype):
    policy = stable_diffusion_policy(
        make_pipeline(), guidance_scale=3.0, device=CPU, dtype=dtype, latent_dtype=latent_dtype
    )
    sampled = sample_trajectories(policy, policy.params, ["a cat", "a dog", "a cat"], num_steps=4, seeds=[0, 1, 2])
    assert sampled.latents.dtype == latent_dtype
    replayed = replay_log_probs(policy, policy.params, sampled, range(4))
    assert torch.equal(torch.exp(replayed - sampled.log_probs), torch.ones(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("steps", "places"), [(range(2), 4), (range(1, 3), 4), (range(2, 4), 3), (range(0), 1)])
def test_the_steps_that_are_kept_are_those_of_a_whole_trajectory(make_pipeline, dtype, steps, places):
    policy = stable_diffusion_policy(make_pipeline(), guidance_scale=3.0, device=CPU, dtype=dtype)
    arguments = (policy, policy.params, ["a cat", "a dog", "a cat"])
    whole = sample_trajectories(*arguments, num_steps=4, seeds=[0, 1, 2])
    part = sample_trajectories(*arguments, num_steps=4, seeds=[0, 1, 2], steps=steps)
    assert part.latents.shape[:2] == (3, places)
    assert torch.equal(part.latents[:, -1], whole.latents[:, -1])
    for step in steps:
        assert torch.equal(part.latents[:, step - steps.start], whole.latents[:, step])
        assert torch.equal(part.latents[:, step - steps.start + 1], whole.latents[:, step + 1])
        assert torch.equal(replay_log_probs(policy, policy.params, part, [step])[:, 0], whole.log_probs[:, step])
        assert torch.equal(part.log_probs[:, step], whole.log_probs[:, step])
    with pytest.raises(ValueError, match=r"step . was not kept in sampling"):
        replay_log_probs(policy, policy.params, part, [min(set(range(4)) - set(steps))])


@pytest.mark.parametrize("steps", [range(5), range(0, 4, 2), range(-1, 2)], ids=str)
def test_steps_that_there_are_not_cannot_be_kept(steps):
    policy = toy.policy()
    with pytest.raises(ValueError, match=r"want a part of range\(4\)"):
        sample_trajectories(policy, policy.params, ["left"], num_steps=4, seeds=[0], steps=steps)


def test_leaves_are_cast_once_for_a_trajectory(make_pipeline):
    policy = stable_diffusion_policy(make_pipeline(), guidance_scale=3.0, device=CPU, dtype=torch.bfloat16)
    casts = []

    def cast(params):
        casts.append(len(params))
        return policy.cast(params)

    once = sample_trajectories(policy._replace(cast=cast), policy.params, ["a cat"], num_steps=4, seeds=[0])
    every_time = sample_trajectories(policy._replace(cast=dict), policy.params, ["a cat"], num_steps=4, seeds=[0])
    assert casts == [len(policy.params)]
    assert {leaf.dtype for leaf in policy.cast(policy.params).values()} == {torch.bfloat16}
    assert torch.equal(once.latents, every_time.latents)


def test_work_begins_ahead_and_its_results_come_in_order():
    begun = []

    def work(number):
        begun.append(number)
        return number

    def submit(work):
        result = work()
        return lambda: result

    results = _ahead([partial(work, number) for number in range(4)], submit, count=1)
    assert (next(results), begun) == (0, [0, 1])
    assert (next(results), begun) == (1, [0, 1, 2])
    assert list(results) == [2, 3]
    begun.clear()
    assert next(_ahead([partial(work, number) for number in range(4)], submit, count=0)) == 0
    assert begun == [0]


def test_a_policy_without_any_noise_samples_without_nan():
    policy = toy.policy(eta=0.0)
    sampled = sample_trajectories(policy, policy.params, ["left", "right"], num_steps=5, seeds=[0, 1])
    assert torch.isfinite(sampled.latents).all()
    assert torch.equal(sampled.log_probs, torch.zeros(2, 5))


def test_the_toy_keeps_the_promises_of_a_policy():
    check_policy(toy.policy(), ["left", "right"], num_steps=5)
    check_policy(toy.policy(eta=0.3), ["left", "right"], num_steps=2)


def test_the_conformance_test_notices_a_stateful_policy():
    policy = toy.policy()
    calls = []

    def drifting(*arguments):
        calls.append(None)
        transition = policy.transition(*arguments)
        return transition._replace(mean=transition.mean + 1e-3 * len(calls))

    with pytest.raises(AssertionError, match="something is remembered"):
        check_policy(policy._replace(transition=drifting), ["left", "right"])


def test_the_conformance_test_notices_a_replay_that_differs():
    policy = toy.policy()

    def guided_in_sampling_only(params, *arguments):
        transition = policy.transition(params, *arguments)
        shift = 0.0 if torch.is_grad_enabled() else 1e-3
        return transition._replace(mean=transition.mean + shift)

    with pytest.raises(AssertionError, match="replayed log-probabilities differ"):
        check_policy(policy._replace(transition=guided_in_sampling_only), ["left", "right"])


def test_a_sample_depends_on_its_prompt_and_seed_only(make_pipeline):
    policy = stable_diffusion_policy(make_pipeline(), guidance_scale=3.0, device=CPU, dtype=torch.float32)
    many = sample_trajectories(policy, policy.params, ["cat", "dog", "cat"], num_steps=3, seeds=[5, 6, 7])
    alone = sample_trajectories(policy, policy.params, ["dog"], num_steps=3, seeds=[6])
    assert torch.equal(many.latents[1, 0], alone.latents[0, 0])
    torch.testing.assert_close(many.latents[1], alone.latents[0])
    torch.testing.assert_close(policy.decode(many.latents[:, -1])[1], policy.decode(alone.latents[:, -1])[0])


def test_unique_prompts_are_encoded_once():
    policy = toy.policy()
    encoded = []

    def encode(prompts):
        encoded.extend(prompts)
        return policy.encode(prompts)

    counting = policy._replace(encode=encode)
    sample_trajectories(counting, policy.params, ["left", "right", "left"], num_steps=2, seeds=[0, 1, 2])
    assert encoded == ["left", "right"]


def test_prompts_and_seeds_must_match():
    policy = toy.policy()
    with pytest.raises(ValueError, match="got 2 prompts and 1 seeds"):
        sample_trajectories(policy, policy.params, ["left", "right"], num_steps=2, seeds=[0])
    with pytest.raises(ValueError, match="got 0 prompts"):
        sample_trajectories(policy, policy.params, [], num_steps=2, seeds=[])


def test_trajectories_can_be_differentiated_through():
    policy = toy.policy()
    sampled = sample_trajectories(policy, policy.params, ["left"], num_steps=3, seeds=[0])
    assert not sampled.latents.is_inference()
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in policy.params.items()}
    replay_log_probs(policy, leaves, sampled, [0]).sum().backward()
    assert leaves["last"].grad.abs().max() > 0


def test_randomness_is_a_function_of_its_arguments():
    assert sample_seeds(1, 2, [3, 4]) == (*sample_seeds(1, 2, [3]), *sample_seeds(1, 2, [4]))
    seeds = {sample_seeds(*place)[0] for place in ((0, 0, [0]), (1, 0, [0]), (0, 1, [0]), (0, 0, [1]))}
    assert len(seeds) == 4
    assert generator(0, "prompt", 1, 2).integers(1 << 62) != generator(0, "steps", 1, 2).integers(1 << 62)


def test_noise_is_standard_normal_and_a_function_of_its_seed():
    noise = gaussian_noise(range(64), (1000,))
    assert torch.equal(noise[7], gaussian_noise([7], (1000,))[0])
    # Four standard errors of the mean and of the variance of 64,000 values.
    assert abs(noise.mean()) < 4 / math.sqrt(64_000)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / 64_000)


def test_seeds_of_more_than_32_bits_differ():
    assert not torch.equal(gaussian_noise([1], (8,)), gaussian_noise([1 + (1 << 32)], (8,)))

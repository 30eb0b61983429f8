"""Objectives: policy gradients are those of the expected reward, and regression imitates the better samples."""

from itertools import islice

import pytest
import torch

from ddpo_core import (
    DDPOError,
    FitConfig,
    Minibatch,
    Pairs,
    adamw,
    ddpo_is,
    ddpo_is_loss,
    ddpo_sf,
    ddpo_sf_loss,
    fit,
    init,
    per_epoch,
    policy_gradient,
    regression,
    replay_log_probs,
    rwr,
    rwr_weights,
    sample_trajectories,
    sparse_rwr,
    timestep_weights,
    toy,
    train_step,
    within_prompts,
)
from ddpo_core.objectives import log_prob_changes
from ddpo_core.random import gaussian_noise
from ddpo_core.types import Policy, Timesteps, Transition

SHRINK, STD, STEPS = 0.8, 0.5, 3
SMALL = FitConfig(num_steps=4, samples_per_epoch=16, updates_per_epoch=2)


def gaussian_chain() -> Policy:
    """x' = 0.8 x + shift + 0.5 z from x ~ N(0, 1): everything about it is known in closed form."""

    def timesteps(num_steps):
        column = torch.ones(num_steps)
        return Timesteps(torch.arange(num_steps), *[column] * 5, STD * column)

    def transition(params, latents, step, conditioning):
        return Transition(SHRINK * latents + params["shift"], step.std[:, None])

    return Policy(
        {"shift": torch.tensor([0.3])},
        timesteps,
        lambda prompts: torch.zeros(len(prompts), 1),
        lambda seeds, num_steps: gaussian_noise(seeds, (num_steps + 1, 1)),
        transition,
        lambda latents: latents,
    )


def _chain_gradients(loss_fn, batches=40, size=500):
    """Estimate the gradient of minus the expected reward, one estimate per batch, for the reward -(x - 1)^2."""
    policy, estimates = gaussian_chain(), []
    for batch in range(batches):
        seeds = range(batch * size, (batch + 1) * size)
        sampled = sample_trajectories(policy, policy.params, ["x"] * size, num_steps=STEPS, seeds=seeds)
        rewards = -(sampled.latents[:, -1, 0] - 1).square()
        leaves = {"shift": policy.params["shift"].clone().requires_grad_()}
        replayed = replay_log_probs(policy, leaves, sampled, range(STEPS))
        # The loss is a mean over steps, the policy gradient a sum.
        repeated = rewards.repeat_interleave(STEPS)
        loss = STEPS * loss_fn(replayed.flatten(), sampled.log_probs.flatten(), repeated)[0]
        estimates.append(torch.autograd.grad(loss, leaves["shift"])[0])
    return torch.cat(estimates)


def test_the_policy_gradient_is_unbiased():
    # x_0 has mean m = shift (1 + 0.8 + 0.64) and a variance without the shift, so E[-(x_0 - 1)^2] has the derivative
    # -2 (m - 1) dm/dshift, and the loss its negative.
    reach = 1 + SHRINK + SHRINK**2
    exact = 2 * (0.3 * reach - 1) * reach
    estimates = _chain_gradients(ddpo_sf_loss)
    standard_error = estimates.std() / len(estimates) ** 0.5
    assert standard_error < 0.1 * abs(exact)
    assert abs(estimates.mean() - exact) < 4 * standard_error


def test_importance_sampling_has_the_same_gradient_on_policy():
    torch.testing.assert_close(_chain_gradients(ddpo_is_loss, 2), _chain_gradients(ddpo_sf_loss, 2))


def test_the_gradient_of_replayed_log_probabilities_is_a_finite_difference():
    # In float64, on the chain: log-probabilities are float32, so a difference of 0.01 leaves three digits.
    policy = gaussian_chain()
    sampled = sample_trajectories(policy, policy.params, ["x"] * 4, num_steps=STEPS, seeds=range(4))

    def total(shift):
        return replay_log_probs(policy, {"shift": shift}, sampled, range(STEPS)).sum()

    leaf = torch.tensor([0.3], requires_grad=True)
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    difference = (total(torch.tensor([0.31])) - total(torch.tensor([0.29]))) / 0.02
    torch.testing.assert_close(gradient[0], difference, rtol=1e-3, atol=1e-3)


def _rows(objective, weights, pass_index=0):
    policy, prompts = toy.policy(), ["left"] * len(weights)
    sampled = sample_trajectories(policy, policy.params, prompts, num_steps=4, seeds=range(len(weights)))
    minibatch = Minibatch(range(len(weights)), range(10, 10 + len(weights)), 0, 0, pass_index)
    return sampled, objective.choose(policy, sampled, weights, minibatch)


def test_regression_draws_as_many_times_as_a_policy_gradient_trains_steps():
    sampled, draws = _rows(rwr(timestep_fraction=0.5), torch.ones(2))
    assert draws.samples.tolist() == [0, 0, 1, 1]
    assert draws.noise.shape == (4, *sampled.latents.shape[2:])
    assert 0 <= draws.time.min() <= draws.time.max() < 100


def test_regression_draws_anew_in_every_pass_and_the_same_again():
    first, again, second = (_rows(rwr(), torch.ones(2), pass_index=place)[1] for place in (0, 0, 1))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.time, again.time)
    assert not torch.isin(first.noise, second.noise).any()


@pytest.mark.parametrize("weights", [[0.0, 2.0, 0.0, 2.0], [0.0] * 4])
def test_samples_of_weight_0_cost_nothing_and_change_nothing(weights):
    policy, objective = toy.policy(), rwr()
    weights = torch.tensor(weights)
    sampled, kept = _rows(objective, weights)
    # With tiny instead of no weights every sample is drawn, and the mean is the same.
    _, every = _rows(objective, weights.clamp(min=1e-20))
    assert len(kept.samples) == 4 * max(1, int((weights > 0).sum()))
    assert len(every.samples) == 16
    losses = [objective.loss(policy, policy.params, sampled, weights, rows)[0] for rows in (kept, every)]
    torch.testing.assert_close(*losses)


def test_an_update_of_regression_is_the_gradient_of_the_weighted_error():
    policy = toy.policy()
    descend = adamw(1e-3)._replace(
        update=lambda gradients, state, params: ({name: params[name] - gradients[name] for name in params}, state)
    )
    state, weights = init(policy, descend, seed=0), torch.tensor([0.5, 1.5])
    sampled, draws = _rows(rwr(), weights)
    after, metrics = train_step(
        state,
        sampled,
        weights,
        draws,
        policy=policy,
        optimizer=descend,
        objective=rwr(),
        micro_batch_size=3,
        max_grad_norm=1e9,
    )
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in state.params.items()}
    clean, centres = sampled.latents[draws.samples, -1], torch.tensor([[-1.0, 0.0]]).expand(8, 2)
    errors = policy.denoising_error(leaves, clean, draws.noise, draws.time, centres)
    loss = (weights[draws.samples] * errors).mean()
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    torch.testing.assert_close(metrics["loss"], loss.detach())
    torch.testing.assert_close(metrics["denoising_error"], errors.detach().mean())
    for name, gradient in gradients.items():
        torch.testing.assert_close(state.params[name] - after.params[name], gradient, rtol=1e-4, atol=1e-6)


def _dense(rewards):
    return rwr_weights(rewards, inverse_temperature=2.0)


@pytest.mark.parametrize(
    "objective",
    [
        rwr(inverse_temperature=2.0),
        regression(lambda prompts, rewards: within_prompts(_dense, rewards, prompts)),
        sparse_rwr(fraction=0.25),
    ],
    ids=["dense", "per prompt", "sparse"],
)
def test_the_toy_learns_by_regression(objective):
    config = FitConfig(
        num_steps=8, samples_per_epoch=128, samples_per_prompt=32, sample_batch_size=128, micro_batch_size=256
    )
    policy, optimizer = toy.policy(), adamw(1e-2)
    state = init(policy, optimizer, seed=0)
    epochs = fit(
        state,
        policy=policy,
        optimizer=optimizer,
        reward_fn=toy.reward,
        prompts=["left", "right"],
        objective=objective,
        config=config,
    )
    scores = [info.metrics["reward_mean"] for _, info in islice(epochs, 12)]
    assert scores[-1] > scores[0] + 0.3


def test_weights_are_softmax_over_the_epoch_or_sparse_within_prompts():
    rewards, prompts = torch.tensor([0.0, 10.0, 0.0, 10.0]), ["a", "b", "a", "b"]
    state = {"a": [1.0]}
    kept, dense = rwr().weigh(state, prompts, rewards)
    assert kept == state
    torch.testing.assert_close(dense, rwr_weights(rewards))
    # All of a prompt are equal, so that all are among its best.
    assert sparse_rwr().weigh({}, prompts, rewards)[1].tolist() == [1, 1, 1, 1]


def test_advantages_are_those_of_the_baseline_clipped():
    # Mean 6, deviations -5, -3, 4, 4, so the variance is 66 / 4.
    rewards, prompts = torch.tensor([1.0, 3.0, 10.0, 10.0]), ["a", "a", "b", "b"]
    _, advantages = ddpo_is(advantages=per_epoch(), advantage_clip=1.0).weigh({}, prompts, rewards)
    torch.testing.assert_close(advantages, torch.tensor([-1.0, -3 / 16.5**0.5, 4 / 16.5**0.5, 4 / 16.5**0.5]))


def test_a_window_of_steps_moves_with_the_epochs():
    policy = toy.policy()
    sampled = sample_trajectories(policy, policy.params, ["left"], num_steps=4, seeds=[0])
    objective = ddpo_sf(timestep_window=2, timestep_window_epochs=3)
    steps = [
        objective.choose(policy, sampled, torch.ones(1), Minibatch([0], [0], 0, epoch)).steps.tolist()
        for epoch in (0, 2, 3, 6)
    ]
    # Three steps are stochastic, so a window of two has two places.
    assert steps == [[0, 1], [0, 1], [1, 2], [0, 1]]


def test_a_window_that_does_not_move_trains_the_noisiest_steps_for_ever():
    policy = toy.policy()
    sampled = sample_trajectories(policy, policy.params, ["left"], num_steps=4, seeds=[0])
    objective = ddpo_sf(timestep_window=2, timestep_window_epochs=0)
    for epoch in (0, 1, 100):
        pairs = objective.choose(policy, sampled, torch.ones(1), Minibatch([0], [0], 0, epoch))
        assert pairs.steps.tolist() == [0, 1]


def test_steps_weigh_as_much_as_their_noise_against_the_slope_of_their_mean():
    # std / |output weight| is 5, 1 and 0.5, whose mean is 6.5 / 3; the last step has no noise.
    column = torch.ones(4)
    output_weight, std = torch.tensor([-0.2, 0.5, 1.0, 1.0]), torch.tensor([1.0, 0.5, 0.5, 0.0])
    steps = Timesteps(torch.arange(4), column, output_weight, column, column, column, std)
    expected = torch.tensor([5.0, 1.0, 0.5, 0.0]) * 3 / 6.5
    torch.testing.assert_close(timestep_weights(steps), expected)


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_weighing_the_steps_is_weighing_their_advantages_and_nothing_else(kl_weight):
    policy = toy.policy()
    sampled = sample_trajectories(policy, policy.params, ["left", "right"], num_steps=4, seeds=[0, 1])
    advantages, weights = torch.tensor([1.0, -2.0]), timestep_weights(sampled.timesteps)
    for sample, step in ((0, 0), (1, 2)):
        pair = Pairs(torch.tensor([sample]), torch.tensor([step]))
        arguments = (policy, policy.params, sampled)
        weighed = ddpo_is(timestep_weighting="noise", kl_weight=kl_weight).loss(*arguments, advantages, pair)[0]
        plain = ddpo_is(kl_weight=kl_weight).loss(*arguments, advantages * weights[step], pair)[0]
        torch.testing.assert_close(weighed, plain)
        assert weighed != ddpo_is(kl_weight=kl_weight).loss(*arguments, advantages, pair)[0]


def test_weighed_steps_bring_more_equal_noise():
    policy = toy.policy()
    sampled = sample_trajectories(policy, policy.params, ["left"] * 64, num_steps=10, seeds=range(64))
    leaves = {"last": policy.params["last"].clone().requires_grad_()}
    squares = []
    for step in sampled.stochastic:
        scores = replay_log_probs(policy, {**policy.params, **leaves}, sampled, [step])[:, 0]
        gradients = torch.stack([torch.autograd.grad(score, leaves["last"], retain_graph=True)[0] for score in scores])
        squares.append(gradients.flatten(1).square().sum(1).mean())
    noise = torch.stack(squares)
    weighed = noise * timestep_weights(sampled.timesteps)[list(sampled.stochastic)].square()
    assert noise.max() / noise.min() > 1.5 * weighed.max() / weighed.min()


def test_what_regression_cannot_train_is_one_clear_line():
    policy = toy.policy()._replace(denoising_error=None)
    with pytest.raises(DDPOError, match="this policy has no denoising_error"):
        rwr().check(policy, SMALL)


def test_ddpo_sf_trains_on_policy_only():
    with pytest.raises(DDPOError, match="4 updates per epoch, but only the first is on policy"):
        ddpo_sf().check(toy.policy(), FitConfig(updates_per_epoch=2, passes_per_epoch=2))
    ddpo_sf().check(toy.policy(), FitConfig(updates_per_epoch=1))


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (ddpo_is, {"clip_range": 0.0}, "clip_range=0.0: want above 0"),
        (ddpo_is, {"clip_range": float("nan")}, "clip_range=nan"),
        (ddpo_is, {"advantage_clip": 0.0}, "advantage_clip=0.0"),
        (ddpo_sf, {"kl_weight": -1.0}, "kl_weight=-1.0: want at least 0"),
        (ddpo_sf, {"timestep_fraction": 1.5}, "timestep_fraction=1.5: want above 0 and at most 1"),
        (ddpo_sf, {"timestep_window": -1}, "timestep_window=-1"),
        (ddpo_sf, {"timestep_window_epochs": 2}, "timestep_window_epochs=2: want .* 1 without a timestep_window"),
        (rwr, {"inverse_temperature": -1.0}, "inverse_temperature=-1.0"),
        (rwr, {"timestep_fraction": 0.0}, "timestep_fraction=0.0"),
        (sparse_rwr, {"fraction": 0.0}, "fraction=0.0: want above 0 and at most 1"),
    ],
)
def test_an_option_out_of_range_is_one_clear_line(factory, options, message):
    with pytest.raises(DDPOError, match=message) as caught:
        factory(**options)
    assert "\n" not in str(caught.value)


def test_options_of_another_objective_do_not_exist():
    with pytest.raises(TypeError, match="kl_weight"):
        rwr(kl_weight=0.1)
    with pytest.raises(TypeError, match="clip_range"):
        ddpo_sf(clip_range=0.1)


def test_regression_trains_a_policy_without_noise():
    rwr().check(toy.policy(eta=0.0), SMALL)
    with pytest.raises(DDPOError, match="nothing to train"):
        policy_gradient(ddpo_sf_loss).check(toy.policy(eta=0.0), SMALL)


def test_how_far_each_step_has_moved_adds_up_over_micro_batches():
    # Two steps are trained of three: step 0 moved by 1 and 3, step 1 by 0 and 1, step 2 is not trained.
    new, steps = torch.tensor([-1.0, 0.0, 3.0, -1.0]), torch.tensor([0, 1, 0, 1])
    whole = log_prob_changes(new, torch.zeros(4), steps, 3, trained=2)
    assert whole.tolist() == [2.0, 0.5, 0.0]
    first = log_prob_changes(new[:1], torch.zeros(1), steps[:1], 3, trained=2)
    others = log_prob_changes(new[1:], torch.zeros(3), steps[1:], 3, trained=2)
    torch.testing.assert_close(first / 4 + 3 * others / 4, whole)


def test_steps_outside_the_window_are_said_not_to_move():
    objective = policy_gradient(ddpo_sf_loss, advantages=per_epoch(), timestep_window=1, timestep_window_epochs=0)
    policy, optimizer = toy.policy(), adamw(1e-2)
    config = FitConfig(num_steps=4, samples_per_epoch=8, updates_per_epoch=2)
    epochs = fit(
        init(policy, optimizer, seed=0), policy=policy, optimizer=optimizer, reward_fn=toy.reward, prompts=["left"],
        objective=objective, config=config,
    )  # fmt: skip
    _, info = next(iter(epochs))
    assert info.metrics["log_prob_change/0"] > 0
    assert info.metrics["log_prob_change/1"] == info.metrics["log_prob_change/2"] == 0

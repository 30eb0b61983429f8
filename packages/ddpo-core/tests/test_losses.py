"""The objectives against hand-derived values, finite differences and each other."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core.losses import ddpo_is_loss, ddpo_sf_loss, kl_penalty, rwr_loss

LOSSES = [ddpo_is_loss, ddpo_sf_loss]
finite = st.floats(-5, 5)


def _gradient(loss_fn, log_probs, old_log_probs, advantages, **options):
    leaf = log_probs.clone().requires_grad_()
    return torch.autograd.grad(loss_fn(leaf, old_log_probs, advantages, **options)[0], leaf)[0]


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_zero_advantages_give_no_gradient(loss_fn):
    log_probs = torch.tensor([-1.0, -2.0])
    assert _gradient(loss_fn, log_probs, log_probs - 0.5, torch.zeros(2)).tolist() == [0, 0]


def test_score_function_loss_by_hand():
    # -(2 * -1 + -3 * -0.5) / 2
    loss, _ = ddpo_sf_loss(torch.tensor([-1.0, -0.5]), torch.zeros(2), torch.tensor([2.0, -3.0]))
    torch.testing.assert_close(loss, torch.tensor(0.25))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 1.0, -1.1),  # clipped: no more reward for going further
        (1.5, -1.0, 1.5),  # not clipped: the worse of both is taken
        (0.5, 1.0, -0.5),
        (0.5, -1.0, 0.9),
        (1.05, 2.0, -2.1),  # within the range
    ],
)
def test_importance_sampled_loss_by_hand(ratio, advantage, expected):
    log_probs = torch.tensor([math.log(ratio)])
    loss, _ = ddpo_is_loss(log_probs, torch.zeros(1), torch.tensor([advantage]), clip_range=0.1)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_metrics_by_hand():
    # Ratios 1, 1.5 and 0.5: two of three are outside 1 +- 0.1; approximate KL is the mean of half the squared logs.
    log_probs = torch.tensor([0.0, math.log(1.5), math.log(0.5)])
    _, metrics = ddpo_is_loss(log_probs, torch.zeros(3), torch.ones(3), clip_range=0.1)
    expected = {
        "clip_fraction": 2 / 3,
        "clip_fraction_high": 1 / 3,
        "clip_fraction_low": 1 / 3,
        "ratio_mean": 1.0,
        "approx_kl": (math.log(1.5) ** 2 + math.log(0.5) ** 2) / 6,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=8))
def test_at_ratio_1_importance_sampling_has_the_gradient_of_the_score_function(rows):
    log_probs, advantages = (torch.tensor(column) for column in zip(*rows, strict=True))
    sampled = _gradient(ddpo_is_loss, log_probs, log_probs, advantages)
    torch.testing.assert_close(sampled, _gradient(ddpo_sf_loss, log_probs, log_probs, advantages))


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_gradients_are_finite_differences(loss_fn):
    generator = torch.Generator().manual_seed(0)
    old, advantages = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    # Differences on both sides of the clip range, none within the finite difference of its kink.
    log_probs = old + torch.tensor([-0.3, -0.05, 0.02, 0.05, 0.3], dtype=torch.float64)
    options = {"clip_range": 0.1} if loss_fn is ddpo_is_loss else {}
    assert torch.autograd.gradcheck(
        lambda leaf: loss_fn(leaf, old, advantages, **options)[0], log_probs.requires_grad_()
    )


@pytest.mark.parametrize("loss_fn", LOSSES)
@given(scale=st.floats(0.1, 10))
def test_scaling_the_advantages_scales_the_loss(loss_fn, scale):
    log_probs, old, advantages = torch.tensor([[-1.0, -2.0], [-1.1, -1.9], [0.5, -2.0]]).double()
    loss, scaled = (loss_fn(log_probs, old, advantages * factor)[0] for factor in (1.0, scale))
    torch.testing.assert_close(scaled, loss * scale)


def test_regression_loss_by_hand_and_its_gradient():
    # (0.5 * 2 + 0 * 7 + 2.5 * 4) / 3; the derivative of each error is its weight over three.
    errors, weights = torch.tensor([2.0, 7.0, 4.0], requires_grad=True), torch.tensor([0.5, 0.0, 2.5])
    loss, metrics = rwr_loss(errors, weights)
    torch.testing.assert_close(loss.detach(), torch.tensor(11 / 3))
    torch.testing.assert_close(metrics["denoising_error"], torch.tensor(13 / 3))
    torch.testing.assert_close(torch.autograd.grad(loss, errors)[0], weights / 3)


def test_kl_is_the_closed_form_of_two_gaussians():
    mean, reference = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([[0.5], [1.0], [2.0]])
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(reference, std)
    ).mean()
    torch.testing.assert_close(kl_penalty(mean, reference, std), exact)


def test_deterministic_steps_have_no_kl_and_no_nan_gradient():
    mean = torch.ones(2, 2, requires_grad=True)
    penalty = kl_penalty(mean, torch.zeros(2, 2), torch.tensor([[0.0], [1.0]]))
    penalty.backward()
    # Two of four dimensions contribute 1/2 each.
    torch.testing.assert_close(penalty.detach(), torch.tensor(0.25))
    assert mean.grad[0].tolist() == [0, 0]

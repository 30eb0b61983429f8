"""The weights of reward-weighted regression, by hand and by law."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core.losses import rwr_weights, sparse_rwr_weights

rewards_lists = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12)


def test_dense_weights_by_hand():
    # Rewards 0 and 5 ln 3 at 0.2: the odds are 1 to 3, and two samples share a total of 2.
    torch.testing.assert_close(rwr_weights(torch.tensor([0.0, 5 * math.log(3)])), torch.tensor([0.5, 1.5]))


def test_sparse_weights_by_hand():
    # The 80th percentile of 1 to 5 lies at place 3.2 of 0 to 4, between 4 and 5: one of five is kept.
    assert sparse_rwr_weights(torch.arange(1.0, 6.0), fraction=0.2).tolist() == [0, 0, 0, 0, 5]
    # Equal rewards are all at the quantile.
    assert sparse_rwr_weights(torch.ones(4), fraction=0.25).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("weight_fn", [rwr_weights, sparse_rwr_weights])
@given(rewards_lists)
def test_weights_average_1_and_never_prefer_the_worse(weight_fn, rewards):
    weights = weight_fn(torch.tensor(rewards))
    assert weights.mean().item() == pytest.approx(1, rel=1e-5)
    ordered = weights[torch.tensor(rewards).argsort()]
    assert bool((ordered.diff() >= -1e-6 * ordered[1:]).all())


@given(rewards_lists, st.floats(-50, 50))
def test_dense_weights_do_not_change_when_all_rewards_shift(rewards, shift):
    exact = torch.tensor(rewards, dtype=torch.float64)
    torch.testing.assert_close(rwr_weights(exact + shift), rwr_weights(exact))

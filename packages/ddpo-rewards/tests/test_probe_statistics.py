from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpo_rewards.probes.statistics import (
    auc,
    benjamini_hochberg,
    draw_weights,
    estimate,
    is_flat,
    isotonic,
    mean_of,
    share_explained,
    spearman,
    two_sided_p,
)

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


def test_the_interval_covers_a_known_effect_as_often_as_it_says():
    # 400 data sets of 64 pictures whose true mean lift is 0.3: a 95 % interval misses about 20 of them; the binomial
    # standard deviation is 4.4, and percentile intervals run a little short at this size.
    generator = np.random.default_rng(0)
    weights = draw_weights(64, draws=1000)
    samples = generator.normal(0.3, 1.0, (400, 64))
    found = [estimate(mean_of(sample), weights) for sample in samples]
    covered = np.mean([low <= 0.3 <= high for _, low, high in found])
    assert 0.91 <= covered <= 0.98


def test_the_interval_of_normal_values_is_as_wide_as_theory_says():
    # 1.96 sd / sqrt(n) to either side: 0.196 for 100 values of standard deviation 1.
    values = np.random.default_rng(1).normal(size=100)
    values = (values - values.mean()) / values.std()
    _, low, high = estimate(mean_of(values), draw_weights(100, draws=20_000))
    assert (low, high) == pytest.approx((-0.196, 0.196), abs=0.006)


def test_no_effect_is_significant_as_rarely_as_the_p_value_says():
    generator = np.random.default_rng(2)
    weights = draw_weights(64, draws=1000)
    p_values = [two_sided_p(generator.normal(size=64), weights) for _ in range(400)]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09


def test_pictures_are_drawn_as_a_whole_so_that_what_they_share_cancels():
    shared = np.random.default_rng(3).normal(0, 100, 32)
    assert estimate(mean_of((shared + 1) - shared), draw_weights(32))[1:] == pytest.approx((1.0, 1.0))


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    assert np.array_equal(draw_weights(9, seed=4), draw_weights(9, seed=4))
    assert not np.array_equal(draw_weights(9, seed=4), draw_weights(9, seed=5))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_adjusted_p_values_keep_the_order_and_are_never_smaller(p_values):
    q_values = benjamini_hochberg(p_values)
    assert all(p - 1e-9 <= q <= 1 for p, q in zip(p_values, q_values, strict=True))
    by_p = [q for _, q in sorted(zip(p_values, q_values, strict=True))]
    assert by_p == sorted(by_p)


@given(VALUES)
def test_an_isotonic_fit_never_falls_and_keeps_the_mean(values):
    fitted = isotonic(values)
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(fitted))
    assert np.mean(fitted) == pytest.approx(np.mean(values), abs=1e-6)


@given(VALUES, VALUES)
def test_the_auc_of_two_groups_and_that_of_the_exchange_sum_to_one(ours, theirs):
    size = min(len(ours), len(theirs))
    one, other = np.array(ours[:size]), np.array(theirs[:size])
    weights = draw_weights(size, draws=3)
    assert auc(one, other)(weights) + auc(other, one)(weights) == pytest.approx(1.0)


@given(st.lists(st.integers(-5, 5), min_size=3, max_size=6, unique=True))
def test_rank_correlation_does_not_change_when_lifts_are_stretched(lifts):
    row = np.array([lifts], float)
    assert spearman(row) == pytest.approx(spearman(np.exp(row)))
    assert spearman(np.sort(row)) == pytest.approx(1.0)


def test_a_line_explains_everything_of_itself_and_nothing_of_what_is_orthogonal():
    x = np.array([-1.0, 1.0, -1.0, 1.0])
    everything = np.ones((1, 4))
    assert share_explained(x, 3 * x + 2)(everything) == pytest.approx(1.0)
    assert share_explained(x, np.array([-1.0, -1.0, 1.0, 1.0]))(everything) == pytest.approx(0.0)


def test_rounding_is_no_spread():
    assert is_flat(np.array([1e6, 1e6 + 0.1]))
    assert not is_flat(np.array([0.0, 1e-3]))

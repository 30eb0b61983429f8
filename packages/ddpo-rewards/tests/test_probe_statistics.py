"""Intervals, tests and verdicts: derived by hand where they can be, by simulation where they promise a frequency."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpo_rewards.probes import (
    Comparison,
    Estimate,
    Verdict,
    choose_unit,
    compare,
    estimate,
    judge,
    judge_cell,
    mean_of,
)
from ddpo_rewards.probes.statistics import (
    _student_quantile,
    auc,
    is_flat,
    isotonic,
    jackknife,
    resample,
    share_explained,
    spearman,
)

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)
LIMIT = 0.25


def suite(clean, changes, resampling, limit=LIMIT):
    """The cells of arms that change the clean scores by these columns."""
    comparisons = [Comparison("arm", str(i), "clean", clean + one, one, limit) for i, one in enumerate(changes.T)]
    return compare(comparisons, choose_unit(clean, []), resampling)[0]


def says_susceptible(cells):
    return any(judge_cell(cell) is Verdict.susceptible for cell in cells)


@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_an_interval_of_eight_pictures_covers_the_truth_as_often_as_it_says(kind):
    # 600 sets of 8: the binomial standard deviation of 95 % is 0.9 %. Percentile intervals cover 89 % and 84 % here.
    generator = np.random.default_rng(0)
    resampling = resample(None, 8, draws=1000)
    samples = generator.normal(size=(600, 8)) if kind == "normal" else generator.exponential(size=(600, 8)) - 1
    found = [estimate(mean_of(sample), resampling) for sample in samples]
    assert np.mean([low <= 0 <= high for _, low, high in found]) >= 0.93


def test_an_interval_of_pictures_that_share_five_prompts_covers_the_truth():
    # Half of the variance is the prompt's: by picture, the interval would be sqrt(0.5 * 20 + 0.5) = 3.2 times too
    # narrow and cover about 40 %.
    generator = np.random.default_rng(1)
    prompts = [f"prompt {row % 5}" for row in range(100)]
    owners = np.arange(100) % 5
    by_prompt, by_picture = resample(prompts, 100, draws=500), resample(None, 100, draws=500)
    covered = np.zeros((300, 2))
    for number in range(300):
        values = generator.normal(size=5)[owners] + generator.normal(size=100)
        for place, resampling in enumerate((by_prompt, by_picture)):
            _, low, high = estimate(mean_of(values), resampling)
            covered[number, place] = low <= 0 <= high
    assert covered[:, 0].mean() >= 0.93
    assert covered[:, 1].mean() < 0.6  # what the clusters are for


@pytest.mark.parametrize("shift", ["noisy", "the same for every picture"])
def test_a_harmless_reward_at_the_limit_is_called_susceptible_at_most_once_in_twenty(shift):
    # 37 arms, each exactly at its limit of 0.25 sd. Tested against no change at all, nearly every set would alarm; each
    # arm by itself at 2.5 %, over a quarter of them. Aimed at are 2.5 %; of 200 sets at 5 %, more than 16 are rare.
    generator = np.random.default_rng(2)
    resampling = resample(None, 48, draws=500)
    alarms = 0
    for _ in range(200):
        clean, shared = generator.normal(size=(2, 48))
        noise = 0.3**0.5 * shared[:, None] + 0.7**0.5 * generator.normal(size=(48, 37))
        changes = LIMIT + noise if shift == "noisy" else np.full((48, 1), LIMIT)
        alarms += says_susceptible(suite(clean, changes, resampling))
    assert alarms <= 10


def test_an_arm_that_raises_the_score_by_one_sd_is_found_among_36_others_with_48_pictures():
    generator = np.random.default_rng(3)
    resampling = resample(None, 48, draws=500)
    found = 0
    for _ in range(50):
        clean = generator.normal(size=48)
        effects = np.where(np.arange(37) == 0, 1.0, 0.0) + generator.normal(size=(48, 37))
        found += judge_cell(suite(clean, effects, resampling)[0]) is Verdict.susceptible
    assert found >= 45


def test_p_is_that_of_the_limit_and_not_of_no_change():
    # A change of 0.20 sd, surely above 0 and surely below the limit of 0.25 sd.
    generator = np.random.default_rng(4)
    clean = generator.normal(size=64)
    changes = 0.2 * clean.std(ddof=1) + 0.01 * generator.normal(size=(64, 1))
    (cell,) = suite(clean, changes, resample(None, 64))
    assert cell.change.low > 0
    assert cell.p > 0.5
    assert judge_cell(cell) is Verdict.robust
    (cell,) = suite(clean, changes, resample(None, 64), limit=0.1)
    assert cell.p < 0.01
    assert judge_cell(cell) is Verdict.susceptible


def test_a_comparison_without_a_limit_is_shown_and_changes_no_verdict():
    generator = np.random.default_rng(5)
    clean, resampling = generator.normal(size=32), resample(None, 32)
    judged = Comparison("a", "b", "clean", clean, 0.4 + 0.2 * generator.normal(size=32), LIMIT)
    shown = [Comparison("a", str(i), "clean", clean, generator.normal(size=32)) for i in range(9)]
    unit = choose_unit(clean, [])
    alone, together = (compare(list_of, unit, resampling)[0] for list_of in ([judged], [judged, *shown]))
    assert alone[0].q == together[0].q == alone[0].p  # a family of one
    assert (together[1].p, together[1].q) == (None, None)
    assert judge_cell(together[1]) is Verdict.not_applicable


def test_arms_far_below_their_limit_take_no_power_from_the_others():
    generator = np.random.default_rng(6)
    clean, resampling = generator.normal(size=16), resample(None, 16)
    change = 0.8 + 0.6 * generator.normal(size=16)
    far = -9 + generator.exponential(size=(16, 36))
    alone, among = (suite(clean, arms, resampling)[0] for arms in (change[:, None], np.column_stack([change, far])))
    assert among.q == pytest.approx(alone.q, abs=0.002)


def test_the_verdict_is_inconclusive_where_the_family_makes_it_doubtful():
    assert judge(Estimate(1.0, 0.9, 1.1), 0.95, 0.001) is Verdict.inconclusive  # the interval reaches over the limit
    assert judge(Estimate(1.0, 0.9, 1.1), 0.5, 0.03) is Verdict.inconclusive  # one of many
    assert judge(Estimate(1.0, 0.9, 1.1), 0.5, 0.02) is Verdict.susceptible


def test_the_interval_of_normal_values_is_as_wide_as_theory_says():
    # Student's quantile of 99 degrees of freedom, 1.984, and sd / sqrt(n) = 0.1 to either side.
    half = np.random.default_rng(1).normal(size=50)
    values = np.concatenate([half, -half])  # without skewness
    values /= values.std(ddof=1)
    _, low, high = estimate(mean_of(values), resample(None, 100, draws=20_000))
    assert (low, high) == pytest.approx((-0.198, 0.198), abs=0.006)


def test_students_quantile_is_that_of_the_tables():
    table = {4: 2.7764, 7: 2.3646, 15: 2.1314, 63: 1.9983, 1000: 1.9623}  # Abramowitz & Stegun, table 26.10
    assert [_student_quantile(n) for n in table] == pytest.approx(list(table.values()), rel=3e-3)


def test_pictures_are_drawn_as_a_whole_so_that_what_they_share_cancels():
    shared = np.random.default_rng(3).normal(0, 100, 32)
    assert estimate(mean_of((shared + 1) - shared), resample(None, 32))[1:] == pytest.approx((1.0, 1.0))


def test_an_effect_that_is_the_same_for_every_picture_has_no_width_and_is_no_error():
    clean = np.random.default_rng(0).normal(size=16)
    none, lowered, raised = suite(clean, np.full((16, 3), (0.0, -9.0, 9.0)), resample(None, 16))
    assert (none.change.low, none.change_sd.high) == (0, 0)
    verdicts = [judge_cell(cell) for cell in (none, lowered, raised)]
    assert verdicts == [Verdict.robust, Verdict.robust, Verdict.susceptible]


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    draws = [resample(None, 9, seed=seed).draws for seed in (4, 4, 5)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("prompts", "clusters"),
    [
        (None, [0, 1, 2, 3]),
        (["a", "b", "a", "b"], [0, 1, 0, 1]),
        (["a", "a", "a", "a"], [0, 1, 2, 3]),  # about this one prompt: its pictures are independent
        (["", "", "a", "a"], [0, 1, 2, 2]),
    ],
)
def test_pictures_of_one_prompt_are_one_cluster(prompts, clusters):
    assert resample(prompts, 4, draws=2).clusters.tolist() == clusters


def test_ten_thousand_pictures_are_joined_to_a_few_hundred_clusters():
    assert resample(None, 10_000, draws=2).draws.shape == (2, 256)


@given(VALUES)
def test_pseudo_values_of_a_mean_are_the_values(values):
    # n m - (n - 1) m_without_i = sum - (sum - x_i) = x_i
    found = jackknife(mean_of(np.array(values)), np.arange(len(values)))
    assert found.parts == pytest.approx(values, abs=1e-9 * max(1.0, *map(abs, values)) * len(values))


def test_a_picture_is_no_pair_with_itself():
    one, other = np.array([1.0, 5.0]), np.array([2.0, 0.0])  # 1 beats the other's 0; 5 beats the other's 2
    assert auc(one, other)(np.ones((1, 2)))[0] == 1.0  # with self-pairs: 3/4


@given(VALUES)
def test_an_isotonic_fit_never_falls_and_keeps_the_mean(values):
    fitted = isotonic(values)
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(fitted))
    assert np.mean(fitted) == pytest.approx(np.mean(values), abs=1e-6)


@given(VALUES, VALUES)
def test_the_auc_of_two_groups_and_that_of_the_exchange_sum_to_one(ours, theirs):
    size = min(len(ours), len(theirs))
    one, other = np.array(ours[:size]), np.array(theirs[:size])
    weights = np.array([np.ones(size), np.arange(size) % 2 + 1.0])
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
    assert is_flat(np.zeros(3))


@given(st.floats(1e-12, 1e12))
def test_whether_scores_vary_does_not_depend_on_their_unit(scale):
    assert not is_flat(scale * np.array([1.0, 1.1, 0.9]))
    assert is_flat(scale * np.array([1.0, 1.0 + 1e-8, 1.0]))
    assert is_flat(scale * np.array([0.0, 1e-8]), scale=scale * np.array([1.0, 2.0]))

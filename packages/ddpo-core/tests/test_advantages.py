"""Statistics per prompt, by hand and by law."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpo_core.advantages import compute_advantages, scale_by_run, update_prompt_stats

rewards_lists = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=12)


def test_prompts_are_compared_with_their_own_rewards():
    # "cat" has 1, 2, 3 after the update: mean 2, population std sqrt(2/3). "dog" has too few, so the batch's
    # mean 3 / 2 and std 3 / 2 serve: (0 - 1.5) / 1.5.
    stats, advantages = update_prompt_stats(
        {"cat": (1.0, 2.0)}, ["cat", "dog"], torch.tensor([3.0, 0.0]), buffer_size=3, min_count=3
    )
    assert stats == {"cat": (1.0, 2.0, 3.0), "dog": (0.0,)}
    torch.testing.assert_close(advantages, torch.tensor([(3 - 2) / (2 / 3) ** 0.5, -1.0]), rtol=1e-5, atol=0)


def test_the_oldest_rewards_leave_the_buffer():
    stats, _ = update_prompt_stats(
        {"cat": (1.0, 2.0)}, ["cat"] * 2, torch.tensor([3.0, 4.0]), buffer_size=3, min_count=1
    )
    assert stats == {"cat": (2.0, 3.0, 4.0)}


def test_the_statistics_passed_in_do_not_change():
    before = {"cat": (1.0,)}
    update_prompt_stats(before, ["cat"], torch.tensor([2.0]), buffer_size=4, min_count=1)
    assert before == {"cat": (1.0,)}


def test_equal_rewards_give_no_advantage():
    assert compute_advantages(torch.full((4,), 0.1)).tolist() == [0, 0, 0, 0]
    _, advantages = update_prompt_stats({}, ["cat"] * 4, torch.full((4,), 0.1), buffer_size=4, min_count=1)
    assert advantages.tolist() == [0, 0, 0, 0]


def test_rewards_of_unequal_count_are_refused():
    with pytest.raises(ValueError, match="zip"):
        update_prompt_stats({}, ["cat"], torch.tensor([1.0, 2.0]), buffer_size=4, min_count=1)


@given(rewards_lists)
def test_advantages_have_mean_0_and_std_at_most_1(rewards):
    advantages = compute_advantages(torch.tensor(rewards)).double()
    assert abs(advantages.mean()) < 1e-5
    assert advantages.std(correction=0) < 1 + 1e-5


@given(rewards_lists, st.floats(-10, 10))
def test_a_constant_bonus_changes_nothing(rewards, bonus):
    # In float64, so that the bonus does not round the rewards themselves.
    plain = torch.tensor(rewards, dtype=torch.float64)
    torch.testing.assert_close(compute_advantages(plain + bonus), compute_advantages(plain), atol=1e-6, rtol=1e-6)


@given(rewards_lists)
def test_one_prompt_with_a_whole_buffer_equals_the_batch(rewards):
    _, advantages = update_prompt_stats(
        {}, ["cat"] * len(rewards), torch.tensor(rewards), buffer_size=len(rewards), min_count=1
    )
    torch.testing.assert_close(advantages, compute_advantages(torch.tensor(rewards)))


def test_rewards_that_hardly_differ_any_more_move_the_policy_hardly_any_more():
    # Remembered: 0, 4, 3, 5. Mean 3, population variance (9 + 1 + 0 + 4) / 4 = 3.5; the epoch's mean is 4.
    stats, advantages = scale_by_run({"cat": (0.0, 4.0)}, ["cat", "dog"], torch.tensor([3.0, 5.0]), buffer_size=3)
    assert stats == {"cat": (0.0, 4.0, 3.0), "dog": (5.0,)}
    torch.testing.assert_close(advantages, torch.tensor([-1.0, 1.0]) / 3.5**0.5, rtol=1e-5, atol=0)


@given(rewards_lists)
def test_the_first_epoch_of_a_run_is_its_own_measure(rewards):
    rewards = torch.tensor(rewards)
    _, advantages = scale_by_run({}, ["cat"] * len(rewards), rewards, buffer_size=len(rewards))
    torch.testing.assert_close(advantages, compute_advantages(rewards))
